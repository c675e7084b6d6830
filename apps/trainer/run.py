"""A run between its first step and its last: steps, the averaged weights, checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffadapt.errors import TrainingError

from . import beginning, checkpoints
from .kinds import Kind
from .lesson import Lesson, Texts
from .material import Material, Place
from .settings import Settings, Training


def optimizer_of(plan: Training, weights: Sequence[nn.Parameter], tokens: Sequence[nn.Parameter]) -> Any:
    """AdamW; placeholders at a rate of their own, and without decay, which would drag them to no word at all."""
    groups: list[dict[str, Any]] = []
    if weights:
        groups.append({"params": list(weights), "lr": plan.learning_rate})
    if tokens:
        rate = plan.token_learning_rate or plan.learning_rate
        groups.append({"params": list(tokens), "lr": rate, "weight_decay": 0.0})
    betas = (plan.betas[0], plan.betas[1])
    return torch.optim.AdamW(groups, plan.learning_rate, betas=betas, weight_decay=plan.weight_decay)


class Run:
    """What changes from step to step, and how it is kept."""

    def __init__(self, kind: Kind, settings: Settings, material: Sequence[Material], accelerator: Any) -> None:
        """The adapter is on the pipeline already. material: what each step has a batch of."""
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        self.kind, self.settings, self.material, self.accelerator = kind, settings, list(material), accelerator
        self.adapters, self.name, plan = kind.pipe.adapters, settings.name, settings.training
        self.parameters = [p for p in self.adapters.parameters(self.name) if p.requires_grad]
        tokens = [p for p in beginning.tokens(kind.pipe, self.name) if p.requires_grad]
        known = {id(token) for token in tokens}
        inner = optimizer_of(plan, [p for p in self.parameters if id(p) not in known], tokens)
        texts = Texts(kind, beginning.trains_text(kind.pipe, self.name))
        lesson = Lesson(kind, texts, settings.data.prompt_dropout, self.adapters, self.name)
        module = self.adapters.as_module(self.name, kind.denoiser, lesson)
        self.module, self.optimizer = accelerator.prepare(module, inner)
        self.schedule = get_scheduler(plan.schedule, inner, num_warmup_steps=plan.warmup, num_training_steps=plan.steps)
        self.ema = EMAModel(self.parameters, plan.ema) if plan.ema else None

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.schedule.get_last_lr()[0])

    def step(self, step: int) -> tuple[float, float]:
        """Make one step of the optimizer; the loss of its batches, and the norm of its gradients.

        Raises TrainingError for a loss or gradients that are no finite numbers; the weights are then as before.
        """
        plan, total, norm = self.settings.training, 0.0, 0.0
        for part in range(plan.accumulate):
            place = Place(
                self.settings.seed, step * plan.accumulate + part,
                self.accelerator.process_index, self.accelerator.num_processes,
            )  # fmt: skip
            batches = [material.batch(place, plan.batch) for material in self.material]
            with self.accelerator.accumulate(self.module):
                loss = self.module(batches, place)
                value = self._mean(loss)
                self._require_finite("loss", value, step)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    norm = self._update(step)
            total += value / plan.accumulate
        return total, norm

    def _mean(self, loss: Tensor) -> float:
        mean: Tensor = self.accelerator.reduce(loss.detach(), reduction="mean")
        return mean.item()

    def _update(self, step: int) -> float:
        plan = self.settings.training
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, plan.clip or math.inf))
        if self.accelerator.scaler is None:  # which leaves out such a step by itself, and scales less
            self._require_finite("gradient", norm, step)
        self.optimizer.step()
        skipped = self.optimizer.step_was_skipped
        if not skipped:
            self.adapters.allocate(step, plan.steps, self.name)
            if self.ema is not None:
                self.ema.step(self.parameters)
        self.schedule.step()
        self.optimizer.zero_grad()
        return norm if math.isfinite(norm) else 0.0

    def _require_finite(self, what: str, value: float, step: int) -> None:
        if math.isfinite(value):
            return
        plan, rate = self.settings.training, self.rate
        advice = [f"a lower training.learning_rate, such as {rate / 10:.1e}" if rate else "another seed"]
        advice += ["training.clip = 1.0"] if not plan.clip else []
        advice += ["training.mixed_precision = 'bf16' or 'no'"] if plan.mixed_precision == "fp16" else []
        advice += ["training.dtype = 'float32'"] if plan.dtype != "float32" else []
        raise TrainingError(
            f"Step {step + 1}: the {what} is {value} at a learning rate of {rate:.1e}. The checkpoints before it are "
            f"as they were, in {self.settings.out / 'checkpoints'}. Try {', or '.join(advice)}."
        )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The adapter with its averaged weights, where the run keeps some."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)

    def save(self, folder: Path, rest: Mapping[str, Any]) -> None:
        """Write all that the next step hangs on. rest: what else is remembered. Every process has to call it.

        Raises TrainingError for weights that are no finite numbers.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in self.parameters):
            raise TrainingError(
                f"The adapter's weights are no finite numbers any more, at a learning rate of {self.rate:.1e}. The "
                "checkpoints before are as they were. Try a lower training.learning_rate."
            )
        checkpoints.write_tensors(folder / f"random-{self.accelerator.process_index}.safetensors", checkpoints.draws())
        if not self.accelerator.is_main_process:
            return
        checkpoints.write_tensors(folder / "adapter.safetensors", self.adapters.state_dict(self.name))
        tensors, plain = checkpoints.split(self.optimizer.optimizer.state_dict())
        checkpoints.write_tensors(folder / "optimizer.safetensors", tensors)
        state: dict[str, Any] = {**rest, "optimizer": plain, "schedule": self.schedule.state_dict()}
        if self.ema is not None:
            averages = self.ema.state_dict()
            shadow = averages.pop("shadow_params")
            checkpoints.write_tensors(folder / "ema.safetensors", {str(n): t for n, t in enumerate(shadow)})
            state["ema"] = averages
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        (folder / checkpoints.STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote. Raises TrainingError for a broken checkpoint, StackError for another adapter's."""
        state = checkpoints.read_state(folder)
        self.adapters.load_state_dict(self.name, checkpoints.read_tensors(folder / "adapter.safetensors"))
        tensors = checkpoints.read_tensors(folder / "optimizer.safetensors")
        self.optimizer.optimizer.load_state_dict(checkpoints.joined(tensors, state["optimizer"]))
        self.schedule.load_state_dict(state["schedule"])
        if self.ema is not None:
            shadow = checkpoints.read_tensors(folder / "ema.safetensors")
            self.ema.load_state_dict({**state["ema"], "shadow_params": [shadow[str(n)] for n in range(len(shadow))]})
            self.ema.to(self.accelerator.device)
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        own = folder / f"random-{self.accelerator.process_index}.safetensors"
        checkpoints.set_draws(checkpoints.read_tensors(own))
