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

SAVE_EVERY = 60.0
"""Seconds between two checkpoints."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast one thing is trained.

    average: decay of the averaged weights; 0: none are kept. before: an earlier round, (its steps, those of them that
    are done): the learning rate falls as if it were to last so long, then the last round of `steps` starts anew.
    """

    name: str
    steps: int
    rate: float
    warmup: int = 50
    average: float = 0.0
    decay: float = 0.0
    before: tuple[int, int] = (0, 0)

    @property
    def total(self) -> int:
        """The steps of all rounds."""
        return self.before[1] + self.steps

    def at(self, step: int) -> float:
        """The learning rate of a step: a short rise, then in each round half a cosine down to a fiftieth."""
        rise = min(1.0, (step + 1) / self.warmup)
        length, done = self.before
        share = step / length if step < done else (step - done) / self.steps
        return self.rate * rise * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)

    def shortened(self) -> Plan:
        """The plan with the share of its steps that is asked for."""
        if effort.share == 1.0:
            return self
        return replace(self, steps=effort.some(self.total, 2), before=(0, 0))


class Run:
    """What is remembered between two sittings: the step that comes next, the losses, optimiser, weights, averages."""

    def __init__(self, plan: Plan, model: nn.Module, parameters: Sequence[Tensor], folder: Path) -> None:
        self.parameters, self.file = list(parameters), folder / f"{plan.name}.pt"
        self.optimiser = torch.optim.AdamW(
            self.parameters, plan.rate, betas=(0.9, 0.99), weight_decay=plan.decay, fused=True
        )
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
        self.optimiser.load_state_dict(kept["optimiser"])
        with torch.no_grad():
            for parameter, value in zip(self.parameters, kept["parameters"], strict=True):
                parameter.copy_(value)
        if self.averaged:
            self.averaged.load_state_dict(kept["averaged"])

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {"step": self.step, "losses": self.losses, "parameters": self.parameters}
        state |= {"optimiser": self.optimiser.state_dict()}
        if self.averaged:
            state |= {"averaged": self.averaged.state_dict()}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, self.file.with_suffix(".part"))
        self.file.with_suffix(".part").replace(self.file)
        self.saved = time.monotonic()

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
    bar = tqdm(range(run.step, plan.total), plan.name, plan.total, initial=run.step, mininterval=2.0)
    for step in bar:
        for group in run.optimiser.param_groups:
            group["lr"] = plan.at(step)
        value = loss(step)
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(run.parameters, 1.0)
        run.optimiser.step()
        run.optimiser.zero_grad()
        if run.averaged:
            run.averaged.update_parameters(model)
        run.losses.append(value.item())
        run.step = step + 1
        bar.set_postfix(loss=f"{run.recent(50):.4f}", refresh=False)
        if time.monotonic() - run.saved > SAVE_EVERY or run.step == plan.total:
            run.save()
    if run.averaged:
        model.load_state_dict(run.averaged.module.state_dict())
    return run.recent(max(1, plan.total // 10))
