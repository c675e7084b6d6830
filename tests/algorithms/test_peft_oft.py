"""OFT on inputs: real PEFT models; older PEFT and OneTrainer by their published formulas in float64.

The formulas of PEFT 0.13.2, 0.15.2, 0.17.1 and OneTrainer were compared with those packages' own code once; the
tests need only what is installed.
"""

from __future__ import annotations

import math

import pytest
import torch
from peft import OFTConfig
from torch import nn

from diffadapt.errors import AlgorithmError
from tests.algorithms.peft_oracle import saved, wrap
from tests.algorithms.reference import layer_of, live
from tests.algorithms.rotation_cases import (
    build,
    cayley_plus,
    forward_errors,
    parse,
    random_input,
    same_live_and_merged,
    settle,
    skewed,
    weight_error,
)

CONFIGS = {
    "exact": {"use_cayley_neumann": False},
    "series 5": {"use_cayley_neumann": True},
    "series 2": {"num_cayley_neumann_terms": 2},
    "series 3": {"num_cayley_neumann_terms": 3},
    "series 4": {"num_cayley_neumann_terms": 4},
    "series 8": {"num_cayley_neumann_terms": 8},
    "coft": {"use_cayley_neumann": False, "coft": True, "eps": 0.8},
    "shared": {"use_cayley_neumann": False, "block_share": True},
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ["linear", "conv 1x1"])
@torch.no_grad()
def test_peft_forward(kind, name, record_error):
    base = build(kind)
    model = wrap(build(kind), OFTConfig(target_modules=["layer"], oft_block_size=8, **CONFIGS[name]))
    tensors, config = saved(model)
    delta = parse(tensors, writer="peft", config=config)
    base = base.double()
    x = random_input(base, torch.float64)
    errors = forward_errors(base, delta, x, model(x))
    model.merge_adapter()
    errors["weight"] = weight_error(base, delta, model.base_model.model.layer.base_layer.weight)
    record_error("oft_peft", f"{kind}, {name}", "peft 0.21.2", settle(errors))


@pytest.mark.parametrize("block", [8, 12, 18])
@torch.no_grad()
def test_peft_conv_with_a_kernel(block, record_error):
    """PEFT's forward is broken there: its identity changes the output. The merged weight is the truth."""
    kind = "conv 3x3 stride 2"
    model = wrap(build(kind), OFTConfig(target_modules=["layer"], oft_block_size=block))
    tensors, config = saved(model)
    delta = parse(tensors, writer="peft", config=config)
    model.merge_adapter()
    base = build(kind).double()
    merged = model.base_model.model.layer.base_layer
    x = random_input(base, torch.float64)
    errors = forward_errors(base, delta, x, merged(x)) | {"weight": weight_error(base, delta, merged.weight)}
    record_error("oft_peft", kind, "peft 0.21.2, merged", settle(errors))


@torch.no_grad()
def test_peft_embedding(record_error):
    torch.manual_seed(0)
    base = nn.Embedding(20, 16)
    model = wrap(
        nn.Embedding.from_pretrained(base.weight.clone()), OFTConfig(target_modules=["layer"], oft_block_size=4)
    )
    tensors, config = saved(model)
    assert "oft_embedding_R" in tensors
    delta = parse(tensors, writer="peft", config=config)
    base = base.double()
    x = random_input(base)
    errors = forward_errors(base, delta, x, model(x))
    record_error("oft_peft", "embedding", "peft 0.21.2", settle(errors))


def packed_blocks(packed, size):
    """The skew blocks, element by element."""
    q = torch.zeros(len(packed), size, size, dtype=torch.float64)
    for block, values in zip(q, packed.double(), strict=True):
        pairs = [(i, j) for i in range(size) for j in range(i + 1, size)]
        for (i, j), value in zip(pairs, values, strict=True):
            block[i, j], block[j, i] = value, -value
    return q


@pytest.mark.parametrize("terms", [1, 2, 3, 5])
@torch.no_grad()
def test_peft_0_16_series(terms, record_error):
    """I + 2 (Q + ... + Q^(n-1)), where PEFT 0.18 halves the last term: no `peft_version` in the config."""
    base, packed = build("linear"), 0.2 * torch.randn(4, 6)
    config = {"use_cayley_neumann": True, "num_cayley_neumann_terms": terms}
    delta = parse({"oft_R": packed}, writer="peft", config=config)
    q = packed_blocks(packed, 4)
    m = torch.eye(4, dtype=torch.float64) + 2 * sum((q.matrix_power(i) for i in range(1, terms)), torch.zeros(4, 4, 4))
    truth = base.weight.double() @ torch.block_diag(*m).T
    if terms == 1:
        assert not delta.weight_delta(base.weight).any()
        return
    error = weight_error(base, delta, truth)
    assert error < 1e-6
    record_error("oft_peft", "linear", "peft 0.17 formula", error)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv 1x1", "conv 3x3 stride 2"])
@torch.no_grad()
def test_onetrainer(kind, scaled, record_error):
    """Linear flat(W) M^T, convolutions flat(W) M; five terms with the last one halved."""
    base, size = build(kind), 8
    flat = base.weight.double().flatten(1)
    packed = 0.1 * torch.randn(flat.shape[1] // size, size * (size - 1) // 2)
    tensors = {"oft_R": packed} | ({"oft_R_scaled": torch.tensor(True)} if scaled else {})
    delta = parse(tensors, writer="onetrainer")
    q = packed_blocks(packed, size) / (2 * math.sqrt(size - 1) if scaled else 1)
    m = torch.block_diag(*(torch.eye(size) + 2 * q + 2 * q @ q + 2 * q.matrix_power(3) + q.matrix_power(4)))
    truth = flat @ (m.T if kind == "linear" else m)
    error = weight_error(base, delta, truth.reshape(base.weight.shape))
    assert error < 1e-6
    same_live_and_merged(base, delta)
    record_error("oft_peft", kind, "OneTrainer formula", error)


def shrunk(blocks, radius):
    """coft: each block onto a ball."""
    x = blocks.double()
    radius = radius / math.sqrt(len(x))
    return torch.stack([b if b.norm() <= radius else b * radius / b.norm() for b in x])


@pytest.mark.parametrize("coft", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("kind", "r"), [("linear", 4), ("linear", 6), ("conv 3x3 stride 2", 5), ("conv 3x3 groups 4", 4)]
)
@torch.no_grad()
def test_peft_0_13(kind, r, shared, coft, record_error):
    """Outputs: W'^T = W^T M, M cut to size where r does not divide out; R = (I - Q)(I + Q)^-1, Q with a half."""
    base = build(kind)
    out = base.weight.shape[0]
    size = math.ceil(out / r)
    blocks = 0.5 * torch.randn(1 if shared else r, size, size)
    config = {"coft": True, "eps": 0.02, "r": r} if coft else {"coft": False}
    delta = parse({"oft_r": blocks}, writer="peft", config=config)
    x = shrunk(blocks, 0.02 * size**2) if coft else blocks
    rotations = list(cayley_plus(-skewed(x) / 2)) * (r if shared else 1)
    truth = torch.block_diag(*rotations)[:out, :out].T @ base.weight.double().flatten(1)
    error = weight_error(base, delta, truth.reshape(base.weight.shape))
    assert error < 1e-6
    same_live_and_merged(base, delta)
    record_error("oft_peft", kind, "peft 0.13 formula", error)


@pytest.mark.parametrize("coft", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv 1x1", "conv 3x3 stride 2"])
@torch.no_grad()
def test_peft_0_15(kind, shared, coft, record_error):
    """Inputs and a scale per output: oft_s * (flat(W) M^T)."""
    base = build(kind)
    flat, size = base.weight.double().flatten(1), 4
    count = flat.shape[1] // size
    blocks, scale = 0.5 * torch.randn(1 if shared else count, size, size), 1 + 0.3 * torch.randn(32, 1)
    config = {"coft": True, "eps": 0.02} if coft else {"coft": False}
    delta = parse({"oft_r": blocks, "oft_s": scale}, writer="peft", config=config)
    x = shrunk(blocks, 0.02 * math.ceil(32 / count) ** 2) if coft else blocks
    rotations = list(cayley_plus(-skewed(x) / 2)) * (count if shared else 1)
    truth = scale.double() * (flat @ torch.block_diag(*rotations).T)
    error = weight_error(base, delta, truth.reshape(base.weight.shape))
    assert error < 1e-6
    same_live_and_merged(base, delta)
    record_error("oft_peft", kind, "peft 0.15 formula", error)


@torch.no_grad()
def test_rows():
    base = build("linear")
    packed = {"oft_R": torch.randn(4, 6)}
    old = {"oft_r": torch.randn(4, 4, 4), "oft_s": torch.rand(32, 1)}
    outputs = {"oft_r": torch.randn(4, 8, 8)}
    config = {"use_cayley_neumann": False, "coft": False}
    for tensors in (packed, old, outputs):
        delta = parse(tensors, writer="peft", config=config)
        part = delta.rows(8, 24).weight_delta(base.weight[8:24])
        assert torch.allclose(part, delta.weight_delta(base.weight)[8:24], atol=1e-6)
    with pytest.raises(AlgorithmError, match="cut a rotation block"):
        parse(outputs, writer="peft", config=config).rows(4, 16)


@pytest.mark.parametrize(
    "config", [{"use_cayley_neumann": False}, {"use_cayley_neumann": False, "coft": True, "eps": 0.5}]
)
@torch.no_grad()
def test_geodesic(config):
    base = build("linear")
    delta = parse({"oft_R": 0.3 * torch.randn(4, 6)}, writer="peft", config=config)
    there = delta.at_strength(1.0, "geodesic").weight_delta(base.weight)
    assert torch.allclose(there, delta.weight_delta(base.weight), atol=1e-6)
    back = delta.at_strength(-1.0, "geodesic").weight_delta(base.weight + there)
    assert torch.allclose(there + back, torch.zeros_like(there), atol=1e-6)


def test_errors():
    with pytest.raises(AlgorithmError, match=r"adapter_config\.json"):
        parse({"oft_R": torch.zeros(4, 6)}, writer="peft")
    with pytest.raises(AlgorithmError, match="packed blocks"):
        parse({"oft_R": torch.zeros(4, 7)}, writer="onetrainer")
    delta = parse({"oft_R": torch.zeros(3, 6)}, writer="onetrainer")
    with pytest.raises(AlgorithmError, match="do not fit"):
        delta.check(layer_of(build("linear")))
    delta = parse({"oft_R": torch.zeros(9, 120)}, writer="onetrainer")
    with pytest.raises(AlgorithmError, match="groups"):
        delta.check(layer_of(build("conv 3x3 groups 4")))
    base = build("linear")
    delta = parse({"oft_R": torch.zeros(4, 6)}, writer="onetrainer")
    x = random_input(base)
    assert torch.equal(live(base, delta, x), base(x))
