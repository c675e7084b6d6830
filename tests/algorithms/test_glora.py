"""GLoRA against LyCORIS; the first generation's layout against its documented formula (not installed)."""

from __future__ import annotations

import pytest
import torch
from lycoris.modules.glora import GLoRAModule

from diffadapt.algorithms import Context, TensorGroup, parse_group
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import AlgorithmError
from tests.algorithms.checks import check_case
from tests.algorithms.reference import change_error, live, merged
from tests.algorithms.trainers import UNGROUPED, base_module, lycoris_case


@pytest.mark.parametrize("layer", UNGROUPED)
def test_lycoris(layer, record_error):
    case = lycoris_case(GLoRAModule, layer, lora_dim=3, alpha=2, use_scalar=True)
    check_case(case, record_error, layer, "lycoris")


def test_the_first_generation_is_wide_and_scales_twice():
    module, x = base_module("linear")
    weight, rank, alpha = module.weight.detach(), 4, 2.0
    roles = {"a1": torch.randn(rank, 24), "a2": torch.randn(24, rank)}
    roles |= {"b1": torch.randn(rank, 24), "b2": torch.randn(40, rank), "alpha": torch.tensor(alpha)}
    wide = {role: t.double() for role, t in roles.items()}
    truth = (alpha / rank) ** 2 * (weight @ wide["a2"] @ wide["a1"] + wide["b2"] @ wide["b1"])
    delta = parse_group(TensorGroup("m", roles), Context("lycoris"))
    assert change_error(delta.weight_delta(weight), truth) < 1e-6
    assert change_error(live(module, delta, x), merged(module, delta, x), module(x)) < 1e-6


def test_grouped_convolutions_are_refused():
    module, _ = base_module("grouped")
    case = lycoris_case(GLoRAModule, "conv3x3s2", lora_dim=3, alpha=2)
    with pytest.raises(AlgorithmError, match="4 groups"):
        case.delta().check(Layer.of(module))


def test_factors_that_do_not_fit_are_refused():
    shapes = {"a1": (8, 2), "a2": (2, 8), "b1": (6, 2), "b2": (2, 7)}
    with pytest.raises(AlgorithmError, match="do not fit"):
        parse_group(TensorGroup("m", {role: torch.ones(shape) for role, shape in shapes.items()}), Context())
