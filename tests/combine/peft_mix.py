"""A small model with PEFT's LoRAs on it, the same adapters for diffadapt, and what PEFT's own combination makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from diffadapt.adapter import Adapter, TargetKey
from diffadapt.algorithms.lora import LoRA

WEIGHTS = (0.7, -0.4, 1.2)


class Net(nn.Module):
    """Every kind of module that PEFT can combine on."""

    def __init__(self) -> None:
        super().__init__()
        self.tall = nn.Linear(16, 32)
        self.wide = nn.Linear(32, 16)
        self.conv1 = nn.Conv2d(12, 16, 1)
        self.conv3 = nn.Conv2d(8, 16, 3)
        self.embedding = nn.Embedding(20, 16)


EVERYWHERE = ["tall", "wide", "conv1", "conv3", "embedding"]
PLACES = (EVERYWHERE, EVERYWHERE, ["tall", "conv3", "embedding"])
"""Where the three adapters are."""


@torch.no_grad()
def build(ranks: Sequence[int], rank_stabilised: bool = False) -> Any:
    """PEFT's model with an adapter of every rank, named a0, a1, ..., all numbers random."""
    torch.manual_seed(5)
    model: Any = None
    for number, (rank, places) in enumerate(zip(ranks, PLACES, strict=False)):
        config = LoraConfig(r=rank, lora_alpha=3 + 2 * number, target_modules=places, use_rslora=rank_stabilised)
        if model is None:
            model = get_peft_model(Net(), config, adapter_name="a0")
        else:
            model.add_adapter(f"a{number}", config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.copy_(torch.randn(parameter.shape) / 4)
    return model


def layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The modules that adapters are on, in PEFT's order."""
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight"):
            yield name, module


def factors(module: Any, name: str) -> tuple[Tensor, Tensor, bool] | None:
    """A, B and whether they are an embedding's."""
    if name in module.lora_A:
        return module.lora_A[name].weight.detach(), module.lora_B[name].weight.detach(), False
    if name in module.lora_embedding_A:
        return module.lora_embedding_A[name].detach(), module.lora_embedding_B[name].detach(), True
    return None


def adapter(model: Any, name: str) -> Adapter:
    """One of the model's adapters as diffadapt has it."""
    targets = {}
    for path, module in layers(model):
        found = factors(module, name)
        if found is not None:
            down, up, embedding = found
            alpha = module.scaling[name] * down.shape[0]
            targets[TargetKey("unet", path)] = LoRA(down, up, alpha, embedding=embedding, transposed=embedding)
    return Adapter(name, "peft", targets)


@torch.no_grad()
def combined(model: Any, kind: str, count: int, **options: Any) -> dict[str, Tensor]:
    """The change of every module that PEFT's combination of the first `count` adapters makes."""
    names = [f"a{number}" for number in range(count)]
    model.add_weighted_adapter(names, list(WEIGHTS[:count]), "mix", combination_type=kind, **options)
    changes = {path: module.get_delta_weight("mix") for path, module in layers(model)}
    model.delete_adapter("mix")
    return changes
