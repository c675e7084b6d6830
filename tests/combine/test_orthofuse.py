"""Rotations blended as rotations."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import diffadapt
from diffadapt.adapter import Adapter, TargetKey
from diffadapt.algorithms.boft_peft import PeftBOFT
from diffadapt.algorithms.cayley import pack
from diffadapt.algorithms.oft import OFT
from diffadapt.algorithms.oft_peft import PackedOFT
from diffadapt.algorithms.oft_peft_old import OldInputOFT
from diffadapt.errors import CombineError
from tests.algorithms.samples import SAMPLES
from tests.combine.made import KEY, adapter, error, lora

NAMES = {
    "oft", "oft conv", "boft", "oft flux", "oft peft", "oft peft old", "oft peft middle", "boft peft"
}  # fmt: skip
TURNING = pytest.mark.parametrize("sample", [s for s in SAMPLES if s.name in NAMES], ids=lambda s: s.name)


def blocks(seed, k=8, n=4, size=0.3):
    return size * torch.randn(k, n, n, generator=torch.Generator().manual_seed(seed))


def rotation(delta, channels=32):
    """G of W' = G W, in float64."""
    eye = torch.eye(channels)
    return (delta.weight_delta(eye) + eye).double()


def blended(pairs, **options):
    named = [(adapter(delta, f"n{i}"), weight) for i, (delta, weight) in enumerate(pairs)]
    return diffadapt.combine(named, "orthofuse", **options).targets[KEY]


@TURNING
def test_equal_parts_are_the_part_and_two_halves_make_a_whole(sample):
    module, _ = sample.build()
    weight, delta = module.weight.detach().float(), sample.delta()
    if isinstance(delta, PeftBOFT | OldInputOFT):
        delta = dataclasses.replace(delta, scale=0.5 + delta.scale.abs())  # the sample's have both signs
    truth = delta.weight_delta(weight)
    for pairs in ([(delta, 0.5), (delta, 0.5)], [(delta, 1.0), (delta, 0.0)]):
        assert error(blended(pairs).weight_delta(weight), truth) < 1e-5
    half = blended([(delta, 0.5)])
    assert error(blended([(half, 1.0), (half, 1.0)]).weight_delta(weight), truth) < 1e-5


def test_a_weight_turns_by_as_many_times_the_angle():
    delta = OFT(blocks(1))
    whole = rotation(delta)
    assert blended([(delta, 1.0)]) is not None
    assert (rotation(blended([(delta, 3.0)])) - whole @ whole @ whole).abs().max() < 1e-5
    assert (rotation(blended([(delta, -1.0)])) - whole.T).abs().max() < 1e-5


def test_a_rotation_and_its_inverse_cancel():
    one, two = OFT(blocks(1)), OFT(-blocks(1))
    assert (rotation(one) @ rotation(two) - torch.eye(32)).abs().max() < 1e-5
    assert (rotation(blended([(one, 0.5), (two, 0.5)])) - torch.eye(32)).abs().max() < 1e-6


def test_a_blend_is_a_rotation_and_has_its_formula():
    one, two = OFT(blocks(1)), OFT(blocks(2))
    made = blended([(one, 0.7), (two, 0.6)])
    seen = rotation(made)
    assert isinstance(made, OFT)
    assert (seen @ seen.T - torch.eye(32)).abs().max() < 1e-5
    logs = [_log(rotation(delta)) for delta in (one, two)]
    assert (seen - torch.linalg.matrix_exp(0.7 * logs[0] + 0.6 * logs[1])).abs().max() < 1e-5
    back = rotation(blended([(two, 0.6), (one, 0.7)]))
    assert (back - seen).abs().max() < 1e-6


def _log(matrix):
    values, vectors = torch.linalg.eig(matrix)
    return (vectors @ torch.diag(values.log()) @ torch.linalg.inv(vectors)).real


def test_scales_are_blended_by_their_logarithms():
    scales = [1 + torch.rand(32, 1, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    made = blended([(OFT(blocks(1), rescale=scales[0]), 0.5), (OFT(blocks(2), rescale=scales[1]), 0.5)])
    torch.testing.assert_close(made.rescale, (scales[0] * scales[1]).sqrt())


def test_kohyas_own_form_stays_its_own():
    one, two = OFT(blocks(1), 1.0, None, True), OFT(blocks(2), 1.0, None, True)
    made = blended([(one, 0.5), (two, 0.5)])
    assert made.kohya
    plain = blended([(OFT(blocks(1)), 0.5), (OFT(blocks(2)), 0.5)])
    assert (rotation(made) - rotation(plain)).abs().max() < 1e-5


def test_saved_and_read_again(tmp_path):
    key = TargetKey("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    pair = [
        Adapter(name, "kohya", {key: OFT(blocks(seed, 40, 16, 0.05))}, candidates=("sdxl",))
        for seed, name in enumerate("ab")
    ]
    mix = diffadapt.combine({pair[0]: 0.7, pair[1]: 0.6}, "orthofuse")
    again = diffadapt.read_adapter(mix.save(tmp_path / "mix.safetensors"))
    assert (rotation(again.targets[key], 640) - rotation(mix.targets[key], 640)).abs().max() < 1e-6


def test_what_is_no_rotation_or_another_one():
    delta = OFT(blocks(1))
    with pytest.raises(CombineError, match="unet layer: orthofuse: the lora of n1 is no block rotation"):
        blended([(delta, 0.5), (lora(4, 1), 0.5)])
    with pytest.raises(CombineError, match="the oft of n1 has blocks of 4x8x8 on the outputs"):
        blended([(delta, 0.5), (OFT(blocks(1, 4, 8)), 0.5)])
    with pytest.raises(CombineError, match="a rotation has no rank"):
        blended([(delta, 0.5)], rank=4)
    with pytest.raises(CombineError, match="tolerance is 0"):
        blended([(delta, 0.5)], tolerance=0)
    turn = torch.zeros(1, 2, 2)
    turn[0, 0, 1] = 1.0  # a quarter turn
    with pytest.raises(CombineError, match="half turn"):
        blended([(OFT(turn), 2.0)])


def test_the_series_of_peft_is_taken_as_the_rotation_nearby():
    x = blocks(1, 6, 4)
    delta = PackedOFT(pack(x - x.transpose(1, 2)), 5, True)
    with pytest.raises(CombineError, match="from a rotation; raise `tolerance`"):
        blended([(delta, 0.5)])
    made = blended([(delta, 0.5)], tolerance=10.0)
    seen = made.weight_delta(torch.eye(24)) + torch.eye(24)
    assert (seen @ seen.T - torch.eye(24)).abs().max() < 1e-5
