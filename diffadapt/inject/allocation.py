"""AdaLoRA's sharing out of ranks among the modules of an adapter, while it is trained.

After every step each singular triple of every module has a score: how sensitive the loss is to its numbers, smoothed,
times how uncertain that is. Between the beginning and the end of the schedule the budget of ranks falls along a cube
to its target, and the singular values of the worst triples are set to 0. Sources: AdaLoRA, arXiv 2303.10512; PEFT
`tuners/adalora`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from diffadapt.algorithms.adalora import AdaLoRA, Pruning
from diffadapt.inject.entry import Entry


class Allocation:
    """The ranks of one adapter in training."""

    def __init__(self, entries: Sequence[Entry], pruning: Pruning) -> None:
        self.entries, self.pruning = entries, pruning
        self.masks: list[Tensor] | None = None
        """Of every module which ranks are left, (r,), once the schedule has come to its end."""
        self._means: list[Tensor] = []
        self._doubts: list[Tensor] = []

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Self | None:
        """The allocation of an adapter's AdaLoRAs; None where there are none to be pruned."""
        chosen = [e for e in entries if isinstance(e.delta, AdaLoRA) and e.delta.pruning is not None]
        first = chosen[0].delta if chosen else None
        return cls(chosen, first.pruning) if isinstance(first, AdaLoRA) and first.pruning is not None else None

    @property
    def deltas(self) -> list[AdaLoRA]:
        """The deltas with their parameters as they are now."""
        return [delta for entry in self.entries if isinstance(delta := entry.now(), AdaLoRA)]

    def penalty(self) -> Tensor:
        """The mean distance of all A A^T and B^T B from the identity, times its weight."""
        terms = []
        for delta in self.deltas:
            eye = torch.eye(delta.rank, device=delta.down.device)
            terms += [(delta.down @ delta.down.T - eye).norm(), (delta.up.T @ delta.up - eye).norm()]
        return torch.stack(terms).mean() * self.pruning.orthogonality

    def budget(self, step: int, total: int) -> int:
        """How many ranks all modules have together after a step."""
        whole = sum(delta.rank for delta in self.deltas)
        target = self.pruning.target_rank * len(self.entries)
        first, last = self._span(total)
        if step <= first:
            return whole
        done = min(1.0, (step - first) / max(1, last - first))
        return int((whole - target) * (1 - done) ** 3 + target)

    def _span(self, total: int) -> tuple[int, int]:
        """The steps at which the pruning begins and ends."""
        return int(total * self.pruning.begin), total - int(total * self.pruning.end) - 1

    @torch.no_grad()
    def update(self, step: int, total: int) -> None:
        """After the optimizer's step, with the gradients of the step still there."""
        deltas = self.deltas
        if self.masks is None:
            self._observe(deltas)
            first, last = self._span(total)
            if step >= last or (step > first and step % self.pruning.every == 0):
                masks = self._masks(self.budget(step, total))
                self._apply(deltas, masks)
                self.masks = masks if step >= last else None
        else:
            self._apply(deltas, self.masks)

    def _observe(self, deltas: Sequence[AdaLoRA]) -> None:
        """Take the sensitivities |p dL/dp| of all numbers into the means, and how far they are off into the doubts."""
        beta1, beta2 = self.pruning.beta1, self.pruning.beta2
        parameters = [t for delta in deltas for t in (delta.down, delta.singular, delta.up)]
        now = [(t * t.grad).abs() if t.grad is not None else torch.zeros_like(t) for t in parameters]
        if not self._means:
            self._means = [torch.zeros_like(t) for t in parameters]
            self._doubts = [torch.zeros_like(t) for t in parameters]
        for mean, doubt, seen in zip(self._means, self._doubts, now, strict=True):
            mean.mul_(beta1).add_(seen, alpha=1 - beta1)
            doubt.mul_(beta2).add_((seen - mean).abs(), alpha=1 - beta2)

    def _masks(self, budget: int) -> list[Tensor]:
        """Which ranks of every module are among the `budget` best, (r,) each."""
        scores = [mean * doubt for mean, doubt in zip(self._means, self._doubts, strict=True)]
        triples = [
            singular.flatten() + down.mean(1) + up.mean(0)
            for down, singular, up in zip(scores[0::3], scores[1::3], scores[2::3], strict=True)
        ]
        every = torch.cat(triples)
        kept = torch.zeros(len(every), dtype=torch.bool, device=every.device)
        kept[every.topk(min(budget, len(every))).indices] = True
        return list(torch.split(kept, [len(t) for t in triples]))

    def _apply(self, deltas: Sequence[AdaLoRA], masks: Sequence[Tensor]) -> None:
        for delta, mask in zip(deltas, masks, strict=True):
            delta.singular.mul_(mask[:, None])

    # -- checkpoints -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """What the next update depends on."""
        state: dict[str, Tensor] = {}
        for name, tensors in (("mean", self._means), ("doubt", self._doubts), ("mask", self.masks or [])):
            state |= {f"allocation/{name}/{place}": tensor for place, tensor in enumerate(tensors)}
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave."""

        def named(name: str) -> list[Tensor]:
            keys = [key for key in state if key.startswith(f"allocation/{name}/")]
            return [state[f"allocation/{name}/{place}"].clone() for place in range(len(keys))]

        self._means, self._doubts = named("mean"), named("doubt")
        self.masks = named("mask") or None
