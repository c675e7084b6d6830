"""Flux' Control LoRAs: a widened input layer and replaced norms, alone and beside plain adapters in either order.

The oracle is Diffusers' own FluxControlPipeline loader.
"""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxControlPipeline
from torch import Tensor

import diffadapt
from tests import tiny

NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")


def pipeline(transformer) -> FluxControlPipeline:
    return FluxControlPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, transformer=transformer,
    )  # fmt: skip


def numbers(*shape: int, seed: int) -> Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def control_file() -> dict[str, Tensor]:
    """Low-rank factors of the widened input and of some blocks, with bias, and the norms whole."""
    file = {}
    widths = {"x_embedder": (8, 48), "transformer_blocks.0.attn.to_q": (48, 48), "proj_out": (48, 4)}
    for seed, (name, (columns, rows)) in enumerate(widths.items()):
        file[f"transformer.{name}.lora_A.weight"] = numbers(3, columns, seed=seed)
        file[f"transformer.{name}.lora_B.weight"] = numbers(rows, 3, seed=seed + 10)
        file[f"transformer.{name}.lora_B.bias"] = numbers(rows, seed=seed + 20)
    for seed, norm in enumerate(NORMS):
        file[f"transformer.transformer_blocks.0.attn.{norm}.weight"] = 1 + numbers(16, seed=seed + 30)
    return file


def plain_file() -> dict[str, Tensor]:
    return {
        "transformer.x_embedder.lora_A.weight": numbers(2, 4, seed=50),
        "transformer.x_embedder.lora_B.weight": numbers(48, 2, seed=51),
        "transformer.transformer_blocks.0.attn.to_k.lora_A.weight": numbers(2, 48, seed=52),
        "transformer.transformer_blocks.0.attn.to_k.lora_B.weight": numbers(48, 2, seed=53),
    }


@torch.no_grad()
def run(transformer, channels: int = 8) -> Tensor:
    return transformer(
        hidden_states=numbers(1, 6, channels, seed=1), encoder_hidden_states=numbers(1, 5, 32, seed=2),
        pooled_projections=numbers(1, 32, seed=3), timestep=torch.tensor([0.5]), img_ids=torch.zeros(6, 3),
        txt_ids=torch.zeros(5, 3),
    ).sample  # fmt: skip


@pytest.fixture
def oracle() -> Tensor:
    theirs = pipeline(tiny.flux())
    theirs.load_lora_weights(control_file(), adapter_name="control")
    theirs.set_adapters(["control"])
    return run(theirs.transformer)


def test_a_control_lora_widens_the_input_and_replaces_norms(oracle):
    model = tiny.flux()
    before = copy.deepcopy(model.state_dict())
    plain = run(model, 4)
    ours = diffadapt.enable(pipeline(model))
    report = ours.load_adapter(control_file(), adapter_name="control")
    assert report.complete, report
    assert model.config.in_channels == 8
    torch.testing.assert_close(run(model), oracle, rtol=1e-5, atol=1e-5)
    ours.adapters.merge()
    torch.testing.assert_close(run(model), oracle, rtol=1e-5, atol=1e-5)
    ours.adapters.unmerge()
    ours.adapters.remove("control")
    assert model.config.in_channels == 4
    assert model.x_embedder.in_features == 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(run(model, 4), plain)


@pytest.mark.parametrize("order", [("control", "plain"), ("plain", "control")])
def test_plain_adapters_beside_it_in_either_order(order):
    files = {"control": control_file(), "plain": plain_file()}
    model = tiny.flux()
    ours = diffadapt.enable(pipeline(model))
    for name in order:
        ours.load_adapter(files[name], adapter_name=name)
    padded = plain_file()
    key = "transformer.x_embedder.lora_A.weight"
    padded[key] = torch.cat([padded[key], torch.zeros(2, 4)], dim=1)
    theirs = pipeline(tiny.flux())
    theirs.load_lora_weights(files["control"], adapter_name="control")
    theirs.load_lora_weights(padded, adapter_name="plain")
    theirs.set_adapters(["control", "plain"])
    torch.testing.assert_close(run(model), run(theirs.transformer), rtol=1e-5, atol=1e-5)
    ours.adapters.merge()
    torch.testing.assert_close(run(model), run(theirs.transformer), rtol=1e-5, atol=1e-5)
    ours.adapters.unmerge()
    ours.adapters.remove("control")
    alone = diffadapt.enable(pipeline(tiny.flux()))
    alone.load_adapter(plain_file(), adapter_name="plain")
    torch.testing.assert_close(run(model, 4), run(alone.transformer, 4))


def test_bfl_names_mean_the_same(oracle):
    """BFL's own files: fused names where they are fused, `scale` for the norms, no prefix."""
    rename = {
        "x_embedder": "img_in", "proj_out": "final_layer.linear",
        "transformer_blocks.0.attn.norm_q.weight": "double_blocks.0.img_attn.norm.query_norm.scale",
        "transformer_blocks.0.attn.norm_k.weight": "double_blocks.0.img_attn.norm.key_norm.scale",
        "transformer_blocks.0.attn.norm_added_q.weight": "double_blocks.0.txt_attn.norm.query_norm.scale",
        "transformer_blocks.0.attn.norm_added_k.weight": "double_blocks.0.txt_attn.norm.key_norm.scale",
    }  # fmt: skip
    file = {}
    for key, tensor in control_file().items():
        name = key.removeprefix("transformer.")
        if ".to_q." in name:  # k's and v's rows are zero
            rows = [tensor, torch.zeros(96, *tensor.shape[1:])]
            name = name.replace("transformer_blocks.0.attn.to_q", "double_blocks.0.img_attn.qkv")
            file[name] = tensor if "lora_A" in name else torch.cat(rows)
            continue
        for ours, bfl in rename.items():
            if name.startswith(ours):
                name = bfl + name[len(ours) :]
                break
        file[name] = tensor
    model = tiny.flux()
    pipe = diffadapt.enable(pipeline(model))
    report = pipe.load_adapter(file)
    assert report.complete, report
    torch.testing.assert_close(run(model), oracle, rtol=1e-5, atol=1e-5)


def test_a_kept_merge_keeps_the_columns(oracle):
    model = tiny.flux()
    pipe = diffadapt.enable(pipeline(model))
    pipe.load_adapter(control_file(), adapter_name="control")
    pipe.adapters.merge()
    pipe.adapters.keep_merged()
    assert not pipe.adapters.names
    assert model.config.in_channels == 8
    torch.testing.assert_close(run(model), oracle, rtol=1e-5, atol=1e-5)


def test_columns_that_a_merge_held_go_with_it():
    """A plain adapter is still merged into the wide layer when the Control LoRA leaves."""
    model = tiny.flux()
    before = copy.deepcopy(model.state_dict())
    pipe = diffadapt.enable(pipeline(model))
    pipe.load_adapter(plain_file(), adapter_name="plain")
    pipe.load_adapter(control_file(), adapter_name="control")
    pipe.adapters.merge()
    pipe.adapters.remove("control")
    assert model.x_embedder.in_features == 8
    pipe.adapters.unmerge()
    assert model.x_embedder.in_features == 4
    pipe.adapters.remove("plain")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_layer_that_cannot_be_widened_leaves_everything_as_it_was():
    model = tiny.flux()
    model.x_embedder.to("meta")
    pipe = diffadapt.enable(pipeline(model))
    with pytest.raises(diffadapt.StackError, match=r"widens transformer\.x_embedder"):
        pipe.load_adapter(control_file(), adapter_name="control")
    assert not pipe.adapters.names
    assert (model.x_embedder.in_features, model.config.in_channels) == (4, 4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
