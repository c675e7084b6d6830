"""Input layers that an adapter widens: Flux' Control LoRAs bring as many channels again for the control image.

The trainer's model had zero columns there, so the Linear is given them for as long as such an adapter is loaded, and
the model's `in_channels` follows, which the pipelines read. Adapters of the narrow layer act on its first columns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from diffadapt.adapter import TargetKey
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.rows import FirstColumns
from diffadapt.errors import StackError
from diffadapt.inject.locate import Component
from diffadapt.inject.placement import Loaded
from diffadapt.inject.quantised import quantiser_of


class WidenedInputs:
    """The input layers of a pipeline that are wider now than the model's own."""

    def __init__(self) -> None:
        self._widths: dict[TargetKey, int] = {}
        """key -> the input width that the model came with."""

    def wanted(self, loaded: Loaded) -> list[TargetKey]:
        """The layers that an adapter needs wider than they are."""
        return [p.key for p in loaded.placements if _wider(p.layer, p.module)]

    def widen(self, loaded: Loaded, others: Iterable[Loaded], parts: Mapping[str, Component]) -> list[TargetKey]:
        """Give the layers of an adapter the columns it needs; the other adapters keep to theirs. Returns the layers.

        Raises StackError for a weight that is packed by a quantiser or offloaded.
        """
        changed = self.wanted(loaded)
        for key in changed:
            placement = next(p for p in loaded.placements if p.key == key)
            weight = placement.module.weight
            if weight.device.type == "meta" or quantiser_of(weight) is not None:
                raise StackError(
                    f"{loaded.adapter.source} widens {'.'.join(key)}, whose weight is quantised or offloaded. Load it "
                    "before enabling offload, or leave this layer out of the quantisation."
                )
            width = int(placement.module.in_features)  # type: ignore[arg-type]
            _resize(placement.module, placement.layer.shape[1], parts[key.component].model, key)
            self._widths.setdefault(key, width)
            for other in (p for adapter in others for p in adapter.placements if p.key == key):
                if not isinstance(other.delta, FirstColumns):
                    other.delta = other.entry.delta = FirstColumns(other.delta, width)
                other.layer = placement.layer
        return changed

    def keep(self, kept: Collection[TargetKey]) -> None:
        """Layers whose weights keep what is merged into them keep their columns."""
        for key in [key for key in self._widths if key in kept]:
            del self._widths[key]

    def narrow(
        self, left: Iterable[Loaded], parts: Mapping[str, Component], merged: Iterable[TargetKey]
    ) -> list[TargetKey]:
        """Take back columns that no adapter needs any more, but not where weights hold adapters. Returns the layers."""
        left, held, changed = list(left), set(merged), []
        for key, width in list(self._widths.items()):
            here = [p for adapter in left for p in adapter.placements if p.key == key]
            if key in held or any(not isinstance(p.delta, FirstColumns) for p in here):
                continue
            module = parts[key.component].modules[key.module]
            _resize(module, width, parts[key.component].model, key)
            layer = Layer.of(module)
            for placement in here:
                if isinstance(placement.delta, FirstColumns) and layer is not None:
                    placement.delta = placement.entry.delta = placement.delta.inner
                    placement.layer = layer
            del self._widths[key]
            changed.append(key)
        return changed


def _wider(layer: Layer, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and layer.kind == "linear" and layer.shape[1] > module.in_features


@torch.no_grad()
def _resize(module: nn.Module, width: int, model: Any, key: TargetKey) -> None:
    """The Linear with `width` inputs: its own first columns, and zeros behind them."""
    assert isinstance(module, nn.Linear)
    old = module.weight
    weight = old.new_zeros(old.shape[0], width)
    kept = min(width, old.shape[1])
    weight[:, :kept].copy_(old[:, :kept])
    module.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    module.in_features = width
    if getattr(getattr(model, "config", None), "in_channels", None) is not None:
        model.register_to_config(in_channels=width)
