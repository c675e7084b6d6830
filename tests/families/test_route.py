"""Fused rows are cut, and exchanged, as the tables say."""

from __future__ import annotations

import pytest
import torch

from diffadapt.adapter import TargetKey
from diffadapt.errors import AlgorithmError
from diffadapt.families.route import exchanged
from diffadapt.families.shapes import input_width, output_rows
from diffadapt.reading import read_adapter


def test_rows_of_open_clip_are_cut_in_order():
    name = "text_encoders.clip_g.transformer.transformer.resblocks.0.attn.in_proj"
    down, up = torch.randn(4, 1280), torch.randn(3 * 1280, 4)
    adapter = read_adapter({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up})
    assert len(adapter.targets) == 3
    weight = torch.zeros(1280, 1280)
    whole = up @ down
    for place, part in enumerate("qkv"):
        target = TargetKey("text_encoder_2", f"text_model.encoder.layers.0.self_attn.{part}_proj")
        delta = adapter.targets[target].weight_delta(weight)
        torch.testing.assert_close(delta, whole[place * 1280 : (place + 1) * 1280])
        assert len(adapter.keys[target]) == 2


def test_rows_that_cannot_be_cut():
    name = "text_encoders.clip_g.transformer.transformer.resblocks.0.attn.in_proj"
    tensors = {f"{name}.lora_down.weight": torch.ones(4, 1280), f"{name}.lora_up.weight": torch.ones(100, 4)}
    with pytest.raises(AlgorithmError, match=r"state dict: .*in_proj.*100.*1:1:1"):
        read_adapter(tensors)


def test_exchange_swaps_the_halves_of_rows():
    tensors = {"lora_down": torch.randn(2, 6), "lora_up": torch.randn(8, 2), "alpha": torch.tensor(2.0)}
    swapped = exchanged(tensors)
    assert swapped is not None
    torch.testing.assert_close(swapped["lora_up"] @ swapped["lora_down"],
                               (tensors["lora_up"] @ tensors["lora_down"]).roll(4, 0))  # fmt: skip
    again = exchanged(swapped)
    assert again is not None
    assert all(torch.equal(again[role], tensor) for role, tensor in tensors.items())
    # The rows of a rotation are not the tensor's: the delta is wrapped instead.
    assert exchanged({"oft_blocks": torch.zeros(2, 4, 4)}) is None


def test_widths_by_role():
    conv = {"lora_down": torch.zeros(4, 320, 3, 3), "lora_up": torch.zeros(640, 4, 1, 1)}
    assert (input_width(conv), output_rows(conv)) == (320, 640)
    lokr = {"lokr_w1": torch.zeros(8, 4), "lokr_w2_a": torch.zeros(40, 2), "lokr_w2_b": torch.zeros(2, 192)}
    assert (input_width(lokr), output_rows(lokr)) == (768, 320)
    assert input_width({"oft_blocks": torch.zeros(4, 8, 8)}) is None
    # 24 blocks of 32; one block may be shared by any number.
    assert input_width({"oft_R": torch.zeros(24, 496)}) == 768
    assert input_width({"oft_R": torch.zeros(1, 496)}) is None
    assert output_rows({"oft_blocks": torch.zeros(4, 8, 8)}) == 32
