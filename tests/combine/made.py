"""Adapters and a base for tests of combination, made of the registry's samples."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from diffadapt.adapter import Adapter, TargetKey
from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.lora import LoRA
from tests.algorithms.samples import Sample

KEY = TargetKey("unet", "layer")


def adapter(delta: Delta, name: str = "a") -> Adapter:
    """An adapter with one delta."""
    return Adapter(name, "kohya", {KEY: delta})


def base(module: nn.Module) -> Any:
    """A pipeline whose only model has the one module."""
    model = nn.Module()
    model.add_module("layer", module.float())
    return SimpleNamespace(components={"unet": model})


def lora(rank: int, seed: int, rows: int = 32, columns: int = 24, alpha: float = 3.0) -> LoRA:
    """A random LoRA."""
    random = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, columns, generator=random) / columns**0.5
    return LoRA(down, torch.randn(rows, rank, generator=random) / rank**0.5, alpha)


def dense(made: Adapter, module: nn.Module) -> Tensor:
    """The change that an adapter makes of the module's weight."""
    return made.targets[KEY].weight_delta(module.weight.detach().float())


def of_sample(sample: Sample) -> tuple[nn.Module, Delta]:
    """The module of a sample, in float32, and its delta."""
    module, _ = sample.build()
    return module.float(), sample.delta()


def error(seen: Tensor, truth: Tensor) -> float:
    """The relative Frobenius error."""
    return float((seen - truth).norm() / truth.norm())
