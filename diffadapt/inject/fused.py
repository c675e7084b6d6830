"""Diffusers' `fuse_qkv_projections()` with adapters attached: the fused Linear gets the deltas of its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffadapt.adapter import TargetKey
from diffadapt.families.names import FUSED_PROJECTIONS
from diffadapt.inject.locate import Component, weight_of
from diffadapt.inject.slot import Slot


@dataclass
class FusedLinear:
    """A fused Linear and its parts: every call adds what the parts' slots would have added."""

    fused: nn.Module
    parts: list[nn.Module]
    path: str
    stack_slots: Mapping[TargetKey, Slot]
    keys: list[TargetKey]
    handle: RemovableHandle | None = None

    def attach(self) -> None:
        self.handle = self.handle or self.fused.register_forward_hook(self.after)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        slots = [self.stack_slots.get(key) for key in self.keys]
        if all(slot is None or (slot.idle and not torch.compiler.is_compiling()) for slot in slots):
            return None
        sizes = [int(part.out_features) for part in self.parts]  # type: ignore[arg-type]
        rows = torch.split(output, sizes, dim=-1)
        changed = [
            y if slot is None else slot.effect(args[0], y, part.forward)
            for y, slot, part in zip(rows, slots, self.parts, strict=True)
        ]
        return torch.cat(changed, dim=-1)

    @torch.no_grad()
    def resync(self) -> None:
        """Copy the parts' weights into the fused one: they were merged or restored."""
        for name in ("weight", "bias"):
            fused = getattr(self.fused, name, None)
            if isinstance(fused, Tensor) and fused.device.type != "meta":  # what is offloaded is not merged
                torch.cat([weight_of(part, name).to(fused.dtype) for part in self.parts], out=fused.data)


@dataclass
class FusedProjections:
    """All fused Linears of a pipeline."""

    linears: dict[str, FusedLinear] = field(default_factory=dict)

    def watch(self, components: Mapping[str, Component], slots: Mapping[TargetKey, Slot]) -> None:
        """Follow the fusing of every component from now on, and take up what is fused already."""
        for component in components.values():
            model = component.model
            fuse = getattr(model, "fuse_qkv_projections", None)
            if fuse is not None and not isinstance(getattr(fuse, "__func__", fuse), _FuseAndFollow):
                model.__dict__["fuse_qkv_projections"] = _FuseAndFollow(model, component.name, self, slots)
            self.follow(component.name, model, slots)

    def follow(self, component: str, model: nn.Module, slots: Mapping[TargetKey, Slot]) -> None:
        """Hook the fused Linears that a model has now."""
        for path, module in model.named_modules():
            for fused in FUSED_PROJECTIONS.keys() & module._modules.keys():
                names = FUSED_PROJECTIONS[fused]
                linear = getattr(module, fused)
                parts = [getattr(module, name, None) for name in names]
                if not isinstance(linear, nn.Linear) or not all(isinstance(p, nn.Linear) for p in parts):
                    continue
                where = f"{path}.{fused}" if path else fused
                known = self.linears.get(f"{component}.{where}")
                if known is not None and known.fused is linear:
                    continue
                keys = [TargetKey(component, f"{path}.{name}" if path else name) for name in names]
                entry = FusedLinear(linear, [p for p in parts if p is not None], where, slots, keys)
                entry.attach()
                self.linears[f"{component}.{where}"] = entry

    def resync(self) -> None:
        for linear in self.linears.values():
            linear.resync()


class _FuseAndFollow:
    """A model's own `fuse_qkv_projections`, then the hooks on what it made."""

    def __init__(
        self, model: nn.Module, component: str, fused: FusedProjections, slots: Mapping[TargetKey, Slot]
    ) -> None:
        self.model, self.component, self.fused, self.slots = model, component, fused, slots

    def __call__(self) -> None:
        own: Callable[[nn.Module], None] = type(self.model).fuse_qkv_projections  # type: ignore[attr-defined]
        try:
            own(self.model)
        finally:  # a class that cannot fuse all of its attentions (LTX-2) raises with some of them fused
            self.fused.follow(self.component, self.model, self.slots)
