"""The families' model classes in full size on the meta device, and files for them as trainers name their keys."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from diffadapt.algorithms.layer import Layer
from diffadapt.families import ENCODERS, FAMILIES, Family
from diffadapt.families.measure import build
from diffadapt.families.model import Model
from diffadapt.families.names import Names

MEASURED: dict[str, Names] = {
    names.model.layout: names
    for names in (*ENCODERS, *(names for family in FAMILIES for names in family.components.values()))
    if names.model is not None
}
"""Every name table that has a full-size model, once."""
WITH_DENOISER = [family for family in FAMILIES if getattr(family.components.get("transformer"), "model", None)]


@cache
def on_meta(layout: str) -> nn.Module:
    model = MEASURED[layout].model
    assert isinstance(model, Model)
    return build(model)


@cache
def layers(layout: str) -> dict[str, Layer]:
    """Every module of a full-size model that an adapter could act on."""
    found = {path: Layer.of(module) for path, module in on_meta(layout).named_modules()}
    return {path: layer for path, layer in found.items() if layer is not None}


@cache
def pair(shape: tuple[int, ...], rank: int) -> tuple[Tensor, Tensor]:
    """A low-rank pair for a weight, of zeros that take no memory."""
    zero = torch.zeros((1,) * len(shape))
    return zero.expand(rank, *shape[1:]), zero.expand(shape[0], rank, *zero.shape[2:])


def pairs(widths: dict[str, tuple[int, ...]], rank: int = 2) -> dict[str, tuple[Tensor, Tensor]]:
    """A low-rank pair for each weight shape."""
    return {name: pair(shape, rank) for name, shape in widths.items()}


def weights_of(family: Family, component: str = "transformer") -> dict[str, tuple[int, ...]]:
    """The shapes of a component's Linears and undivided convolutions, as a trainer of everything would take them."""
    names = family.components[component]
    assert names.model is not None
    return {
        path: layer.shape
        for path, layer in layers(names.model.layout).items()
        if layer.kind in ("linear", "conv") and layer.groups == 1
    }


def file_of(widths: dict[str, tuple[int, ...]], prefix: str, *, flat: bool = False) -> dict[str, Tensor]:
    """A LoRA file: `prefix` and a module's name, dotted with `lora_A`, or flat with `lora_down` and alpha."""
    file: dict[str, Tensor] = {}
    for name, (down, up) in pairs(widths).items():
        if flat:
            key = prefix + name.replace(".", "_")
            file |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
        else:
            file |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
    return file
