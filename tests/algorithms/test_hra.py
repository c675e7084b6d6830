"""HRA against real PEFT models."""

from __future__ import annotations

import pytest
import torch
from peft import HRAConfig

from diffadapt.errors import AlgorithmError
from tests.algorithms.peft_oracle import saved, wrap
from tests.algorithms.reference import layer_of
from tests.algorithms.rotation_cases import build, forward_errors, parse, random_input, settle, weight_error


@pytest.mark.parametrize("orthonormal", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv 1x1", "conv 3x3 stride 2"])
@torch.no_grad()
def test_peft(kind, orthonormal, record_error):
    model = wrap(build(kind), HRAConfig(target_modules=["layer"], r=4, apply_GS=orthonormal))
    tensors, written = saved(model)
    delta = parse(tensors, writer="peft", config=written)
    base = build(kind).double()
    x = random_input(base, torch.float64)
    errors = forward_errors(base, delta, x, model(x))
    model.merge_adapter()
    errors["weight"] = weight_error(base, delta, model.base_model.model.layer.base_layer.weight)
    record_error("hra", kind, "peft 0.21.2", settle(errors))


@torch.no_grad()
def test_rows_and_errors():
    weight = build("linear").weight
    delta = parse({"hra_u": torch.randn(16, 4)})
    assert torch.allclose(delta.rows(3, 9).weight_delta(weight[3:9]), delta.weight_delta(weight)[3:9], atol=1e-6)
    with pytest.raises(AlgorithmError, match="zero vector"):
        parse({"hra_u": torch.zeros(16, 4)})
    with pytest.raises(AlgorithmError, match="another model"):
        delta.check(layer_of(build("conv 3x3 stride 2")))
    with pytest.raises(AlgorithmError, match="strength rule"):
        delta.at_strength(0.5, "geodesic")
