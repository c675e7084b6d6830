"""The maths under the rotations, by identities: orthogonality, transposes, packing, precision, copies."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from diffadapt.algorithms.boft import interleaved
from diffadapt.algorithms.boft_peft import even_then_odd
from diffadapt.algorithms.cayley import cayley, clip_ratio, neumann, pack, packed_size, project, skew, unpack
from diffadapt.algorithms.rotation import Stage, change, form, transposed
from tests.algorithms.reference import layer_of
from tests.algorithms.rotation_cases import build, cayley_plus, parse


def matrix(stages, channels):
    """G as a dense matrix."""
    return torch.eye(channels) + change(stages, torch.eye(channels))


def random_stages(channels=16, size=4):
    torch.manual_seed(0)
    parts = [cayley(skew(torch.randn(channels // size, size, size))) for _ in range(3)]
    orders = [None, interleaved(channels, 4, torch.device("cpu")), torch.randperm(channels)]
    return tuple(Stage((part,), order) for part, order in zip(parts, orders, strict=True))


@pytest.mark.parametrize("size", [1, 2, 3, 8, 33])
def test_cayley_is_the_published_rotation(size):
    q = skew(torch.randn(5, size, size))
    rotation = torch.eye(size) + cayley(q).double()
    assert torch.allclose(rotation, cayley_plus(q), atol=1e-7)
    assert torch.allclose(rotation @ rotation.transpose(1, 2), torch.eye(size).double(), atol=1e-6)
    assert torch.allclose(torch.eye(size) + cayley(-q), rotation.transpose(1, 2).float(), atol=1e-6)


def test_tiny_rotations_keep_their_digits():
    """R - I of a turn of 1e-9 has seven digits, where float32's R itself would be the identity."""
    q = 1e-9 * skew(torch.randn(2, 4, 4))
    assert torch.allclose(cayley(q), (2 * q).float(), rtol=1e-6, atol=1e-15)


def test_the_series_approaches_the_transform():
    q = 0.05 * skew(torch.randn(2, 4, 4))
    for halved in (False, True):
        errors = [float((neumann(q, terms, halved) - cayley(q)).norm()) for terms in (2, 4, 6, 10)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 1e-5
    assert torch.equal(neumann(q, 3, True), neumann(q, 4, True))


@pytest.mark.parametrize("size", [2, 3, 7, 64])
def test_packing(size):
    width = size * (size - 1) // 2
    assert packed_size(width) == size
    packed = torch.randn(3, width)
    q = unpack(packed, size)
    assert torch.equal(q, -q.transpose(1, 2))
    assert torch.equal(pack(q).float(), packed)


@pytest.mark.parametrize("width", [0, 2, 4, 5, 7, 2017])
def test_widths_of_no_block(width):
    assert packed_size(width) is None


def test_clipping():
    q = skew(torch.randn(3, 4, 4))
    for kohya in (False, True):
        assert abs(float((q * clip_ratio(q, 0.5, kohya)).norm()) - 0.5) < 1e-7
        assert float(clip_ratio(q, 1e6, kohya)) == 1.0
    assert float(clip_ratio(q, 0.0, kohya=False)) == 1.0
    assert float(clip_ratio(q, 0.0, kohya=True)) < 1e-8
    assert torch.isfinite(clip_ratio(torch.zeros(2, 2), 0.5, kohya=True))
    inside = torch.randn(4, 3, 3)
    assert torch.equal(project(inside, 1e6), inside.double())
    assert torch.allclose(project(inside, 1e-3).norm(dim=(1, 2)), torch.tensor(5e-4).double())
    assert torch.equal(project(torch.zeros(2, 3, 3), 1.0), torch.zeros(2, 3, 3).double())


def test_orders_are_each_others_inverse():
    """LyCORIS' and PEFT's butterflies: alternating halves on the one hand, even then odd half blocks on the other."""
    assert interleaved(8, 4, torch.device("cpu")).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert even_then_odd(8, 2, 2, torch.device("cpu")).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert even_then_odd(16, 4, 2, torch.device("cpu")).tolist() == [
        0,
        1,
        4,
        5,
        8,
        9,
        12,
        13,
        2,
        3,
        6,
        7,
        10,
        11,
        14,
        15,
    ]


def test_stages_transpose_and_act_alike_as_form():
    stages = random_stages()
    g = matrix(stages, 16)
    assert torch.allclose(matrix(transposed(stages), 16), g.T, atol=1e-6)
    assert torch.allclose(g @ g.T, torch.eye(16), atol=1e-6)
    v, layer = torch.randn(3, 16), layer_of(build("linear"))
    assert torch.allclose(form(stages).change(v, layer), v @ g.T - v, atol=1e-6)
    images = torch.randn(2, 16, 3, 3)
    turned = torch.einsum("oi,nihw->nohw", g, images) - images
    assert torch.allclose(form(stages).change(images, layer_of(build("conv 1x1"))), turned, atol=1e-6)


def test_blocks_of_several_sizes():
    parts = (cayley(skew(torch.randn(2, 2, 2))), cayley(skew(torch.randn(3, 4, 4))))
    stage = Stage(parts)
    v = torch.randn(5, 16)
    assert torch.allclose(form((stage,)).change(v, layer_of(build("linear"))), stage.change(v.T).T, atol=1e-6)
    assert stage.within(torch.tensor([0, 0, 1, 1] + [2] * 12))
    assert not stage.within(torch.arange(16) // 3)


def test_copies():
    """A pipeline's copy shares frozen rotations, stage strengths included, and copies those that learn."""
    delta = parse({"oft_blocks": torch.randn(4, 8, 8)}, writer="lycoris")
    half = delta.at_strength(0.5, "stage")
    assert deepcopy(delta) is delta
    assert deepcopy(half) is half
    learning = delta.map_tensors(lambda t: t.clone().requires_grad_())
    assert deepcopy(learning).blocks is not learning.blocks
    assert half.parameters == delta.parameters
