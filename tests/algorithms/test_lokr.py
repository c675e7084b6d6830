"""LoKr against LyCORIS and PEFT: full and factored, Tucker, unbalanced, PEFT's own scale and Conv1d arrangement."""

from __future__ import annotations

import pytest
import torch
from lycoris.modules.lokr import LokrModule
from peft import LoKrConfig

from diffadapt.algorithms import Context, TensorGroup, parse_group
from diffadapt.algorithms.forms import Dense
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import AlgorithmError
from tests.algorithms.checks import check_case
from tests.algorithms.reference import change_error
from tests.algorithms.trainers import CONVOLUTIONS, MODULES, lycoris_case, peft_case

OPTIONS = {
    "w2 factored": {"lora_dim": 2, "alpha": 3},
    "w2 full": {"lora_dim": 64, "alpha": 3},
    "both factored": {"lora_dim": 1, "alpha": 3, "decompose_both": True, "use_scalar": True},
    "full matrix": {"lora_dim": 4, "alpha": 3, "full_matrix": True},
    "factor 4": {"lora_dim": 2, "alpha": 3, "factor": 4, "rs_lora": True},
    "unbalanced": {"lora_dim": 2, "alpha": 3, "factor": 2, "unbalanced_factorization": True},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("layer", MODULES)
def test_lycoris(layer, options, record_error):
    case = lycoris_case(LokrModule, layer, **OPTIONS[options])
    case.config = {key: value for key, value in OPTIONS[options].items() if key == "rs_lora"}
    delta = check_case(case, record_error, layer, f"lycoris, {options}")
    forms = delta.forms(Layer.of(case.module), lambda: case.module.weight.detach(), lambda: None)
    assert isinstance(forms[0], Dense) == (layer == "grouped")


@pytest.mark.parametrize("layer", CONVOLUTIONS)
def test_lycoris_tucker(layer, record_error):
    case = lycoris_case(LokrModule, layer, lora_dim=1, alpha=3, use_tucker=True)
    assert ("lokr_t2" in case.roles) == (layer != "conv1x1")
    check_case(case, record_error, layer, "lycoris, tucker")


@pytest.mark.parametrize(
    "options", [{}, {"decompose_both": True}, {"decompose_factor": 8}, {"use_effective_conv2d": True}], ids=str
)
@pytest.mark.parametrize("rank", [1, 64])
@pytest.mark.parametrize("layer", ["linear", "conv1x1", "conv3x3s2", "conv1d", "grouped"])
def test_peft(layer, rank, options, record_error):
    """Rank 64: both factors full, and the scale still alpha / r; a full Conv1d factor is arranged differently."""
    if layer == "conv1d" and rank == 1 and options.get("use_effective_conv2d"):
        pytest.skip("PEFT's own forward raises in torch.kron")
    case = peft_case(layer, LoKrConfig(r=rank, alpha=3, **options), method="lokr")
    delta = check_case(case, record_error, layer, f"peft, rank {rank}, {options}")
    if rank == 64:
        assert delta.scale == 3 / 64


def test_rs_lora_of_two_full_factors_is_the_root_of_the_rank(record_error):
    case = lycoris_case(LokrModule, "linear", lora_dim=4, full_matrix=True, rs_lora=True)
    case.config = {"rs_lora": "True"}
    delta = check_case(case, record_error, "linear", "lycoris, full matrix and rs_lora")
    assert abs(delta.scale - 2.0) < 1e-6
    weight = case.module.weight.detach()
    for context in (case.context, Context("lycoris")):
        again = parse_group(TensorGroup("m", delta.tensors()), context)
        assert change_error(again.weight_delta(weight), delta.weight_delta(weight)) < 1e-6


def test_peft_scale_of_full_factors_survives_writing():
    case = peft_case("linear", LoKrConfig(r=64, alpha=3), method="lokr")
    weight = case.module.weight.detach()
    truth = case.delta().weight_delta(weight)
    for context in (case.context, Context("lycoris")):
        again = parse_group(TensorGroup("m", case.delta().tensors()), context)
        assert change_error(again.weight_delta(weight), truth) < 1e-6


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"lokr_w2_b": None}, "lokr_w2_b"), ({"lokr_w1": None}, "lokr_w1"), ({"lokr_w2_b": (3, 6)}, "do not fit")],
)
def test_factors_that_do_not_fit_are_refused(changed, message):
    shapes = {"lokr_w1": (4, 4), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 6)} | changed
    roles = {role: torch.ones(shape) for role, shape in shapes.items() if shape is not None}
    with pytest.raises(AlgorithmError, match=message):
        parse_group(TensorGroup("m", roles), Context())
