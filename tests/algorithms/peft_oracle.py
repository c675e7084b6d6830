"""Real PEFT models around one layer, in float64: the oracle's own rounding stays out of the comparison."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

ROLES = {
    "lora_A.weight": "lora_down", "lora_B.weight": "lora_up", "lora_A": "lora_down", "lora_B": "lora_up",
    "oft_R.weight": "oft_R", "oft_embedding_R.weight": "oft_embedding_R",
}  # fmt: skip


def wrap(layer: nn.Module, config: PeftConfig, around_one: tuple[str, ...] = (), size: float = 0.3) -> nn.Module:
    """A PEFT model of `layer` with every adapter parameter random, in float64 (numbers that float32 holds)."""
    model = get_peft_model(nn.Sequential(OrderedDict(layer=layer)), config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("base_layer" not in name)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "base_layer" not in name and "ranknum" not in name:  # AdaLoRA counts its ranks in a parameter
                mean = 1.0 if any(part in name for part in around_one) else 0.0
                parameter.copy_((mean + size * torch.randn_like(parameter)).float())
    return model.double()


def saved(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The adapter as PEFT saves it, float32 tensors by canonical role; and its config."""
    tensors = {}
    for key, tensor in get_peft_model_state_dict(model).items():
        suffix = key.removeprefix("base_model.model.layer.")
        tensors[ROLES.get(suffix, suffix)] = tensor.float() if tensor.is_floating_point() else tensor
    return tensors, model.peft_config["default"].to_dict()
