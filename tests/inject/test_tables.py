"""Parameters without a layer: modulation tables of Wan, as its distillations change them."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import WanTransformer3DModel

import diffadapt
from tests import tiny
from tests.zoo import ZOO
from tests.zoo.trainers import pipeline


def wan() -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
        ffn_dim=32, num_layers=2, cross_attn_norm=True,
    ).eval()  # fmt: skip


def file() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "blocks.0.modulation.diff": (1, 6, 24), "head.modulation.diff": (1, 2, 24), "blocks.1.norm3.diff": (24,),
        "blocks.1.norm3.diff_b": (24,), "blocks.0.self_attn.norm_q.diff": (24,),
        "blocks.0.self_attn.q.lora_down.weight": (2, 24), "blocks.0.self_attn.q.lora_up.weight": (24, 2),
    }  # fmt: skip
    return {f"diffusion_model.{key}": torch.randn(shape, generator=generator) for key, shape in shapes.items()}


@torch.no_grad()
def changed_by_hand(model: WanTransformer3DModel, strength: float) -> WanTransformer3DModel:
    tensors = {key.removeprefix("diffusion_model."): strength * tensor for key, tensor in file().items()}
    model.blocks[0].scale_shift_table += tensors["blocks.0.modulation.diff"]
    model.scale_shift_table += tensors["head.modulation.diff"]
    model.blocks[1].norm2.weight += tensors["blocks.1.norm3.diff"]
    model.blocks[1].norm2.bias += tensors["blocks.1.norm3.diff_b"]
    model.blocks[0].attn1.norm_q.weight += tensors["blocks.0.self_attn.norm_q.diff"]
    up, down = (
        tensors["blocks.0.self_attn.q.lora_up.weight"],
        file()["diffusion_model.blocks.0.self_attn.q.lora_down.weight"],
    )
    model.blocks[0].attn1.to_q.weight += up @ down
    return model


@torch.no_grad()
def run(model: WanTransformer3DModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return model(
        hidden_states=torch.randn(1, 4, 2, 8, 8, generator=generator), timestep=torch.tensor([500]),
        encoder_hidden_states=torch.randn(1, 5, 16, generator=generator),
    ).sample  # fmt: skip


@pytest.mark.parametrize("merged", [False, True])
def test_tables_follow_the_strength_and_come_back(merged):
    model = wan()
    before = copy.deepcopy(model.state_dict())
    diffadapt.enable(model)
    report = model.load_adapter(file(), adapter_name="distilled")
    assert report.complete, report
    assert len(report.applied) == 5
    if merged:
        model.adapters.merge()
    torch.testing.assert_close(run(model), run(changed_by_hand(wan(), 1.0)), rtol=1e-4, atol=1e-5)
    model.adapters.set({"distilled": 0.5})
    torch.testing.assert_close(run(model), run(changed_by_hand(wan(), 0.5)), rtol=1e-4, atol=1e-5)
    with model.adapters.disable():
        assert torch.equal(run(model), run(wan()))
    with model.adapters.scaled(0.0):
        assert torch.equal(model.scale_shift_table, before["scale_shift_table"])
    model.adapters.remove("distilled")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_kept_merge_keeps_the_tables():
    model = wan()
    diffadapt.enable(model)
    model.load_adapter(file(), adapter_name="distilled")
    model.adapters.merge()
    model.adapters.keep_merged()
    assert not model.adapters.names
    torch.testing.assert_close(run(model), run(changed_by_hand(wan(), 1.0)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("merged", [False, True])
@torch.no_grad()
def test_linears_that_are_read_and_never_called(merged):
    """HunyuanDiT's attention pool computes with the weights of its Linears: hooks on them would never run."""
    specimen, pool = ZOO["hunyuandit"], "time_extra_emb.pooler"
    model, by_hand = specimen.build(), specimen.build()
    base, before = specimen.run(model), tiny.snapshot(model)
    width = model.get_submodule(f"{pool}.q_proj").in_features
    generator = torch.Generator().manual_seed(2)
    pair = torch.randn(2, width, generator=generator), torch.randn(width, 2, generator=generator)
    file = {
        f"transformer.{pool}.{leaf}.lora_{name}.weight": tensor
        for leaf in ("q_proj", "v_proj") for name, tensor in zip("AB", pair, strict=True)
    }  # fmt: skip
    for leaf in ("q_proj", "v_proj"):
        by_hand.get_submodule(f"{pool}.{leaf}").weight += 0.5 * pair[1] @ pair[0]
    pipe = pipeline(specimen, model)
    assert pipe.load_adapter(file, adapter_name="a", weight=0.5).complete
    if merged:
        pipe.adapters.merge()
    assert tiny.relative(specimen.run(model), specimen.run(by_hand), base) < 1e-5
    with pipe.adapters.disable():
        assert torch.equal(specimen.run(model), base)
    pipe.adapters.set({})
    assert tiny.same_bits(model, before)
    pipe.adapters.set({"a": 0.5})
    pipe.adapters.remove("a")
    assert tiny.same_bits(model, before)


def test_a_table_that_somebody_changed_stops_a_switch_half_way():
    """The strengths stay those of before, everywhere."""
    model = wan()
    diffadapt.enable(model)
    model.load_adapter(file(), adapter_name="distilled")
    seen = run(model)
    with torch.no_grad():
        model.scale_shift_table += 1
    with pytest.raises(diffadapt.MergeError, match="somebody else changed"):
        model.adapters.set({"distilled": 0.5})
    assert model.adapters.active == {"distilled": 1.0}
    assert set(model.adapters.values("distilled").values()) == {1.0}
    with torch.no_grad():
        model.scale_shift_table -= 1
    torch.testing.assert_close(run(model), seen, rtol=1e-4, atol=1e-5)
