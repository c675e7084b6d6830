"""PEFT's LoRAs that changed the base: PEFT's model, changed base and all, is the oracle on the untouched base."""

from __future__ import annotations

import pytest
import torch
from peft import KasaConfig, LoraConfig
from torch import nn

from diffadapt.algorithms.lora import LoRA
from diffadapt.errors import AlgorithmError
from tests.algorithms.peft_oracle import saved, wrap
from tests.algorithms.reference import layer_of
from tests.algorithms.rotation_cases import build, forward_errors, parse, random_input, settle

SHAPES = {"wide": (16, 32), "tall": (32, 16), "square": (24, 24)}


def linear(shape: str) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(*SHAPES[shape]).requires_grad_(False)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_repaired(shape, start, rslora, record_error):
    config = LoraConfig(target_modules=["layer"], r=4, lora_alpha=7, init_lora_weights=start, use_rslora=rslora)
    model = wrap(linear(shape), config)
    tensors, written = saved(model)
    delta = parse(tensors, writer="peft", config=written)
    assert delta.algorithm == start
    base = linear(shape).double()
    x = random_input(base, torch.float64)
    # PEFT takes its part out of the base by a float32 decomposition.
    error = settle(forward_errors(base, delta, x, model(x)), 5e-6)
    record_error(start, f"linear, {shape}", "peft 0.21.2", error)


@pytest.mark.parametrize("start", ["pissa", "olora"])
@torch.no_grad()
def test_repaired_dora(start, record_error):
    config = LoraConfig(target_modules=["layer"], r=4, lora_alpha=7, init_lora_weights=start, use_dora=True)
    model = wrap(linear("wide"), config)
    layer = model.base_model.model.layer
    layer.lora_magnitude_vector["default"].weight.copy_(1 + torch.rand(32))
    tensors, written = saved(model)
    tensors["dora_scale"] = tensors.pop("lora_magnitude_vector")
    delta = parse(tensors, writer="peft", config=written)
    base = linear("wide").double()
    x = random_input(base, torch.float64)
    error = settle(forward_errors(base, delta, x, model(x)), 5e-6)
    record_error(f"{start} dora", "linear", "peft 0.21.2", error)


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_kasa(shape, record_error):
    config = LoraConfig(target_modules=["layer"], r=4, lora_alpha=7, kasa_config=KasaConfig())
    model = wrap(linear(shape), config)
    tensors, written = saved(model)
    delta = parse(tensors, writer="peft", config=written)
    assert delta.algorithm == "kasa"
    base = linear(shape).double()
    x = random_input(base, torch.float64)
    error = settle(forward_errors(base, delta, x, model(x)), 5e-6)
    record_error("kasa", f"linear, {shape}", "peft 0.21.2", error)


@pytest.mark.parametrize("start", ["corda", "lora_ga", "loftq", "pissa_niter_16", "tomorrow"])
def test_refused(start):
    tensors = {"lora_down": torch.randn(4, 16), "lora_up": torch.randn(32, 4)}
    with pytest.raises(AlgorithmError, match=start):
        parse(tensors, writer="peft", config={"init_lora_weights": start})


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "orthogonal", "eva", "mica"])
def test_untouched(start):
    tensors = {"lora_down": torch.randn(4, 16), "lora_up": torch.randn(32, 4)}
    assert isinstance(parse(tensors, writer="peft", config={"init_lora_weights": start}), LoRA)


def test_errors():
    tensors = {"lora_down": torch.randn(4, 16), "lora_up": torch.randn(32, 4)}
    delta = parse(tensors, writer="peft", config={"init_lora_weights": "pissa"})
    with pytest.raises(AlgorithmError, match="all rows"):
        delta.rows(0, 16)
    with pytest.raises(AlgorithmError, match="Linears only"):
        delta.check(layer_of(build("conv 1x1")))
    with pytest.raises(AlgorithmError, match="lora_diag"):
        parse(tensors | {"lora_diag": torch.ones(3)})
