"""The strength of one call, however the call ends."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch

import diffadapt
from diffadapt.take_over.call_scale import KWARGS
from tests.take_over import pipelines
from tests.take_over.pipelines import lora, run


@pytest.fixture
def loaded(ours):
    ours.load_lora_weights(lora(ours, 1), adapter_name="a")
    return ours


def denoise(pipe, **kwargs) -> torch.Tensor:
    g = torch.Generator().manual_seed(2)
    x, text = torch.randn(1, 4, 8, 8, generator=g), torch.randn(1, 5, 32, generator=g)
    with torch.no_grad():
        return pipe.unet(x, torch.tensor([3]), text, **kwargs).sample


def test_a_failing_step_leaves_no_scale(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    before = denoise(loaded)
    layer = loaded.unet.mid_block.attentions[0].transformer_blocks[0].ff

    def fail(*args: object) -> None:
        raise RuntimeError("out of memory")

    handle = layer.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        denoise(loaded, cross_attention_kwargs={"scale": 0.1})
    handle.remove()
    assert loaded.adapters.values("a")
    assert torch.equal(denoise(loaded), before)


def test_an_interrupted_step_leaves_no_scale(loaded) -> None:
    """Hooks do not run on KeyboardInterrupt; the next call clears up."""
    before = denoise(loaded)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    handle = loaded.unet.mid_block.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        denoise(loaded, cross_attention_kwargs={"scale": 0.1})
    handle.remove()
    assert torch.equal(denoise(loaded), before)


def test_a_failing_prompt_leaves_no_scale(loaded) -> None:
    before = run(loaded)

    def fail(*args: object) -> None:
        raise RuntimeError("out of memory")

    handle = loaded.text_encoder.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(loaded, cross_attention_kwargs={"scale": 0.1})
    handle.remove()
    assert torch.equal(run(loaded), before)


def test_a_scale_does_not_touch_the_next_load(loaded) -> None:
    """In Diffusers the text encoder's part of the next load would get the last call's scale."""
    run(loaded, cross_attention_kwargs={"scale": 0.5})
    loaded.load_lora_weights(lora(loaded, 2), adapter_name="b")
    after = run(loaded)
    loaded.set_adapters("b", 1.0)
    assert torch.equal(run(loaded), after)


def test_scales_multiply(loaded) -> None:
    loaded.set_adapters("a", 0.25)
    quarter = denoise(loaded)
    loaded.set_adapters("a")
    with loaded.adapters.scaled(0.5):
        torch.testing.assert_close(denoise(loaded, cross_attention_kwargs={"scale": 0.5}), quarter)
        loaded.set_adapters("a", 0.5)
        torch.testing.assert_close(denoise(loaded), quarter)
    loaded.set_adapters("a", 0.25)
    assert torch.equal(denoise(loaded), quarter)


def test_other_kwargs_pass_and_are_not_changed(loaded) -> None:
    given = {"scale": 0.5, "gligen": None}
    denoise(loaded, cross_attention_kwargs=given)
    assert given == {"scale": 0.5, "gligen": None}
    assert torch.equal(denoise(loaded, cross_attention_kwargs={"scale": None}), denoise(loaded))
    assert torch.equal(denoise(loaded, cross_attention_kwargs={}), denoise(loaded))


@pytest.mark.parametrize("name", KWARGS)
def test_every_spelling(name: str) -> None:
    """What a denoiser's own scale is called differs between model classes."""
    seen = []

    class Denoiser(torch.nn.Linear):
        def forward(self, x, **kwargs):
            seen.append(kwargs)
            return super().forward(x)

    class Pipe:
        def __init__(self) -> None:
            self.transformer = Denoiser(4, 4)
            self.components = {"transformer": self.transformer}

    pipe = diffadapt.enable(Pipe(), take_over=True)
    x = torch.randn(2, 4)
    with pipe.adapters.scaled(1.0):
        pipe.transformer(x, **{name: {"scale": 0.5, "other": 1}})
    assert seen == [{name: {"other": 1}}]


def test_the_signature_is_diffusers(ours) -> None:
    assert inspect.signature(ours.encode_prompt) == inspect.signature(type(ours).encode_prompt.__get__(ours))
    with torch.no_grad():
        mine = ours.encode_prompt("a squirrel", "cpu", 1, False)
        theirs = type(ours).encode_prompt(ours, "a squirrel", "cpu", 1, False)
    assert torch.equal(mine[0], theirs[0])


def test_a_replaced_model_is_hooked_at_the_next_load(loaded, built) -> None:
    loaded.unload_lora_weights()
    old, loaded.unet = loaded.unet, copy.deepcopy(built["sd"].unet)
    loaded.load_lora_weights(lora(loaded, 1), adapter_name="b")
    base = denoise(built["sd"])
    torch.testing.assert_close(denoise(loaded, cross_attention_kwargs={"scale": 0.0}), base)
    assert not torch.allclose(denoise(loaded), base)
    assert not old._forward_pre_hooks
    assert not old._forward_hooks


def test_compiled() -> None:
    """The scale reaches a compiled denoiser, whole graph where none is given."""
    small = pipelines.sd()  # a compiler is slow with many modules: only the middle has attention, one layer of a kind
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    small.unet = pipelines.unet(0, block_out_channels=(32,), layers_per_block=1, **kinds)
    few = {"text": False, "target_modules": r".*attn2\.(to_out\.0|to_q)"}
    pipe = diffadapt.enable(small, take_over=True)
    pipe.load_lora_weights(lora(pipe, 1, **few), adapter_name="a")
    full, half = denoise(pipe), denoise(pipe, cross_attention_kwargs={"scale": 0.5})
    assert not torch.allclose(full, half)
    pipe.unet = torch.compile(pipe.unet, backend="eager", fullgraph=True)
    torch.testing.assert_close(denoise(pipe), full)
    pipe.load_lora_weights(lora(pipe, 2, **few), adapter_name="b")  # hooks the compiled model
    pipe.set_adapters("a")
    torch.testing.assert_close(denoise(pipe), full)
    torch.testing.assert_close(denoise(pipe, cross_attention_kwargs={"scale": 0.5}), half)
    torch.testing.assert_close(denoise(pipe), full)
