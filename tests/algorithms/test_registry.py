"""Identities that every algorithm of the registry keeps."""

from __future__ import annotations

import itertools
from copy import deepcopy

import pytest
import torch
from torch import nn

from diffadapt.algorithms import ALGORITHMS, Context, TensorGroup, parse_group
from diffadapt.algorithms.forms import LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.total import Sum
from diffadapt.errors import AlgorithmError
from tests.algorithms.reference import base_bias, change_error, live, merged
from tests.algorithms.samples import SAMPLES

EVERY = pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.name)
TOLERANCE = 3e-6
"""Of the change: rotations solve small systems in float32."""


def bias_of(delta, module):
    return delta.bias_delta(base_bias(module))


def test_every_algorithm_has_a_sample():
    sampled = {type(sample.delta()) for sample in SAMPLES}
    missing = set(ALGORITHMS) - sampled
    assert not missing


@EVERY
def test_recognised_and_fitting(sample):
    module, _ = sample.build()
    delta = sample.delta()
    assert delta.algorithm.startswith(sample.algorithm)  # oft: and its generations
    delta.check(Layer.of(module))
    assert delta.parameters > 0
    assert delta.rank is None or delta.rank > 0


@EVERY
@pytest.mark.parametrize("m", [1.0, 0.35, -1.5])
def test_live_equals_merged_and_is_linear(sample, m):
    module, x = sample.build()
    delta, base = sample.delta(), module(x)
    truth = base + m * (merged(module, delta, x) - base)
    assert change_error(merged(module, delta, x, m), truth, base) < TOLERANCE
    assert change_error(live(module, delta, x, m), truth, base) < TOLERANCE


@EVERY
def test_written_and_parsed_again(sample):
    module, _ = sample.build()
    weight, delta = module.weight.detach(), sample.delta()
    again = parse_group(TensorGroup("m", delta.tensors()), sample.context)
    assert type(again) is type(delta)
    assert again.tensors().keys() == delta.tensors().keys()
    assert torch.allclose(again.weight_delta(weight), delta.weight_delta(weight), rtol=1e-6, atol=1e-7)
    bias, same = bias_of(delta, module), bias_of(again, module)
    assert (bias is None) == (same is None)
    assert bias is None or torch.allclose(bias, same)


@EVERY
def test_rows_make_up_the_whole(sample):
    module, _ = sample.build()
    weight, delta = module.weight.detach(), sample.delta()
    if not sample.rows:
        if sample.module == "linear" and sample.algorithm != "boft":
            with pytest.raises(AlgorithmError):
                delta.rows(0, 8)
        return
    borders = [0, *sample.rows, weight.shape[0]]
    spans = list(itertools.pairwise(borders))
    whole = delta.weight_delta(weight)
    slices = [delta.rows(a, b) for a, b in spans]
    parts = [part.weight_delta(weight[a:b]) for part, (a, b) in zip(slices, spans, strict=True)]
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)
    bias = bias_of(delta, module)
    if bias is not None:
        pieces = [part.bias_delta(module.bias[a:b]) for part, (a, b) in zip(slices, spans, strict=True)]
        assert torch.allclose(torch.cat(pieces), bias)
    again = slices[1].rows(0, 3) if sample.name.startswith("lokr") else slices[0]
    start, stop = (spans[1][0], spans[1][0] + 3) if sample.name.startswith("lokr") else spans[0]
    assert torch.allclose(again.weight_delta(weight[start:stop]), whole[start:stop], rtol=1e-5, atol=1e-6)


@EVERY
def test_slices_work_live(sample):
    if not sample.rows or sample.module == "grouped":
        return
    module, x = sample.build()
    start, stop = sample.rows[0], module.weight.shape[0]
    part = deepcopy(module)
    part.weight = nn.Parameter(module.weight[start:stop].detach())
    part.bias = nn.Parameter(module.bias[start:stop].detach())
    if isinstance(part, nn.Linear):
        part.out_features = stop - start
    delta = sample.delta().rows(start, stop)
    delta.check(Layer.of(part))
    if sample.name == "residual":  # its remaining numbers may all lie above the border
        return
    assert change_error(live(part, delta, x), merged(part, delta, x), part(x)) < TOLERANCE


@EVERY
def test_low_rank_is_exact(sample):
    module, _ = sample.build()
    weight, delta = module.weight.detach(), sample.delta()
    pair = delta.low_rank()
    if pair is None:
        return
    assert isinstance(pair, LowRank)
    shape = tuple(weight.shape)
    dense = pair.dense(shape) if sample.module != "embedding" else pair.dense(shape[::-1]).T
    assert torch.allclose(dense, delta.weight_delta(weight), rtol=1e-5, atol=1e-6)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_and_bases_accumulate_in_float32(sample, dtype):
    module, _ = sample.build()
    weight = module.weight.detach().to(dtype)
    delta = sample.delta(lambda t: t.to(dtype))
    wide = sample.delta(lambda t: t.to(dtype).float())
    change = delta.weight_delta(weight)
    assert change.dtype == torch.float32
    assert change.shape == weight.shape
    assert torch.allclose(change, wide.weight_delta(weight.float()), rtol=1e-5, atol=1e-5)


@EVERY
def test_moved_tensors_keep_the_delta_and_let_gradients_through(sample):
    module, _ = sample.build()
    delta = sample.delta()

    def trainable(t):
        return t.clone().requires_grad_() if t.is_floating_point() else t

    copy = delta.map_tensors(trainable)
    weight = module.weight.detach()
    assert torch.equal(copy.weight_delta(weight).detach(), delta.weight_delta(weight))
    change = copy.weight_delta(weight).square().sum()
    bias = bias_of(copy, module)
    (change if bias is None else change + bias.square().sum()).backward()
    grads = [t.grad for t in copy.tensors().values() if t.requires_grad and t.is_leaf]
    assert any(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_a_group_of_nothing_or_of_unknown_tensors_is_refused():
    with pytest.raises(AlgorithmError, match="holds no tensors"):
        parse_group(TensorGroup("m", {}), Context())
    group = TensorGroup("m", {"mystery": torch.ones(1)}, {"mystery": "unet.m.mystery.weight"})
    with pytest.raises(AlgorithmError, match=r"unet\.m\.mystery\.weight"):
        parse_group(group, Context())


def test_several_algorithms_on_one_module_add_up():
    sample = next(s for s in SAMPLES if s.name == "sum of weights")
    total = sample.delta()
    assert isinstance(total, Sum)
    module, _ = sample.build()
    weight = module.weight.detach()
    parts = sum(part.weight_delta(weight) for part in total.parts)
    assert torch.allclose(total.weight_delta(weight), parts, atol=1e-6)


def test_parts_that_share_a_role_cannot_be_written_together():
    one, other = (s.delta() for s in SAMPLES if s.name in ("lora", "lokr"))
    with pytest.raises(AlgorithmError, match="alpha"):
        Sum((one, other)).tensors()
    assert Sum((one, other)).parameters == one.parameters + other.parameters
