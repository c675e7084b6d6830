"""OFT on outputs against LyCORIS' own module, and Kohya's and older LyCORIS' published formulas in float64."""

from __future__ import annotations

import pytest
import torch
from lycoris.modules.diag_oft import DiagOFTModule
from torch import nn

from diffadapt.algorithms.forms import Dense
from diffadapt.algorithms.oft import OFT
from diffadapt.algorithms.oft_flux import SplitOFT
from diffadapt.errors import AlgorithmError
from tests.algorithms.reference import change_error, layer_of, live
from tests.algorithms.rotation_cases import (
    LAYERS,
    build,
    cayley_plus,
    forward_errors,
    parse,
    random_input,
    randomise,
    same_live_and_merged,
    settle,
    skewed,
    weight_error,
)


def lycoris(kind: str, constraint: float, rescaled: bool, m: float = 1.0) -> tuple[nn.Module, DiagOFTModule]:
    base = build(kind)
    module = DiagOFTModule("m", base, m, lora_dim=4, constraint=constraint, rescaled=rescaled)
    randomise(module, around_one=("rescale",))
    return base, module


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("constraint", [0, 0.01])
@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_lycoris(kind, constraint, rescaled, record_error):
    base, module = lycoris(kind, constraint, rescaled)
    delta = parse(module.state_dict(), writer="lycoris")
    x = random_input(base)
    errors = forward_errors(base, delta, x, module(x))
    errors["weight"] = weight_error(base, delta, module.get_merged_weight()[0])
    # LyCORIS inverts in float32 and takes its weight less the base's, both rounded.
    record_error("oft", kind, "lycoris 4.1.3", settle(errors, 2e-6))


@pytest.mark.parametrize("rescaled", [False, True])
@torch.no_grad()
def test_lycoris_strength(rescaled, record_error):
    base, module = lycoris("linear", 0, rescaled, m=0.6)
    delta = parse(module.state_dict(), writer="lycoris").at_strength(0.6, "stage")
    x = random_input(base)
    error = settle(forward_errors(base, delta, x, module(x)), 2e-6)
    record_error("oft", "linear, strength 0.6", "lycoris 4.1.3", error)


@torch.no_grad()
def test_blocks_across_the_groups_of_a_convolution(record_error):
    """Blocks of 4 rows on groups of 2: rows mix, outputs do not, so the live form is dense."""
    torch.manual_seed(0)
    base = nn.Conv2d(16, 32, 3, padding=1, groups=16).requires_grad_(False)
    module = DiagOFTModule("m", base, 1.0, lora_dim=8)
    randomise(module)
    delta = parse(module.state_dict(), writer="lycoris")
    assert isinstance(delta.forms(layer_of(base), lambda: base.weight, lambda: None)[0], Dense)
    x = random_input(base)
    record_error("oft", "conv 3x3 groups 16", "lycoris 4.1.3", settle(forward_errors(base, delta, x, module(x)), 2e-6))


def kohya_weight(weight, blocks, alpha, m=1.0):
    """sd-scripts' networks/oft.py, by its published formula in float64."""
    q = skewed(blocks)
    norm = q.norm()
    q = q * ((norm.clamp(max=alpha * len(weight)) + 1e-8) / (norm + 1e-8))
    r = m * (cayley_plus(q) - torch.eye(q.shape[-1])) + torch.eye(q.shape[-1])
    return torch.block_diag(*r).T @ weight.double().flatten(1)


@pytest.mark.parametrize("alpha", [1e-3, 0.02, 1.0, 0.0])
@pytest.mark.parametrize("kind", ["linear", "conv 1x1", "conv 3x3 stride 2"])
@torch.no_grad()
def test_kohya(kind, alpha, record_error):
    base, blocks = build(kind), torch.randn(4, 8, 8) * 0.3
    delta = parse({"oft_blocks": blocks, "alpha": torch.tensor(alpha)}, writer="kohya_oft")
    truth = kohya_weight(base.weight, blocks, delta.alpha).reshape(base.weight.shape)
    error = weight_error(base, delta, truth)
    # A constraint of 0 leaves a change of 1e-9, which the reference's own float64 difference knows to 1e-7 only.
    assert error < (1e-6 if alpha else 1e-5)
    same_live_and_merged(base, delta, 1e-5 if alpha > 0.01 else 1e9)
    half = delta.at_strength(0.5, "stage").weight_delta(base.weight)
    part = kohya_weight(base.weight, blocks, delta.alpha, 0.5).reshape(base.weight.shape) - base.weight.double()
    assert change_error(half, part) < 1e-5
    if alpha:
        record_error("oft", kind, "sd-scripts formula", error)


@torch.no_grad()
def test_kohya_constraint_of_zero_is_almost_the_identity():
    blocks = torch.randn(4, 8, 8)
    weight = build("linear").weight
    kohya = parse({"oft_blocks": blocks, "alpha": torch.tensor(0.0)}, writer="kohya_oft")
    lycoris_ = parse({"oft_blocks": blocks, "alpha": torch.tensor(0.0)}, writer="lycoris")
    assert kohya.weight_delta(weight).norm() < 1e-7 * weight.norm()
    assert lycoris_.weight_delta(weight).norm() > 0.1 * weight.norm()


@pytest.mark.parametrize("sizes", [(8,), (4, 4, 4), (4, 4, 4, 16)])
@torch.no_grad()
def test_kohya_flux_splits(sizes, record_error):
    base = nn.Linear(16, 2 * sum(sizes)).requires_grad_(False)
    splits = [torch.randn(2, n, n) * 0.3 for n in sizes]
    tensors = {f"oft_blocks.{i}": blocks for i, blocks in enumerate(splits)} | {"alpha": torch.tensor(0.03)}
    delta = parse(tensors, writer="kohya_oft")
    assert isinstance(delta, SplitOFT)
    rows = base.weight.split([2 * n for n in sizes])
    truth = torch.cat([kohya_weight(w, b, delta.alpha) for w, b in zip(rows, splits, strict=True)])
    error = weight_error(base, delta, truth)
    assert error < 1e-6
    same_live_and_merged(base, delta)
    start = 0
    for n in sizes:
        part = delta.rows(start, start + 2 * n).weight_delta(base.weight[start : start + 2 * n])
        assert torch.allclose(part, delta.weight_delta(base.weight)[start : start + 2 * n], atol=1e-7)
        start += 2 * n
    record_error("oft", f"linear, {len(sizes)} splits", "sd-scripts oft_flux formula", error)


@torch.no_grad()
def test_lycoris_2_0_stores_the_rotation(record_error):
    base, diag = build("conv 3x3 stride 2"), torch.randn(8, 4, 4)
    delta = parse({"oft_diag": diag}, writer="lycoris")
    truth = torch.block_diag(*diag.double()).T @ base.weight.double().flatten(1)
    error = weight_error(base, delta, truth.reshape(base.weight.shape))
    assert error < 1e-6
    same_live_and_merged(base, delta)
    record_error("oft_diag", "conv 3x3 stride 2", "lycoris 2.0 formula", error)


@torch.no_grad()
def test_lycoris_2_1_rescales_the_wrong_axis(record_error):
    base = nn.Linear(32, 32).requires_grad_(False)
    blocks, rescale = torch.randn(8, 4, 4) * 0.3, 1 + 0.3 * torch.randn(32)
    delta = parse({"oft_blocks": blocks, "rescale": rescale}, writer="lycoris")
    truth = rescale.double() * (torch.block_diag(*cayley_plus(skewed(blocks))).T @ base.weight.double())
    error = weight_error(base, delta, truth)
    assert error < 1e-6
    same_live_and_merged(base, delta)
    record_error("oft", "linear", "lycoris 2.1 formula", error)
    with pytest.raises(AlgorithmError, match="do not fit"):
        delta.check(layer_of(build("linear")))


@pytest.mark.parametrize("writer", ["lycoris", "kohya_oft"])
@torch.no_grad()
def test_rows_keep_the_constraint_of_the_whole(writer):
    base = build("linear")
    delta = parse({"oft_blocks": torch.randn(8, 4, 4), "alpha": torch.tensor(0.02)}, writer=writer)
    whole = delta.weight_delta(base.weight)
    for start, stop in ((0, 8), (8, 32)):
        part = delta.rows(start, stop)
        assert torch.allclose(part.weight_delta(base.weight[start:stop]), whole[start:stop], atol=1e-7)
        parse(part.tensors(), writer=writer)
    with pytest.raises(AlgorithmError, match="cut a rotation block"):
        delta.rows(0, 6)


@pytest.mark.parametrize("writer", ["lycoris", "kohya_oft"])
@torch.no_grad()
def test_geodesic(writer):
    weight = build("linear").weight
    delta = parse({"oft_blocks": torch.randn(8, 4, 4), "alpha": torch.tensor(0.02)}, writer=writer)
    there = delta.at_strength(1.0, "geodesic").weight_delta(weight)
    assert torch.allclose(there, delta.weight_delta(weight), atol=1e-6)
    back = delta.at_strength(-1.0, "geodesic").weight_delta(weight + there)
    assert torch.allclose(weight + there + back, weight, atol=1e-6)
    half = weight + delta.at_strength(0.5, "geodesic").weight_delta(weight)
    assert abs(float(half.norm() / weight.norm()) - 1) < 1e-6


def test_errors():
    with pytest.raises(AlgorithmError, match="square blocks"):
        parse({"oft_blocks": torch.zeros(4, 8, 6)}, writer="lycoris")
    with pytest.raises(AlgorithmError, match="needs its constraint"):
        parse({"oft_blocks": torch.zeros(4, 8, 8)}, writer="kohya_oft")
    with pytest.raises(AlgorithmError, match="rescale"):
        parse({"oft_blocks": torch.zeros(4, 8, 8), "rescale": torch.ones(8, 1)}, writer="lycoris")
    with pytest.raises(AlgorithmError, match="constraint alpha"):
        parse({"oft_blocks": torch.zeros(4, 8, 8), "alpha": torch.tensor(-1.0)}, writer="lycoris")
    with pytest.raises(AlgorithmError, match="no gap"):
        parse({"oft_blocks.0": torch.zeros(2, 4, 4), "oft_blocks.2": torch.zeros(2, 4, 4)}, writer="kohya_oft")
    delta = parse({"oft_blocks": torch.randn(4, 6, 6)}, writer="lycoris")
    with pytest.raises(AlgorithmError, match="do not fit"):
        delta.check(layer_of(build("linear")))
    with pytest.raises(AlgorithmError, match="no file form"):
        delta.at_strength(0.5, "stage").tensors()
    with pytest.raises(AlgorithmError, match="strength rule"):
        delta.at_strength(0.5, "bold")


def test_trains_in_place():
    base = build("linear")
    blocks = torch.zeros(8, 4, 4, requires_grad=True)
    delta = OFT(blocks, 0.1, None, kohya=True)
    delta.weight_delta(base.weight).square().sum().backward()
    assert blocks.grad is not None
    assert torch.isfinite(blocks.grad).all()


@torch.no_grad()
def test_small_rotations_stay_exact_in_bfloat16():
    """The live form adds a difference: a turn of 1e-3 survives activations in bfloat16."""
    base = build("linear")
    delta = parse({"oft_blocks": 1e-3 * torch.randn(8, 4, 4)}, writer="lycoris")
    x = random_input(base)
    change = live(base, delta, x) - base(x)
    coarse = base.bfloat16()
    layer = layer_of(coarse)
    form = delta.forms(layer, lambda: coarse.weight, lambda: None)[0].to(x.device, torch.bfloat16)
    product = coarse(x.bfloat16()) - coarse.bias
    assert change_error(form.inner.change(product, layer), change) < 0.02
