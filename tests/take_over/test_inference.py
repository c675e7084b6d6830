"""Loading and running, against Diffusers with PEFT on a copy of the pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

from diffadapt.errors import DiffAdaptError, NonFiniteError
from tests.take_over.pipelines import lora, run


def test_without_adapters(pair) -> None:
    pair.is_base()


def test_text_lora(pair) -> None:
    pair.load("a", pair.lora(1, unet=False, whole=True))
    pair.differs()


def test_unet_lora(pair) -> None:
    pair.load("a", pair.lora(1, text=False, whole=True))
    pair.differs()


def test_unet_and_text_lora(pair) -> None:
    pair.load("a", pair.lora(1, whole=True))
    pair.differs()


@pytest.mark.parametrize("parts", [{}, {"unet": False}, {"text": False}], ids=["both", "text", "unet"])
def test_scale_of_a_call(pair, parts) -> None:
    pair.load("a", pair.lora(1, **parts))
    full = pair.differs()
    pair.differs(full, cross_attention_kwargs={"scale": 0.5})
    pair.is_base(cross_attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(pair.same(), full, atol=0, rtol=0)


def test_scale_of_a_call_is_a_weight(pair) -> None:
    pair.load("a", pair.lora(1))
    scaled = pair.differs(cross_attention_kwargs={"scale": 0.5})
    pair.set_adapters("a", 0.5)
    torch.testing.assert_close(pair.same(), scaled, atol=1e-4, rtol=0)


def test_scale_of_a_call_multiplies_weights(pair) -> None:
    pair.load("a", pair.lora(1))
    pair.load("b", pair.lora(2))
    pair.set_adapters(["a", "b"], [0.8, {"unet": {"down": 0.3}}])
    pair.differs(cross_attention_kwargs={"scale": 0.5})
    pair.differs()


@pytest.mark.parametrize(("pair", "alpha"), [("sd", 2), ("sd", 4), ("sdxl", 16)], indirect=["pair"])
def test_alpha(pair, alpha) -> None:
    pair.load("a", pair.lora(1, lora_alpha=alpha), metadata=None)
    pair.differs()


def test_ranks_per_module_and_missing_layers(pair) -> None:
    state = pair.lora(1, unet=False, whole=True, rank_pattern={"q_proj": 1, "k_proj": 2, "v_proj": 3})
    pair.load("whole", state)
    whole = pair.differs()
    pair.unload_lora_weights()
    pair.load("part", {key: tensor for key, tensor in state.items() if "layers.1" not in key})
    pair.differs(whole)


def test_dora(pair) -> None:
    pair.load("a", pair.lora(1, text=False, use_dora=True))
    full = pair.differs()
    pair.set_adapters("a", 0.0)
    # PEFT still applies the magnitudes at 0; here the whole change is scaled, so nothing is left of it.
    torch.testing.assert_close(run(pair.ours), pair.base, atol=1e-5, rtol=0)
    pair.set_adapters("a", 1.0)
    torch.testing.assert_close(pair.same(), full, atol=1e-5, rtol=0)


def test_bias_of_b(pair) -> None:
    state = pair.lora(1, text=False, lora_bias=True)
    assert any(key.endswith("lora_B.bias") for key in state)
    pair.load("a", state)
    full = pair.differs()
    pair.load("b", {key: tensor for key, tensor in state.items() if not key.endswith("lora_B.bias")})
    pair.differs(full)


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickle"])
@pytest.mark.parametrize(
    ("pair", "by"), [("sd", "folder"), ("sd", "file"), ("sd", "weight_name"), ("sdxl", "folder")], indirect=["pair"]
)
def test_files_of_save_lora_weights(pair, tmp_path: Path, safe: bool, by: str) -> None:
    state = pair.lora(1)
    layers = {
        f"{part}_lora_layers": {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
        for part in pair.ours._lora_loadable_modules
    }
    pair.ours.save_lora_weights(tmp_path, safe_serialization=safe, **layers)
    name = "pytorch_lora_weights" + (".safetensors" if safe else ".bin")
    assert (tmp_path / name).is_file()
    pair.load("direct", state)
    direct = pair.differs()
    pair.unload_lora_weights()
    options = {"weight_name": name} if by == "weight_name" else {}
    source = tmp_path / name if by == "file" else tmp_path
    pair.load("a", str(source), **options)
    torch.testing.assert_close(pair.same(), direct, atol=1e-5, rtol=0)


def test_kohya_file(pair, tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    g = torch.Generator().manual_seed(0)
    width = pair.ours.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.in_features
    tensors = {
        f"{name}.lora_down.weight": torch.randn(4, width, generator=g),
        f"{name}.lora_up.weight": torch.randn(width, 4, generator=g),
        f"{name}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, tmp_path / "k.safetensors")
    pair.load("a", str(tmp_path), weight_name="k.safetensors")
    pair.differs()


@pytest.mark.parametrize("low", [True, False])
def test_diffusers_keyword_arguments(pair, low: bool) -> None:
    pair.load(
        "a", pair.lora(1), low_cpu_mem_usage=low, cache_dir=None, force_download=False, proxies=None, revision=None,
        local_files_only=None, token=None, subfolder=None, use_safetensors=None,
    )  # fmt: skip
    pair.differs()


def test_dict_is_left_alone(ours) -> None:
    state = lora(ours, 1)
    before = dict(state)
    ours.load_lora_weights(state)
    assert state.keys() == before.keys()
    assert all(state[key] is before[key] for key in state)


def test_nan_is_refused(ours) -> None:
    base, state = run(ours), lora(ours, 1)
    state[next(iter(state))][0, 0] = torch.nan
    with pytest.raises(NonFiniteError) as caught:
        ours.load_lora_weights(state)
    assert isinstance(caught.value, ValueError)
    assert torch.equal(run(ours), base)
    assert ours.get_list_adapters() == {}


def test_a_file_that_matches_nothing_is_an_error(ours) -> None:
    """Diffusers logs a warning and goes on without the adapter."""
    with pytest.raises(ValueError, match="lora_foo") as caught:
        ours.load_lora_weights({"lora_foo": torch.tensor(2.0), "lora_bar": torch.tensor(3.0)})
    assert isinstance(caught.value, DiffAdaptError)


def test_a_missing_file_is_an_oserror(ours, tmp_path: Path) -> None:
    for kind in (OSError, ValueError, DiffAdaptError):
        with pytest.raises(kind):
            ours.load_lora_weights(str(tmp_path / "none.safetensors"))


def test_base_pipelines_have_what_is_taken_over() -> None:
    from diffadapt.take_over import METHODS

    for cls in (StableDiffusionPipeline, StableDiffusionXLPipeline):
        assert all(hasattr(cls, name) for name in METHODS)
