"""A training loop that can be stopped at any time: what a step sees depends on its number alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from . import effort
from .muon import Muon, hidden

SAVE_EVERY = 60.0
"""Seconds between two checkpoints."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast one thing is trained.

    hidden: the rate of the hidden layers, which Muon then trains; 0: Adam trains everything. average: decay of the
    averaged weights; 0: none are kept.
    """

    name: str
    steps: int
    rate: float
    warmup: int = 50
    hidden: float = 0.0
    average: float = 0.0
    decay: float = 0.0

    def at(self, step: int) -> float:
        """The share of the learning rate at a step: a short rise, then half a cosine down to a fiftieth."""
        rise = min(1.0, (step + 1) / self.warmup)
        return rise * (0.02 + 0.98 * (1 + math.cos(math.pi * step / self.steps)) / 2)

    def shortened(self) -> Plan:
        """The plan with the share of its steps that is asked for."""
        return replace(self, steps=effort.some(self.steps, 2))

    def optimisers(self, model: nn.Module, parameters: Sequence[Tensor]) -> list[torch.optim.Optimizer]:
        """Adam, and Muon for hidden layers where the plan has a rate for them."""
        inner = hidden(model) if self.hidden else []
        known = {id(parameter) for parameter in inner}
        outer = [parameter for parameter in parameters if id(parameter) not in known]
        adam = torch.optim.AdamW(outer, self.rate, betas=(0.9, 0.99), weight_decay=self.decay, fused=True)
        return [adam, Muon(inner, self.hidden)] if inner else [adam]


class Run:
    """What is remembered between two sittings: the step that comes next, the losses, optimisers, weights, averages."""

    def __init__(self, plan: Plan, model: nn.Module, parameters: Sequence[Tensor], folder: Path) -> None:
        self.parameters, self.file = list(parameters), folder / f"{plan.name}.pt"
        self.optimisers = plan.optimisers(model, self.parameters)
        self.rates = [optimiser.param_groups[0]["lr"] for optimiser in self.optimisers]
        self.step, self.losses, self.saved = 0, list[float](), time.monotonic()
        self.averaged: AveragedModel | None = None
        if plan.average:
            average = get_ema_multi_avg_fn(plan.average)  # type: ignore[no-untyped-call]
            self.averaged = AveragedModel(model, multi_avg_fn=average)
        if self.file.is_file():
            self._resume()

    def _resume(self) -> None:
        kept = torch.load(self.file, weights_only=True)
        self.step, self.losses = kept["step"], kept["losses"]
        for optimiser, state in zip(self.optimisers, kept["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        with torch.no_grad():
            for parameter, value in zip(self.parameters, kept["parameters"], strict=True):
                parameter.copy_(value)
        if self.averaged:
            self.averaged.load_state_dict(kept["averaged"])

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {"step": self.step, "losses": self.losses, "parameters": self.parameters}
        state |= {"optimisers": [optimiser.state_dict() for optimiser in self.optimisers]}
        if self.averaged:
            state |= {"averaged": self.averaged.state_dict()}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, self.file.with_suffix(".part"))
        self.file.with_suffix(".part").replace(self.file)
        self.saved = time.monotonic()

    def update(self, share: float) -> None:
        """Change the weights by their gradients, at a share of the learning rates."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * share
            optimiser.step()
            optimiser.zero_grad()

    def recent(self, steps: int) -> float:
        """The mean loss of the last steps."""
        return sum(self.losses[-steps:]) / len(self.losses[-steps:])


def train(
    plan: Plan, model: nn.Module, parameters: Sequence[Tensor], loss: Callable[[int], Tensor], folder: Path
) -> float:
    """Train the parameters, which belong to the model, on `loss(step)`; returns the mean loss of the last tenth.

    A checkpoint in the folder is taken up where it stopped. The model is left with the averaged weights, if any.
    """
    plan = plan.shortened()
    run = Run(plan, model, parameters, folder)
    bar = tqdm(range(run.step, plan.steps), plan.name, plan.steps, initial=run.step, mininterval=2.0)
    for step in bar:
        value = loss(step)
        torch.autograd.backward(value)
        run.update(plan.at(step))
        if run.averaged:
            run.averaged.update_parameters(model)
        run.losses.append(value.item())
        run.step = step + 1
        bar.set_postfix(loss=f"{run.recent(50):.4f}", refresh=False)
        if time.monotonic() - run.saved > SAVE_EVERY or run.step == plan.steps:
            run.save()
    if run.averaged:
        model.load_state_dict(run.averaged.module.state_dict())
    return run.recent(max(1, plan.steps // 10))
