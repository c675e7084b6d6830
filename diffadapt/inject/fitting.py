"""Fitting a delta to a module that is not quite the one its trainer saw: wider inputs, channels kept apart in groups,
parts of a fused projection."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from diffadapt.adapter import TargetKey
from diffadapt.algorithms.across_groups import across_groups
from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.rows import FirstColumns, OfFused
from diffadapt.errors import TargetError
from diffadapt.inject.locate import Component
from diffadapt.inject.merging import BaseWeight, MergedWeights

INPUT_LAYERS = frozenset({"x_embedder"})
"""Modules that adapters may widen: see `widen`."""


def fitted(path: str, delta: Delta, layer: Layer) -> tuple[Delta, Layer]:
    """The delta for an input layer as it is, or the layer as wide as the delta needs it; for a depthwise convolution
    the delta as OneTrainer meant it; elsewhere both unchanged."""
    delta = across_groups(delta, layer)
    pair = delta.low_rank() if path in INPUT_LAYERS and layer.kind == "linear" else None
    if pair is None or pair.down.shape[1] == layer.shape[1]:
        return delta, layer
    width = pair.down.shape[1]
    if width < layer.shape[1]:
        return FirstColumns(delta, width), layer
    return delta, dataclasses.replace(layer, shape=(layer.shape[0], width))


class SiblingWeights:
    """Reads the base weights of a fused projection's parts."""

    def __init__(self, weights: list[BaseWeight]) -> None:
        self.weights = weights

    def __call__(self, index: int) -> Tensor:
        return self.weights[index]()


def siblings(delta: OfFused, key: TargetKey, part: Component, merged: MergedWeights, source: str) -> SiblingWeights:
    """Where the base weights of a fused projection's parts are. Raises TargetError where the model lacks one."""
    weights = []
    for sibling in delta.siblings:
        path = part.resolve(sibling)
        if path is None:
            raise TargetError(
                f"{source}: {'.'.join(key)} was trained as one module with {', '.join(delta.siblings)}, and this model "
                f"has no {sibling}. The adapter is for another model."
            )
        weights.append(BaseWeight(merged, TargetKey(key.component, path), part.modules[path]))
    return SiblingWeights(weights)
