"""Gradients of the structured forwards, held against autograd through the dense formula: W + delta W on the weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import diffadapt
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.start import Start
from diffadapt.training import initial
from diffadapt.training.methods import METHODS

LINEAR, CONV, POINTWISE = (24, 32), (16, 8, 3, 3), (16, 8, 1, 1)
OPTIONS = {
    "vblora": {"vector_length": 8, "num_vectors": 12}, "fourierft": {"frequencies": 30}, "boft_peft": {"stages": 2},
    "adalora": {"target_rank": 2}, "dylora": {"unit": 4},
}  # fmt: skip
LINEAR_ONLY = {"vera", "vblora", "fourierft"}
SHAPES = [(name, kind) for name in METHODS if name != "norm" for kind in ("linear", "conv", "pointwise", "batch")]


class Holder(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"to_q": layer})

    def forward(self, x):
        return self.attn["to_q"](x)


def made(kind: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if kind in ("linear", "batch"):
        shape = (5, LINEAR[1]) if kind == "linear" else (3, 7, LINEAR[1])
        return nn.Linear(LINEAR[1], LINEAR[0]), torch.randn(shape)
    out, inputs, *size = CONV if kind == "conv" else POINTWISE
    return nn.Conv2d(inputs, out, size[0], padding=size[0] // 2), torch.randn(2, inputs, 6, 5)


def dense(layer: nn.Module, delta, x: torch.Tensor) -> torch.Tensor:
    """The layer with the changed weight and bias, as one plain operation."""
    weight = layer.weight.detach() + delta.weight_delta(layer.weight.detach())
    bias = layer.bias.detach()
    change = delta.bias_change(bias, lambda: layer.weight.detach())
    bias = bias if change is None else bias + change
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, bias)
    return nn.functional.conv2d(x, weight, bias, layer.stride, layer.padding)


def unfit(algorithm: str, kind: str) -> bool:
    if kind in ("conv", "pointwise") and algorithm in LINEAR_ONLY:
        return True
    return kind == "conv" and algorithm in ("tlora", "oft_peft")


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize(("algorithm", "kind"), [case for case in SHAPES if not unfit(*case)])
def test_gradients_are_those_of_the_dense_formula(algorithm, kind, strength):
    layer, x = made(kind)
    model = diffadapt.enable(Holder(layer))
    rank = {"oft": 4, "oft_dora": 4, "boft": 8, "vera": 6}.get(algorithm, 4)
    model.adapters.add("a", algorithm, rank=rank, targets="all", strength=strength, **OPTIONS.get(algorithm, {}))
    parameters = model.adapters.parameters("a")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn_like(parameter))
    x.requires_grad_()
    weights = torch.randn(made(kind)[0](x.detach()).shape)
    entry = model.adapters._get("a").placements[0].entry
    (model(x) * weights).sum().backward()
    ours = [p.grad.clone() for p in parameters], x.grad.clone()
    for tensor in (*parameters, x):
        tensor.grad = None
    full, base = dense(layer, entry.delta, x), nn.Module.__call__(made(kind)[0], x)
    ((base + strength * (full - base)) * weights).sum().backward()
    # Float32 sums in another order; a gradient's own size is the measure.
    for mine, theirs in zip((*ours[0], ours[1]), (*[p.grad for p in parameters], x.grad), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=2e-5 * float(theirs.abs().max() + 1e-3))


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "pissa", "olora"])
def test_a_beginning_is_no_change_and_leaves_the_base(init):
    layer, _ = made("linear")
    before = layer.weight.detach().clone()
    start = Start(Layer.of(layer), lambda: layer.weight.detach(), 4, None, torch.Generator().manual_seed(0))
    delta = initial.begin(init, METHODS["lora"].delta.fresh(start), start)
    assert float(delta.weight_delta(before).abs().max()) < 1e-6
    assert torch.equal(layer.weight, before)
    settled = delta.settled()
    assert settled.rank == (8 if init in ("pissa", "olora") else 4)
    torch.testing.assert_close(settled.weight_delta(before), delta.weight_delta(before), rtol=1e-4, atol=1e-6)
