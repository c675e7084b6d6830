"""A tiny reference injector: what the live forms mean, in the fewest lines, for one adapter on one module."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.forms import BiasChange, Branch, InputChange, LowRank, OutputChange, TwoSided
from diffadapt.algorithms.layer import Layer


def layer_of(module: nn.Module) -> Layer:
    layer = Layer.of(module)
    assert layer is not None
    return layer


def base_bias(module: nn.Module) -> Tensor | None:
    bias = getattr(module, "bias", None)
    return None if bias is None else bias.detach()


def as_channels(vector: Tensor, y: Tensor, layer: Layer) -> Tensor:
    """A per-channel vector, broadcast over the activation."""
    return vector.view(-1, *(1,) * (y.ndim - 2)) if layer.channel_dim == 1 else vector


def low_rank_change(form: LowRank, layer: Layer, x: Tensor) -> Tensor:
    """scale * up (down x), per group for grouped convolutions."""
    if layer.kind == "embedding":
        return F.linear(F.embedding(x, form.down.T), form.up) * form.scale
    down = form.down.reshape(form.rank, *layer.shape[1:])
    if layer.kind == "linear":
        return F.linear(F.linear(x, down), form.up) * form.scale
    groups = layer.groups
    h = layer.apply(x, down.repeat(groups, *(1,) * (down.ndim - 1)), groups)
    return layer.pointwise(h, form.up, groups) * form.scale


@torch.no_grad()
def live(module: nn.Module, delta: Delta, x: Tensor, m: float = 1.0) -> Tensor:
    """The module's output with the delta's live forms at multiplier m."""
    layer = layer_of(module)
    bias = base_bias(module)
    dtype = x.dtype if x.is_floating_point() else module.weight.dtype
    forms = [f.to(x.device, dtype) for f in delta.forms(layer, module.weight.detach, lambda: bias)]
    changed = x
    for form in forms:
        if isinstance(form, InputChange):
            changed = changed + m * form.inner.change(x, layer)
    y = module(changed)
    for form in forms:
        y = y + _added(form, module, layer, x, m, bias)
    return y


def _added(form: object, module: nn.Module, layer: Layer, x: Tensor, m: float, bias: Tensor | None) -> Tensor:
    def product(v: Tensor) -> Tensor:
        y = module(v)
        return y if bias is None else y - as_channels(bias, y, layer)

    if isinstance(form, InputChange):
        return torch.zeros((), dtype=module.weight.dtype)
    if isinstance(form, LowRank):
        return m * low_rank_change(form, layer, x)
    if isinstance(form, OutputChange):
        return m * form.inner.change(product(x), layer)
    if isinstance(form, TwoSided):
        turned = product(x + form.inputs.change(x, layer))
        return m * (turned + form.outputs.change(turned, layer) - product(x))
    if isinstance(form, Branch):
        return m * form.change(x, layer)
    assert isinstance(form, BiasChange), form
    return m * as_channels(form.vector, product(x), layer)


@torch.no_grad()
def merged(module: nn.Module, delta: Delta, x: Tensor, m: float = 1.0) -> Tensor:
    """The output of a copy of the module with the delta merged at multiplier m (in the module's dtype)."""
    copy = deepcopy(module)
    copy.weight.add_(m * delta.weight_delta(module.weight.detach()).to(copy.weight.dtype))
    change = delta.bias_delta(base_bias(module))
    if change is not None:
        change = m * change.to(copy.weight.dtype)
        copy.bias = nn.Parameter(change if copy.bias is None else copy.bias.detach() + change)
    return copy(x)


def change_error(seen: Tensor, truth: Tensor, base: Tensor | float = 0.0) -> float:
    """|seen - truth| / |truth - base|: the error relative to the change, in float64."""
    seen, truth = seen.detach().double(), truth.detach().double()
    base = base.detach().double() if isinstance(base, Tensor) else base
    return float((seen - truth).norm() / (truth - base).norm())
