"""BOFT against LyCORIS' own module."""

from __future__ import annotations

import pytest
import torch
from lycoris.modules.boft import ButterflyOFTModule
from torch import nn

from diffadapt.errors import AlgorithmError
from tests.algorithms.reference import layer_of
from tests.algorithms.rotation_cases import (
    LAYERS,
    build,
    forward_errors,
    parse,
    random_input,
    randomise,
    settle,
    weight_error,
)


def lycoris(base: nn.Module, size: int, constraint: float, rescaled: bool, m: float = 1.0) -> ButterflyOFTModule:
    module = ButterflyOFTModule("m", base, m, lora_dim=size, constraint=constraint, rescaled=rescaled)
    randomise(module, around_one=("rescale",))
    return module


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize(("constraint", "rescaled"), [(0, False), (0, True), (0.02, True)])
@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_lycoris(kind, size, constraint, rescaled, record_error):
    base = build(kind)
    module = lycoris(base, size, constraint, rescaled)
    delta = parse(module.state_dict(), writer="lycoris")
    x = random_input(base)
    errors = forward_errors(base, delta, x, module(x))
    errors["weight"] = weight_error(base, delta, module.get_merged_weight()[0])
    # LyCORIS inverts in float32, once per stage.
    record_error("boft", kind, "lycoris 4.1.3", settle(errors, 3e-6))


@pytest.mark.parametrize("kind", ["linear", "conv 3x3 stride 2"])
@torch.no_grad()
def test_lycoris_strength(kind, record_error):
    base = build(kind)
    module = lycoris(base, 4, 0, True, m=0.6)
    delta = parse(module.state_dict(), writer="lycoris").at_strength(0.6, "stage")
    x = random_input(base)
    error = settle(forward_errors(base, delta, x, module(x)), 3e-6)
    record_error("boft", f"{kind}, strength 0.6", "lycoris 4.1.3", error)


@torch.no_grad()
def test_geodesic():
    weight = build("linear").weight
    delta = parse({"oft_blocks": torch.randn(3, 4, 8, 8), "alpha": torch.tensor(0.05)}, writer="lycoris")
    there = delta.at_strength(1.0, "geodesic").weight_delta(weight)
    assert torch.allclose(there, delta.weight_delta(weight), atol=1e-6)
    half = weight + delta.at_strength(0.5, "geodesic").weight_delta(weight)
    assert abs(float(half.norm() / weight.norm()) - 1) < 1e-6


@torch.no_grad()
def test_rows():
    """Two stages on four blocks pair them up: rows part at multiples of two blocks only."""
    weight = build("linear").weight
    tensors = {"oft_blocks": torch.randn(2, 4, 8, 8), "alpha": torch.tensor(0.05), "rescale": 1 + torch.rand(32, 1)}
    delta = parse(tensors, writer="lycoris")
    part = delta.rows(16, 32)
    assert torch.allclose(part.weight_delta(weight[16:]), delta.weight_delta(weight)[16:], atol=1e-6)
    with pytest.raises(AlgorithmError, match="cut a rotation block"):
        delta.rows(8, 24)


def test_errors():
    with pytest.raises(AlgorithmError, match="no butterfly"):
        parse({"oft_blocks": torch.zeros(2, 4, 5, 5)}, writer="lycoris")
    with pytest.raises(AlgorithmError, match="no butterfly"):
        parse({"oft_blocks": torch.zeros(4, 4, 4, 4)}, writer="lycoris")
    delta = parse({"oft_blocks": torch.zeros(2, 2, 4, 4)}, writer="lycoris")
    with pytest.raises(AlgorithmError, match="do not fit"):
        delta.check(layer_of(build("linear")))
