"""What a specimen of the zoo is: a real model class of a few thousand numbers, and inputs for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Specimen:
    """One model class with a tiny configuration.

    cls: where Diffusers has it. config: of the class. inputs: makes the keyword arguments of a forward. component: what
    a pipeline calls the model.
    """

    cls: str
    config: dict[str, Any]
    inputs: Callable[[], dict[str, Any]]
    component: str = "transformer"

    def type(self) -> type[nn.Module]:
        """The class."""
        module, _, name = f"diffusers.{self.cls}".rpartition(".")
        found: type[nn.Module] = getattr(import_module(module), name)
        return found

    @torch.no_grad()
    def build(self, seed: int = 0) -> nn.Module:
        """The model, with no parameter left at zeros or ones: a zero gate would hide the block behind it.

        Experts are torch.empty until a checkpoint fills them.
        """
        torch.manual_seed(seed)
        model = self.type()(**self.config).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                parameter.normal_(0, 0.1)
            elif float(parameter.min()) == float(parameter.max()):
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    @torch.no_grad()
    def run(self, model: nn.Module, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
        """All outputs of the model, flat, on inputs that are the same at every call."""
        return flat(model(**self.arguments(dtype, device)))

    def arguments(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, Any]:
        """The keyword arguments of a forward."""
        torch.manual_seed(1)
        return cast(self.inputs(), dtype, device)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape)


def cast(value: Any, dtype: torch.dtype, device: str = "cpu") -> Any:
    """Arguments on another device, with their floating tensors in another dtype."""
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else value.dtype)
    if isinstance(value, dict):
        return {key: cast(inner, dtype, device) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return value.__class__(cast(inner, dtype, device) for inner in value)
    return value


def flat(output: Any) -> Tensor:
    """Every tensor of an output, one after the other."""
    if isinstance(output, Tensor):
        return output.flatten()
    if isinstance(output, dict):  # Diffusers' outputs are
        output = tuple(output.values())
    return torch.cat([flat(part) for part in output if part is not None])
