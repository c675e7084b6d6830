"""PEFT BOFT against real PEFT models. M > 1 needs PEFT's CUDA kernel: torch.block_diag stands in for it."""

from __future__ import annotations

import peft.tuners.boft.layer as boft_layer
import pytest
import torch
from peft import BOFTConfig

from diffadapt.errors import AlgorithmError
from tests.algorithms.peft_oracle import saved, wrap
from tests.algorithms.reference import layer_of
from tests.algorithms.rotation_cases import build, forward_errors, parse, random_input, settle, weight_error


class BlockDiagonal:
    """What PEFT's kernel computes: (M, k, b, b) -> (M, k b, k b)."""

    @staticmethod
    def apply(blocks):
        return torch.stack([torch.block_diag(*stage) for stage in blocks])


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize(("kind", "block"), [("linear", 4), ("conv 1x1", 4), ("conv 3x3 stride 2", 12)])
@torch.no_grad()
def test_peft(kind, block, stages, monkeypatch, record_error):
    monkeypatch.setattr(boft_layer, "get_fbd_cuda", object)
    monkeypatch.setattr(boft_layer, "FastBlockDiag", BlockDiagonal)
    config = BOFTConfig(
        target_modules=["layer"], boft_block_size=block, boft_block_num=0, boft_n_butterfly_factor=stages
    )
    model = wrap(build(kind), config, around_one=("boft_s",))
    tensors, written = saved(model)
    assert len(tensors["boft_R"]) == stages
    delta = parse(tensors, writer="peft", config=written)
    base = build(kind).double()
    x = random_input(base, torch.float64)
    errors = forward_errors(base, delta, x, model(x))
    model.merge_adapter()
    errors["weight"] = weight_error(base, delta, model.base_model.model.layer.base_layer.weight)
    record_error("boft_peft", f"{kind}, M = {stages}", "peft 0.21.2", settle(errors))


@pytest.mark.parametrize("shape", [(32, 1), (1, 32)])
@torch.no_grad()
def test_rows(shape):
    weight = build("linear").weight
    delta = parse({"boft_R": torch.randn(2, 4, 4, 4), "boft_s": 1 + torch.rand(shape)}, writer="peft")
    part = delta.rows(5, 12).weight_delta(weight[5:12])
    assert torch.allclose(part, delta.weight_delta(weight)[5:12], atol=1e-6)


def test_errors():
    with pytest.raises(AlgorithmError, match="no butterfly"):
        parse({"boft_R": torch.zeros(2, 3, 4, 4), "boft_s": torch.ones(32, 1)})
    with pytest.raises(AlgorithmError, match="missing"):
        parse({"boft_R": torch.zeros(2, 4, 4, 4)})
    delta = parse({"boft_R": torch.zeros(2, 4, 8, 8), "boft_s": torch.ones(32, 1)})
    with pytest.raises(AlgorithmError, match="do not fit"):
        delta.check(layer_of(build("linear")))
