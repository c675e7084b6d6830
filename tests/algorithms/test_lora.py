"""LoRA against LyCORIS' LoCon and DyLoRA and PEFT's LoRA, and what its files may look like."""

from __future__ import annotations

import json

import pytest
import torch
from lycoris.modules.dylora import DyLoraModule
from lycoris.modules.locon import LoConModule
from peft import LoraConfig

from diffadapt.algorithms import Context, TensorGroup, parse_group
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.lora import LoRA
from diffadapt.errors import AlgorithmError
from tests.algorithms.checks import check_case
from tests.algorithms.reference import change_error, live
from tests.algorithms.trainers import CONVOLUTIONS, MODULES, base_module, lycoris_case, peft_case


@pytest.mark.parametrize("rs_lora", [False, True])
@pytest.mark.parametrize("layer", MODULES)
def test_lycoris(layer, rs_lora, record_error):
    case = lycoris_case(LoConModule, layer, lora_dim=5, alpha=2, rs_lora=rs_lora)
    check_case(case, record_error, layer, f"lycoris locon, rs_lora={rs_lora}")


@pytest.mark.parametrize("layer", CONVOLUTIONS)
def test_lycoris_tucker(layer, record_error):
    case = lycoris_case(LoConModule, layer, lora_dim=5, alpha=2, use_tucker=True, use_scalar=True)
    assert ("lora_mid" in case.roles) == (layer != "conv1x1")
    check_case(case, record_error, layer, "lycoris locon, tucker and scalar")


def test_lycoris_alpha_zero_is_rank(record_error):
    case = lycoris_case(LoConModule, "linear", lora_dim=5, alpha=0)
    case.roles["alpha"] = torch.tensor(0)
    delta = check_case(case, record_error, "linear", "lycoris locon, alpha 0")
    assert delta.scale == 1.0


@pytest.mark.parametrize("layer", MODULES)
def test_lycoris_dylora_file(layer, record_error):
    """The file is a plain LoRA; one block of the whole rank is trained as alpha / 1, which readers divide by r."""
    case = lycoris_case(DyLoraModule, layer, lora_dim=4, alpha=0.5, block_size=4)
    case.roles["alpha"] = case.roles["alpha"] * 4
    check_case(case, record_error, layer, "lycoris dylora, block_size folded into alpha")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_bias": True}], ids=str)
@pytest.mark.parametrize("layer", [m for m in MODULES if m != "grouped"])
def test_peft(layer, options, record_error):
    case = peft_case(layer, LoraConfig(r=4, lora_alpha=6, **options))
    check_case(case, record_error, layer, f"peft lora, {options}")


def test_peft_embedding(record_error):
    case = peft_case("embedding", LoraConfig(r=4, lora_alpha=6))
    assert set(case.roles) == {"lora_embedding_A", "lora_embedding_B"}
    check_case(case, record_error, "embedding", "peft lora")


def test_peft_fan_in_fan_out(record_error):
    """transformers' Conv1D stores (in, out)."""
    from peft import get_peft_model
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    holder = torch.nn.Module()
    holder.target = base = Conv1D(20, 12)
    get_peft_model(holder, LoraConfig(r=3, lora_alpha=6, target_modules={"target"}, fan_in_fan_out=True)).double()
    tuned = holder.target
    torch.nn.init.normal_(tuned.lora_B["default"].weight)
    roles = {"lora_down": tuned.lora_A["default"].weight.data, "lora_up": tuned.lora_B["default"].weight.data}
    config = {"lora_alpha": 6, "r": 3, "fan_in_fan_out": True}
    delta = parse_group(TensorGroup("m", roles), Context("peft", config))
    error = change_error(delta.weight_delta(base.weight.detach()), tuned.get_delta_weight("default"))
    record_error("lora", "Conv1D", "peft lora, fan_in_fan_out, merged", error)
    assert error < 1e-6


def test_one_by_one_factors_may_be_flat_and_linear_ones_square():
    case = lycoris_case(LoConModule, "conv1x1", lora_dim=5, alpha=2)
    case.roles["lora_down"] = case.roles["lora_down"].flatten(1)
    case.roles["lora_up"] = case.roles["lora_up"].flatten(1)
    assert change_error(live(case.module, case.delta(), case.x), case.truth, case.base) < 1e-6
    case = lycoris_case(LoConModule, "linear", lora_dim=5, alpha=2)
    case.roles["lora_down"] = case.roles["lora_down"][..., None, None]
    case.roles["lora_up"] = case.roles["lora_up"][..., None, None]
    delta = case.delta()
    delta.check(Layer.of(case.module))
    assert change_error(live(case.module, delta, case.x), case.truth, case.base) < 1e-6


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 1, 1, 4)])
def test_split_qkv_is_not_underscaled(sizes):
    """sd-scripts trains n pairs with alpha / r each and saves them as one with the alpha of one."""
    torch.manual_seed(0)
    rank, inner, unit, alpha = 2, 12, 8, 3.0
    downs = [torch.randn(rank, inner) for _ in sizes]
    ups = [torch.randn(unit * size, rank) for size in sizes]
    truth = torch.cat([alpha / rank * up @ down for up, down in zip(ups, downs, strict=True)])
    roles = {"lora_down": torch.cat(downs), "lora_up": torch.block_diag(*ups), "alpha": torch.tensor(alpha)}
    metadata = {"ss_network_args": json.dumps({"split_qkv": "True"})}
    delta = parse_group(TensorGroup("m", dict(roles)), Context(metadata=metadata))
    assert change_error(delta.weight_delta(torch.zeros_like(truth)), truth) < 1e-6
    plain = parse_group(TensorGroup("m", dict(roles)), Context())
    assert plain.scale == alpha / (rank * len(sizes))


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"lora_down": (4, 8)}, "lora_up"),
        ({"lora_up": (8, 4)}, "lora_down"),
        ({"lora_down": (4, 8), "lora_up": (8, 3)}, "do not make a pair"),
        ({"lora_down": (4,), "lora_up": (8, 4)}, "do not make a pair"),
        ({"lora_down": (4, 8), "lora_up": (8, 4), "lora_mid": (3, 3, 3, 3)}, "lora_mid"),
        ({"lora_down": (4, 8), "lora_up": (8, 4), "surprise": (1,)}, "surprise"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(roles, message):
    with pytest.raises(AlgorithmError, match=message):
        parse_group(TensorGroup("m", {role: torch.ones(shape) for role, shape in roles.items()}), Context())


def test_alpha_must_be_one_finite_number():
    roles = {"lora_down": torch.ones(4, 8), "lora_up": torch.ones(8, 4)}
    for alpha in (torch.tensor(float("nan")), torch.ones(2)):
        with pytest.raises(AlgorithmError, match="alpha"):
            parse_group(TensorGroup("m", roles | {"alpha": alpha}), Context())


@pytest.mark.parametrize("layer", ["linear", "conv3x3s2", "embedding"])
def test_check_refuses_a_foreign_layer(layer):
    module, _ = base_module(layer)
    with pytest.raises(AlgorithmError, match="lora"):
        LoRA(torch.ones(4, 7), torch.ones(9, 4), 4.0).check(Layer.of(module))
