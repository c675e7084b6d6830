"""DoRA against LyCORIS (LoRA, LoHa, LoKr; both axes; its strength rule) and PEFT (its shapes and strength rule)."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from peft import LoraConfig

from diffadapt.algorithms import Context, TensorGroup, parse_group
from diffadapt.algorithms.dora import EPS32
from diffadapt.algorithms.forms import Dense
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import AlgorithmError
from tests.algorithms.checks import check_case
from tests.algorithms.reference import change_error, live, merged
from tests.algorithms.trainers import MODULES, base_module, lycoris_case, peft_case

INNER = {
    "lora": (LoConModule, {"lora_dim": 4, "alpha": 2}),
    "lora tucker": (LoConModule, {"lora_dim": 4, "alpha": 2, "use_tucker": True}),
    "loha": (LohaModule, {"lora_dim": 2, "alpha": 3}),
    "loha dense": (LohaModule, {"lora_dim": 6, "alpha": 3}),
    "lokr": (LokrModule, {"lora_dim": 2, "alpha": 3}),
}


@pytest.mark.parametrize("outputs", [True, False], ids=["outputs", "inputs"])
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("layer", MODULES)
def test_lycoris(layer, inner, outputs, record_error):
    cls, options = INNER[inner]
    case = lycoris_case(cls, layer, weight_decompose=True, wd_on_out=outputs, **options)
    delta = check_case(case, record_error, layer, f"lycoris {inner}, wd_on_out={outputs}")
    assert delta.eps == EPS32
    if inner in ("lora", "lokr") and layer != "grouped":
        forms = delta.forms(Layer.of(case.module), lambda: case.module.weight.detach(), lambda: None)
        assert not any(isinstance(form, Dense) for form in forms)


@pytest.mark.parametrize("layer", ["linear", "conv3x3s2"])
@pytest.mark.parametrize("inner", ["lora", "lokr", "loha dense"])
@pytest.mark.parametrize("m", [0.6, 0.0])
def test_lycoris_strength(m, inner, layer, record_error):
    cls, options = INNER[inner]
    case = lycoris_case(cls, layer, m=m, weight_decompose=True, **options)
    delta = case.delta().at_strength(m, "lycoris")
    for output in (live, merged):
        error = change_error(output(case.module, delta, case.x), case.truth, case.base)
        record_error("dora", layer, f"lycoris {inner}, its rule at {m}, {output.__name__}", error)
        assert error < 1e-6


@pytest.mark.parametrize("m", [1.0, 0.6])
@pytest.mark.parametrize("layer", ["linear", "linear_square", "conv1x1", "conv3x3s2", "conv1d", "conv3d", "embedding"])
def test_peft(layer, m, record_error):
    case = peft_case(layer, LoraConfig(r=4, lora_alpha=6, use_dora=True), m=m)
    assert "dora_scale" in case.roles
    delta = case.delta() if m == 1.0 else case.delta().at_strength(m, "peft")
    delta.check(Layer.of(case.module))
    assert delta.eps == 0.0
    assert not delta.on_input
    for output in (live, merged):
        error = change_error(output(case.module, delta, case.x), case.truth, case.base)
        record_error("dora", layer, f"peft, m={m}, {output.__name__}", error)
        assert error < 1e-6


def test_linear_strength_interpolates():
    case = lycoris_case(LoConModule, "conv3x3s2", weight_decompose=True, lora_dim=4, alpha=2)
    delta, base = case.delta(), case.base
    half = base + 0.5 * (case.truth - base)
    assert change_error(live(case.module, delta, case.x, 0.5), half, base) < 1e-6
    with pytest.raises(AlgorithmError, match="no strength rule 'comfy'"):
        delta.at_strength(0.5, "comfy")


def test_the_axis_is_read_off_the_shape():
    lora = {"lora_down": torch.randn(2, 8), "lora_up": torch.randn(8, 2)}

    def axis(shape, writer="lycoris"):
        return parse_group(TensorGroup("m", lora | {"dora_scale": torch.ones(shape)}), Context(writer)).on_input

    assert [axis(s) for s in ((8, 1), (1, 8), (8,), (8, 1, 1, 1), (1, 8, 1, 1))] == [False, True, False, False, True]
    assert [axis((1, 8, 1, 1), "peft"), axis((1, 8), "onetrainer")] == [False, True]
    with pytest.raises(AlgorithmError, match="magnitudes have shape"):
        axis((8, 8))


def test_the_axis_of_a_convolution_is_that_of_the_key():
    """OneTrainer's DIFFUSERS format: PEFT's key and shape for outputs, beside its own for inputs."""
    pair = {"lora_down": torch.randn(2, 8, 1, 1), "lora_up": torch.randn(8, 2, 1, 1)}
    lora = pair | {"dora_scale": torch.ones(1, 8, 1, 1)}
    for writer in ("onetrainer", "diffusers"):
        for ending, on_input in (("lora_magnitude_vector.weight", False), ("dora_scale", True)):
            group = TensorGroup("m", lora, {"dora_scale": f"unet.m.{ending}"})
            assert parse_group(group, Context(writer)).on_input is on_input


def test_eps_follows_the_writer():
    lora = {"lora_down": torch.randn(2, 8), "lora_up": torch.randn(8, 2), "dora_scale": torch.ones(8, 1)}
    lokr = {"lokr_w1": torch.randn(2, 2), "lokr_w2": torch.randn(4, 4), "dora_scale": torch.ones(8, 1)}

    def eps(roles, writer, metadata=None, **config):
        return parse_group(TensorGroup("m", dict(roles)), Context(writer, config, metadata=metadata or {})).eps

    assert [eps(lora, w) for w in ("lycoris", "kohya", "onetrainer", "peft", "ai_toolkit")] == [EPS32] * 3 + [0, 0]
    off = {"ot_config": '{"lora_decompose_norm_epsilon": false}'}
    assert [eps(roles, "onetrainer", off) for roles in (lora, lokr)] == [0, EPS32]
    assert eps(lora, "onetrainer", {"ot_config": "["}) == EPS32
    assert eps(lora, "lycoris", lycoris_version="2.2.0") == 0


def test_lycoris_2_2_0_took_a_mean():
    module, _ = base_module("linear")
    weight = module.weight.detach()
    lora = {"lora_down": torch.randn(2, 24), "lora_up": torch.randn(40, 2), "dora_scale": torch.randn(1, 24)}
    changed = weight + lora["lora_up"].double() @ lora["lora_down"].double()
    truth = changed / changed.mean(0, keepdim=True) * lora["dora_scale"].double() - weight
    delta = parse_group(TensorGroup("m", lora), Context("lycoris", {"lycoris_version": "2.2.0"}))
    assert change_error(delta.weight_delta(weight), truth) < 1e-5  # means near zero amplify our rounding of V


def test_dead_rows_stay_zero_without_eps():
    weight = torch.randn(4, 3)
    up = torch.zeros(4, 3)
    up[1] = -weight[1]
    roles = {"lora_down": torch.eye(3), "lora_up": up, "dora_scale": torch.ones(4)}
    delta = parse_group(TensorGroup("m", roles), Context("peft"))
    changed = weight + delta.weight_delta(weight)
    assert changed.isfinite().all()
    assert not changed[1].any()


def test_rows_across_an_input_norm_are_refused():
    case = lycoris_case(LoConModule, "linear", weight_decompose=True, wd_on_out=False, lora_dim=4)
    with pytest.raises(AlgorithmError, match="cannot"):
        case.delta().rows(0, 20)


def test_magnitudes_alone_or_of_another_size_are_refused():
    with pytest.raises(AlgorithmError, match="without the LoRA"):
        parse_group(TensorGroup("m", {"dora_scale": torch.ones(8, 1)}), Context())
    case = lycoris_case(LoConModule, "linear", weight_decompose=True, lora_dim=4)
    wrong = dataclasses.replace(case.delta(), magnitude=torch.ones(7, 1))
    with pytest.raises(AlgorithmError, match="magnitudes per output"):
        wrong.check(Layer.of(case.module))
