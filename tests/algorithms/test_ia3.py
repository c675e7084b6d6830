"""IA3 against LyCORIS and PEFT: inputs and outputs, the bias, grouped convolutions."""

from __future__ import annotations

import pytest
import torch
from lycoris.modules.ia3 import IA3Module
from peft import IA3Config

from diffadapt.algorithms import Context, TensorGroup, parse_group
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import AlgorithmError
from tests.algorithms.checks import check_case
from tests.algorithms.trainers import MODULES, base_module, lycoris_case, peft_case


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("layer", MODULES)
def test_lycoris(layer, on_input, record_error):
    if layer == "grouped" and on_input:
        pytest.skip("LyCORIS' own forward raises")
    case = lycoris_case(IA3Module, layer, train_on_input=on_input)
    check_case(case, record_error, layer, f"lycoris, on_input={on_input}")


@pytest.mark.parametrize("feedforward", [False, True])
@pytest.mark.parametrize("layer", ["linear", "linear_square", "conv1x1", "conv3x3s2", "conv3d", "grouped"])
def test_peft(layer, feedforward, record_error):
    config = IA3Config(feedforward_modules=["target"] if feedforward else [])
    case = peft_case(layer, config, method="ia3")
    case.config = {"feedforward_modules": ["module"] if feedforward else []}
    check_case(case, record_error, layer, f"peft, feedforward={feedforward}")
    if layer != "linear_square":
        case.config = {}  # the shapes tell: inputs and outputs differ in number
        check_case(case, record_error, layer, f"peft without config, feedforward={feedforward}")


def test_feedforward_patterns_are_a_regular_expression_or_endings():
    vector = torch.ones(1, 8, 1, 1)
    for patterns, side in ((r".*\.ff", True), (r"x\.ff", False), (["ff"], True), (["attn"], False), ([], False)):
        delta = parse_group(
            TensorGroup("a.b.ff", {"ia3_l": vector}), Context("peft", {"feedforward_modules": patterns})
        )
        assert delta.on_input is side


def test_a_wrong_number_of_factors_is_refused():
    module, _ = base_module("linear")
    for roles in ({"ia3_l": torch.ones(39, 1)}, {"weight": torch.ones(23), "on_input": torch.tensor(1)}):
        with pytest.raises(AlgorithmError, match="factors"):
            parse_group(TensorGroup("m", roles), Context("peft")).check(Layer.of(module))
