"""Whose methods are whose: one pipeline, and back again; beside PEFT's own adapters and our own calls."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig

import diffadapt
from diffadapt.errors import StackError
from diffadapt.take_over import METHODS, give_back
from tests.take_over.pipelines import UNET_MODULES, lora, run


def test_only_this_pipeline(built) -> None:
    one, other = copy.deepcopy(built["sd"]), copy.deepcopy(built["sd"])
    class_before = dict(vars(StableDiffusionPipeline))
    diffadapt.enable(one, take_over=True)
    assert dict(vars(StableDiffusionPipeline)) == class_before
    assert not {*METHODS} & {*vars(other)}
    one.load_lora_weights(lora(one, 1))
    other.load_lora_weights(lora(other, 1))
    assert hasattr(other.unet, "peft_config")
    assert not hasattr(one.unet, "peft_config")


def test_plain_enable_leaves_diffusers_methods(built) -> None:
    pipe = diffadapt.enable(copy.deepcopy(built["sd"]))
    assert not {*METHODS} & {*vars(pipe)}
    diffadapt.enable(pipe, take_over=True)
    assert {*METHODS} <= {*vars(pipe)}


def test_idempotent(ours) -> None:
    ours.load_lora_weights(lora(ours, 1), adapter_name="a")
    half = run(ours, cross_attention_kwargs={"scale": 0.5})
    method = ours.load_lora_weights
    diffadapt.enable(ours, take_over=True)
    assert ours.load_lora_weights == method
    assert ours.get_active_adapters() == ["a"]
    assert torch.equal(run(ours, cross_attention_kwargs={"scale": 0.5}), half)


def test_give_back(built) -> None:
    pipe = copy.deepcopy(built["sd"])
    diffadapt.enable(pipe, take_over=True)
    pipe.load_lora_weights(lora(pipe, 1), adapter_name="a")
    out = run(pipe)
    give_back(pipe)
    assert not {*METHODS, "encode_prompt", "_merged_adapters"} & {*vars(pipe)}
    assert torch.equal(run(pipe), out)  # what is loaded stays
    pipe.adapters.clear()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipe.unet.modules())
    give_back(pipe)
    pipe.load_lora_weights(lora(pipe, 1), adapter_name="a")
    assert hasattr(pipe.unet, "peft_config")


def test_a_copy_has_its_own(ours) -> None:
    ours.load_lora_weights(lora(ours, 1), adapter_name="a")
    full = run(ours)
    twin = copy.deepcopy(ours)
    twin.set_adapters("a", 0.5)
    half = run(twin)
    assert not torch.equal(half, full)
    assert torch.equal(run(ours), full)
    torch.testing.assert_close(run(twin, cross_attention_kwargs={"scale": 2.0}), full, atol=1e-4, rtol=0)
    assert torch.equal(run(ours), full)
    twin.unload_lora_weights()
    assert ours.get_active_adapters() == ["a"]


def test_pipelines_of_the_same_models_share_their_adapters(ours) -> None:
    """As in Diffusers, where adapters live in the models: `StableDiffusionImg2ImgPipeline(**pipe.components)`."""
    ours.load_lora_weights(lora(ours, 1), adapter_name="a")
    full, half = run(ours), run(ours, cross_attention_kwargs={"scale": 0.5})
    other = diffadapt.enable(StableDiffusionPipeline(**ours.components, requires_safety_checker=False), take_over=True)
    assert other.get_active_adapters() == ["a"]
    other.load_lora_weights(lora(ours, 2))
    assert ours.get_active_adapters() == ["default_1"]
    ours.set_adapters("a")
    assert torch.equal(run(other), full)
    assert torch.equal(run(other, cross_attention_kwargs={"scale": 0.5}), half)
    give_back(other)
    assert torch.equal(run(ours, cross_attention_kwargs={"scale": 0.5}), half)
    assert torch.equal(run(ours), full)


def test_pipelines_that_share_one_model_only(ours, built) -> None:
    """Like SDXL and its refiner: each has its own adapters, and a call's scale means those of both on the model."""
    parts = copy.deepcopy(built["sd"]).components | {"unet": ours.unet}
    other = diffadapt.enable(StableDiffusionPipeline(**parts, requires_safety_checker=False), take_over=True)
    base = run(ours)
    state = lora(built["sd"], 1, text=False)
    other.load_lora_weights(state, adapter_name="a")
    assert ours.get_list_adapters() == {}
    ours.load_lora_weights(lora(built["sd"], 2, text=False), adapter_name="b")
    assert not torch.allclose(run(ours), base, atol=1e-2)
    torch.testing.assert_close(run(ours, cross_attention_kwargs={"scale": 0.0}), base, atol=1e-5, rtol=0)


def test_a_model_has_no_methods_to_take_over(built) -> None:
    with pytest.raises(StackError, match="is a model"):
        diffadapt.enable(copy.deepcopy(built["sd"].unet), take_over=True)


def test_models_stay_themselves(ours) -> None:
    keys, cls = list(ours.unet.state_dict()), type(ours.unet)
    ours.load_lora_weights(lora(ours, 1))
    ours.fuse_lora()
    assert list(ours.unet.state_dict()) == keys
    assert type(ours.unet) is cls


def test_save_pretrained(ours, tmp_path, built) -> None:
    ours.load_lora_weights(lora(ours, 1))
    ours.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    torch.testing.assert_close(run(again), run(built["sd"]))


# -- beside `pipe.adapters` ------------------------------------------------------------------------------------


def test_what_pipe_adapters_does_is_taken_up(ours) -> None:
    ours.load_lora_weights(lora(ours, 1), adapter_name="a")
    ours.load_adapter(lora(ours, 2), adapter_name="b", weight=0.3)
    assert ours.get_active_adapters() == ["a", "b"]
    ours.adapters.set({"b": {"unet": 0.5, "text_encoder": 0.2}, "a": {"down": 0.5}})
    mixed = run(ours)
    ours.load_lora_weights(lora(ours, 3, unet=False, text=True), adapter_name="c")
    ours.delete_adapters("c")
    ours.set_adapters(["a", "b"])
    ours.adapters.set({"b": {"unet": 0.5, "text_encoder": 0.2}, "a": {"down": 0.5}})
    ours.fuse_lora()
    torch.testing.assert_close(run(ours), mixed, atol=1e-4, rtol=0)
    assert ours.fused_loras == {"a", "b"}
    ours.adapters.remove("b")
    assert ours.get_list_adapters()["unet"] == ["a"]
    ours.adapters.unmerge()
    ours.set_adapters("a")
    assert ours.num_fused_loras == 0


def test_merge_of_pipe_adapters_counts_as_fused(ours) -> None:
    ours.load_lora_weights(lora(ours, 1), adapter_name="a")
    base = {k: v.clone() for k, v in ours.unet.state_dict().items()}
    ours.adapters.merge()
    ours.set_adapters("a", 0.5)
    assert ours.num_fused_loras == 1
    ours.unfuse_lora()
    assert all(torch.equal(base[k], v) for k, v in ours.unet.state_dict().items())


# -- hotswap ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
def test_hotswap(ours, fused: bool) -> None:
    first, second = lora(ours, 1), lora(ours, 2, r=8, lora_alpha=8)
    ours.load_lora_weights(second, adapter_name="a")
    ours.set_adapters("a", 0.7)
    wanted = run(ours)
    ours.unload_lora_weights()
    ours.enable_lora_hotswap(target_rank=8)
    ours.load_lora_weights(first, adapter_name="a")
    ours.load_lora_weights(lora(ours, 3), adapter_name="b")
    ours.set_adapters("a", 0.7)
    if fused:
        ours.fuse_lora()
    ours.load_lora_weights(second, adapter_name="a", hotswap=True)
    assert ours.get_active_adapters() == ["a"]
    assert sorted(ours.adapters.names) == ["a", "b"]
    torch.testing.assert_close(run(ours), wanted, atol=1e-4, rtol=0)
    assert ours.num_fused_loras == fused
    ours.unfuse_lora()
    torch.testing.assert_close(run(ours), wanted, atol=1e-4, rtol=0)


def test_a_failing_hotswap_keeps_the_old(ours) -> None:
    ours.load_lora_weights(lora(ours, 1), adapter_name="a")
    before = run(ours)
    wrong = {key: torch.cat([tensor, tensor], 1) for key, tensor in lora(ours, 2).items() if "lora_A" in key}
    wrong |= {key: tensor for key, tensor in lora(ours, 2).items() if "lora_B" in key}
    with pytest.raises(ValueError, match="does not fit"):
        ours.load_lora_weights(wrong, adapter_name="a", hotswap=True)
    assert torch.equal(run(ours), before)
    with pytest.raises(ValueError, match="no adapter named 'x'"):
        ours.load_lora_weights(lora(ours, 2), adapter_name="x", hotswap=True)


# -- beside PEFT's own -----------------------------------------------------------------------------------------


@pytest.fixture
def mixed(ours):
    """Ours "a" on all components, and "p" that PEFT holds in the UNet."""
    ours.load_lora_weights(lora(ours, 1), adapter_name="a")
    torch.manual_seed(5)
    config = LoraConfig(r=4, lora_alpha=4, target_modules=list(UNET_MODULES), init_lora_weights=False)
    ours.unet.add_adapter(config, "p")
    return ours


def test_peft_adapters_are_listed_and_set(mixed, built) -> None:
    base = run(built["sd"])
    assert mixed.get_list_adapters() == {"unet": ["a", "p"], "text_encoder": ["a"]}
    assert mixed.get_active_adapters() == ["a", "p"]
    both = run(mixed)
    mixed.set_adapters("a")
    a = run(mixed)
    mixed.set_adapters("p")
    p = run(mixed)
    assert mixed.get_active_adapters() == ["p"]
    assert not any(torch.allclose(x, y, atol=1e-3) for x, y in ((a, p), (a, both), (p, both)))
    mixed.set_adapters(["a", "p"], [0.5, {"unet": {"down": 0.5}}])
    half = run(mixed, cross_attention_kwargs={"scale": 0.5})
    mixed.set_adapters(["a", "p"])
    torch.testing.assert_close(run(mixed), both, atol=1e-4, rtol=0)
    assert not torch.allclose(half, both, atol=1e-3)
    torch.testing.assert_close(run(mixed, cross_attention_kwargs={"scale": 0.0}), base, atol=1e-4, rtol=0)
    mixed.disable_lora()
    torch.testing.assert_close(run(mixed), base, atol=1e-4, rtol=0)
    mixed.enable_lora()


def test_peft_adapters_are_fused_unfused_and_removed(mixed, built) -> None:
    both = run(mixed)
    mixed.fuse_lora()
    assert mixed.fused_loras == {"a", "p"}
    torch.testing.assert_close(run(mixed), both, atol=1e-3, rtol=0)
    mixed.unfuse_lora()
    assert mixed.num_fused_loras == 0
    torch.testing.assert_close(run(mixed), both, atol=1e-3, rtol=0)
    mixed.delete_adapters("a")
    assert mixed.get_list_adapters() == {"unet": ["p"]}
    with pytest.raises(ValueError, match="already in use"):
        mixed.load_lora_weights(lora(built["sd"], 1), adapter_name="p")
    mixed.unload_lora_weights()
    assert mixed.get_list_adapters() == {}
    torch.testing.assert_close(run(mixed), run(built["sd"]), atol=1e-3, rtol=0)


def test_a_load_puts_peft_adapters_of_its_components_out_of_force(mixed) -> None:
    mixed.load_lora_weights(lora(mixed, 2, unet=False), adapter_name="text")
    assert "p" in mixed.get_active_adapters()
    mixed.delete_adapters("text")
    mixed.load_lora_weights(lora_of_unet(mixed), adapter_name="b")
    assert "p" not in mixed.get_active_adapters()


def lora_of_unet(pipe) -> dict[str, torch.Tensor]:
    from tests.take_over import pipelines

    return lora(pipelines.sd(), 2, text=False)
