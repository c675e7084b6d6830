"""LoHa against LyCORIS and PEFT."""

from __future__ import annotations

import pytest
import torch
from lycoris.modules.loha import LohaModule
from peft import LoHaConfig

from diffadapt.algorithms import Context, TensorGroup, parse_group
from diffadapt.algorithms.forms import Dense, LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import AlgorithmError
from tests.algorithms.checks import check_case
from tests.algorithms.reference import change_error, live
from tests.algorithms.trainers import CONVOLUTIONS, MODULES, lycoris_case, peft_case


@pytest.mark.parametrize("rank", [2, 7], ids=["low rank", "dense"])
@pytest.mark.parametrize("layer", MODULES)
def test_lycoris(layer, rank, record_error):
    case = lycoris_case(LohaModule, layer, lora_dim=rank, alpha=3)
    delta = check_case(case, record_error, layer, f"lycoris, rank {rank}")
    forms = delta.forms(Layer.of(case.module), lambda: case.module.weight.detach(), lambda: None)
    assert isinstance(forms[0], LowRank if rank == 2 else Dense)


@pytest.mark.parametrize("rank", [2, 7])
@pytest.mark.parametrize("layer", CONVOLUTIONS)
def test_lycoris_tucker(layer, rank, record_error):
    case = lycoris_case(LohaModule, layer, lora_dim=rank, alpha=3, use_tucker=True, rs_lora=True, use_scalar=True)
    check_case(case, record_error, layer, f"lycoris, tucker, rs_lora and scalar, rank {rank}")


@pytest.mark.parametrize("effective", [False, True])
@pytest.mark.parametrize("layer", ["linear", "conv1x1", "conv3x3s2", "conv1d"])
def test_peft(layer, effective, record_error):
    case = peft_case(layer, LoHaConfig(r=3, alpha=5, use_effective_conv2d=effective), method="loha")
    check_case(case, record_error, layer, f"peft, use_effective_conv2d={effective}")


def test_onetrainer_keeps_convolutions_four_dimensional():
    case = lycoris_case(LohaModule, "conv3x3s2", lora_dim=3, alpha=2)
    for i in (1, 2):
        case.roles[f"hada_w{i}_a"] = case.roles[f"hada_w{i}_a"][..., None, None]
        case.roles[f"hada_w{i}_b"] = case.roles[f"hada_w{i}_b"].reshape(3, 16, 3, 3)
    delta = case.delta()
    delta.check(Layer.of(case.module))
    assert change_error(live(case.module, delta, case.x), case.truth, case.base) < 1e-6


def test_lycoris_3_0_0_used_w1_a_twice():
    roles = {"hada_w1_a": torch.randn(8, 2), "hada_w1_b": torch.randn(2, 6)}
    roles |= {"hada_w2_a": torch.zeros(8, 2), "hada_w2_b": torch.randn(2, 6)}
    truth = (roles["hada_w1_a"] @ roles["hada_w1_b"]) * (roles["hada_w1_a"] @ roles["hada_w2_b"])
    old = Context("lycoris", {"lycoris_version": "3.0.0"})
    delta = parse_group(TensorGroup("m", dict(roles)), old)
    assert change_error(delta.weight_delta(torch.zeros(8, 6)), truth) < 1e-6
    again = parse_group(TensorGroup("m", delta.tensors()), old)
    assert change_error(again.weight_delta(torch.zeros(8, 6)), truth) < 1e-6
    # Without the version a zero factor is a module that saw no gradient.
    assert not parse_group(TensorGroup("m", dict(roles)), Context("lycoris")).weight_delta(torch.zeros(8, 6)).any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"hada_w2_b": None}, "hada_w2_b"), ({"hada_w2_a": (8, 3)}, "do not fit"), ({"hada_t1": (2, 2, 3, 3)}, "hada_t2")],
)
def test_factors_that_do_not_fit_are_refused(changed, message):
    shapes = {"hada_w1_a": (8, 2), "hada_w1_b": (2, 6), "hada_w2_a": (8, 2), "hada_w2_b": (2, 6)} | changed
    roles = {role: torch.ones(shape) for role, shape in shapes.items() if shape is not None}
    with pytest.raises(AlgorithmError, match=message):
        parse_group(TensorGroup("m", roles), Context())
