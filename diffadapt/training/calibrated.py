"""Beginnings that need more than the weight: what layers are given (EVA), what quantisation lost (LoftQ)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffadapt.adapter import Adapter, Foreign, TargetKey
from diffadapt.algorithms.base import Delta, f32
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.lora import LoRA
from diffadapt.errors import StackError, TargetError
from diffadapt.inject.base_files import BaseFiles
from diffadapt.inject.finding import find
from diffadapt.inject.locate import Component
from diffadapt.inject.quantised import quantiser_of
from diffadapt.training.initial import from_residual

if TYPE_CHECKING:
    from diffadapt.training.plan import Plan

WeightOf = Callable[[TargetKey], Callable[[], Tensor]]
RHO = 2.0
"""EVA: the most ranks a module may get, by its own number. PEFT's default."""


class _Principal:
    """The mean and the scatter of a Linear's inputs, summed up in float64: exact whatever the batches are."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | None = None
        self.products: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        x = args[0].detach().reshape(-1, args[0].shape[-1]).double()
        self.count += len(x)
        self.total = x.sum(0) if self.total is None else self.total + x.sum(0)
        self.products = x.T @ x if self.products is None else self.products.addmm_(x.T, x)

    def directions(self) -> tuple[Tensor, Tensor]:
        """The principal directions (in, in), largest first, and the share of the variance of each (in,)."""
        if self.total is None or self.products is None:
            raise StackError("it was given nothing while `data` ran.")
        scatter = self.products - torch.outer(self.total, self.total) / self.count
        values, vectors = torch.linalg.eigh(scatter)
        values = values.flip(0).clamp_min(0)
        return vectors.flip(1).T, values / values.sum().clamp_min(1e-300)


def eva(plan: Plan, adapter: Adapter, parts: Mapping[str, Component], owner: object, weight_of: WeightOf) -> Adapter:
    """The LoRA with down at the principal directions of its layers' inputs. The sum of the ranks is shared out anew: to
    the directions of the largest shares, at most `RHO` times the rank to a module. Modules without any stay out.

    Every module keeps the scale that it had. Raises StackError without `data`, TargetError for what is no Linear.
    """
    if plan.data is None:
        raise StackError(
            "init='eva' needs data: a call that runs the models on some samples, as data=lambda: pipe(...)."
        )
    places = _places(adapter, parts, "eva")
    seen = {name: _Principal() for name in places}
    with ExitStack() as stack, torch.no_grad():
        for name, (module, _) in places.items():
            stack.callback(module.register_forward_hook(seen[name]).remove)
        plan.data()
    found, shares, owners = {}, [], []
    for place, (name, (_, delta)) in enumerate(places.items()):
        try:
            found[name] = seen[name].directions()
        except StackError as error:
            raise TargetError(f"{plan.name}: {name.module} cannot begin by EVA: {error}") from error
        most = min(round(delta.rank * RHO), len(found[name][1]))
        shares.append(found[name][1][:most])
        owners.append(torch.full((most,), place))
    budget = sum(delta.rank for _, delta in places.values())
    chosen = torch.cat(owners)[torch.cat(shares).argsort(descending=True)[:budget]]
    ranks = torch.bincount(chosen, minlength=len(places)).tolist()
    deltas: dict[TargetKey | Foreign, Delta] = {}
    for (name, (_, delta)), rank in zip(places.items(), ranks, strict=True):
        if rank:
            down = f32(found[name][0][:rank]).cpu().contiguous()
            up = torch.zeros(delta.up.shape[0], rank)
            deltas[name] = dataclasses.replace(delta, down=down, up=up, alpha=_scaled_alpha(delta, rank))
    return _with(adapter, deltas)


def _scaled_alpha(delta: LoRA, rank: int) -> float:
    """The alpha that gives another rank the scale that the delta has."""
    return delta.scale * (rank**0.5 if delta.rank_stabilised else rank)


def loftq(plan: Plan, adapter: Adapter, parts: Mapping[str, Component], owner: object, weight_of: WeightOf) -> Adapter:
    """The LoRA that begins at what quantisation took from every weight: base + change is near the weight as it was.

    The base keeps its bits; LoftQ's further rounds would quantise it anew. Raises StackError where a module is not
    quantised, or where its unquantised weight is not in the folder.
    """
    files = BaseFiles(owner, None if plan.base is None else Path(plan.base))
    deltas: dict[TargetKey | Foreign, Delta] = {}
    for name, (module, delta) in _places(adapter, parts, "loftq").items():
        key = TargetKey(name.component or next(iter(parts)), name.module)
        if quantiser_of(module.weight) is None:
            raise StackError(
                f"init='loftq': {'.'.join(key)} is not quantised, so there is nothing to make up for. Load the model "
                "quantised, or take init='pissa'."
            )
        whole = files.parameter(key, "weight")
        if whole is None:
            raise StackError(
                f"init='loftq': the unquantised weight of {'.'.join(key)} is not at hand; give base=, the folder of "
                "the model's own safetensors files."
            )
        packed = weight_of(key)()
        deltas[name] = from_residual(delta, f32(whole, packed) - f32(packed))
    return _with(adapter, deltas)


def _places(
    adapter: Adapter, parts: Mapping[str, Component], init: str
) -> dict[TargetKey | Foreign, tuple[nn.Module, LoRA]]:
    """Every target's module and its untrained LoRA."""
    places: dict[TargetKey | Foreign, tuple[nn.Module, LoRA]] = {}
    for name, (key, delta) in find(adapter, parts)[0].items():
        module = parts[key.component].modules[key.module]
        layer = Layer.of(module)
        if type(delta) is not LoRA or layer is None or layer.kind != "linear":
            raise TargetError(f"init={init!r} is a beginning of LoRAs on Linears; leave {'.'.join(key)} out.")
        places[name] = (module, delta)
    return places


def _with(adapter: Adapter, deltas: Mapping[TargetKey | Foreign, Delta]) -> Adapter:
    """The adapter with these deltas alone."""
    targets = {key: delta for key, delta in deltas.items() if isinstance(key, TargetKey)}
    foreign = {key: delta for key, delta in deltas.items() if isinstance(key, Foreign)}
    return dataclasses.replace(adapter, targets=targets, foreign=foreign)
