"""Layers and comparisons for the tests of rotations: every layer kind, random tensors, trainers as oracles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffadapt.algorithms import Context, TensorGroup, parse_group
from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.layer import Layer
from tests.algorithms.reference import change_error, layer_of, live, merged

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(16, 32),
    "conv 1x1": lambda: nn.Conv2d(16, 32, 1),
    "conv 3x3 stride 2": lambda: nn.Conv2d(16, 32, 3, stride=2, padding=1),
    "conv1d": lambda: nn.Conv1d(16, 32, 3, padding=1),
    "conv3d": lambda: nn.Conv3d(16, 32, 3, padding=1, bias=False),
    "conv 3x3 groups 4": lambda: nn.Conv2d(16, 32, 3, padding=1, groups=4),
}
INPUTS = {0: (3, 5), 1: (2, 9), 2: (2, 7, 7), 3: (2, 4, 4, 4)}


def build(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return LAYERS[kind]().requires_grad_(False)


def random_input(module: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    layer = layer_of(module)
    if layer.kind == "embedding":
        return torch.arange(layer.shape[0])
    sizes = INPUTS[len(layer.stride)]
    shape = (*sizes, layer.in_features) if layer.kind == "linear" else (sizes[0], layer.in_features, *sizes[1:])
    return torch.randn(shape, dtype=dtype)


@torch.no_grad()
def randomise(module: nn.Module, around_one: tuple[str, ...] = (), size: float = 0.3) -> None:
    """Every parameter non-degenerate: normal, scales (by name) around 1."""
    for name, parameter in module.named_parameters():
        mean = 1.0 if any(part in name for part in around_one) else 0.0
        parameter.copy_((mean + size * torch.randn_like(parameter)).float())


def parse(tensors: Mapping[str, Tensor], **context: Any) -> Delta:
    """parse_group, and that writing and parsing again gives the same tensors."""
    delta = parse_group(TensorGroup("module", tensors), Context(**context))
    again = parse_group(TensorGroup("module", delta.tensors()), Context(**context))
    for (role, tensor), (other, copy) in zip(delta.tensors().items(), again.tensors().items(), strict=True):
        assert role == other
        assert torch.equal(tensor, copy)
    assert all(
        getattr(delta, f.name) == getattr(again, f.name)
        for f in dataclasses.fields(delta)
        if isinstance(getattr(delta, f.name), (int, float, bool, type(None)))
    )
    return delta


def forward_errors(module: nn.Module, delta: Delta, x: Tensor, truth: Tensor) -> dict[str, float]:
    """The error of the live and of the merged output against the trainer's, relative to the change of the output."""
    delta.check(layer_of(module))
    base = module(x)
    return {
        "live": change_error(live(module, delta, x), truth, base),
        "merged": change_error(merged(module, delta, x), truth, base),
    }


def weight_error(module: nn.Module, delta: Delta, truth: Tensor) -> float:
    """The error of the weight's change against the trainer's changed weight, relative to that change."""
    weight = module.weight.detach()
    delta.check(layer_of(module))
    seen = delta.weight_delta(weight)
    assert seen.dtype == torch.float32
    return change_error(seen, truth.double() - weight.double())


def settle(errors: dict[str, float], limit: float = 1e-6) -> float:
    """The largest error that is ours; raises beyond `limit`.

    The merged output has a limit of its own: W + delta is rounded once to float32, and the change may be a small
    part of W (the constrained rotations here turn by a few degrees).
    """
    ours = max(error for name, error in errors.items() if name != "merged")
    assert ours < limit, errors
    assert errors.get("merged", 0.0) < max(1e-5, limit), errors
    return ours


def same_live_and_merged(module: nn.Module, delta: Delta, limit: float = 1e-5) -> None:
    """The identity that every delta owes: live and merged agree, at multipliers other than 1 too."""
    x = random_input(module, module.weight.dtype)
    for m in (1.0, -0.7):
        assert change_error(live(module, delta, x, m), merged(module, delta, x, m), module(x)) < limit


def skewed(x: Tensor) -> Tensor:
    x = x.double()
    return x - x.transpose(-1, -2)


def cayley_plus(q: Tensor) -> Tensor:
    """(I + Q)(I - Q)^-1, by the published formula in float64 (not the implementation's rearranged solve)."""
    eye = torch.eye(q.shape[-1], dtype=torch.float64)
    return (eye + q) @ torch.linalg.inv(eye - q)


def layer_of_kind(kind: str) -> Layer:
    return layer_of(build(kind))
