"""One step's loss: prompts, noise, the denoiser, the error; the forward that Accelerate wraps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .kinds import Kind, Text
from .material import Batch, Place


class Texts:
    """Prompts as the denoiser is told of them. Where no text encoder is trained, each is encoded once and kept."""

    def __init__(self, kind: Kind, trained: bool) -> None:
        self.kind, self.trained = kind, trained
        self.known: dict[str | None, Text] = {}

    def of(self, prompts: Sequence[str | None]) -> Text:
        """What the denoiser is told; None: that there is no prompt."""
        rows = self._anew(prompts) if self.trained else [self._kept(prompt) for prompt in prompts]
        return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))

    def _anew(self, prompts: Sequence[str | None]) -> list[Text]:
        """With gradients, all prompts in one call."""
        said = [prompt for prompt in prompts if prompt is not None]
        nothing = self.kind.nothing() if len(said) < len(prompts) else ()
        found = self.kind.text(said) if said else ()
        each = iter([tuple(part[row : row + 1] for part in found) for row in range(len(said))])
        return [nothing if prompt is None else next(each) for prompt in prompts]

    @torch.no_grad()
    def _kept(self, prompt: str | None) -> Text:
        if prompt not in self.known:
            found = self.kind.nothing() if prompt is None else self.kind.text([prompt])
            self.known[prompt] = tuple(part.cpu() for part in found)
        return tuple(part.to(self.kind.pipe.device) for part in self.known[prompt])


class Lesson:
    """Calls the pipeline's parts and gives a loss."""

    def __init__(self, kind: Kind, texts: Texts, dropout: float, adapters: Any, name: str) -> None:
        """dropout: the share of prompts that are left out. adapters, name: whose penalty is added."""
        self.kind, self.texts, self.dropout = kind, texts, dropout
        self.adapters, self.name = adapters, name

    def __call__(self, batches: Sequence[Batch], place: Place) -> Tensor:
        """The loss of batches, each by its weight, and what the method wants added."""
        terms = [batch.weight * self.error(batch, place, str(number)) for number, batch in enumerate(batches)]
        penalty = self.adapters.penalty(self.name)
        loss: Tensor = sum(terms[1:], terms[0]) + penalty.to(terms[0].device)
        return loss

    def error(self, batch: Batch, place: Place, what: str) -> Tensor:
        """The mean squared error of a batch. what: sets its noise apart from that of others in the same place."""
        unsaid = torch.rand(len(batch.captions), generator=place.generator(f"prompts {what}")) < self.dropout
        prompts = [None if left else said for left, said in zip(unsaid.tolist(), batch.captions, strict=True)]
        device = self.kind.pipe.device
        noised = self.kind.objective(batch.size).noised(batch.clean.to(device), place.generator(f"noise {what}"))
        dtype = getattr(self.kind.model, "dtype", torch.float32)
        text = tuple(part.to(dtype) for part in self.texts.of(prompts))
        return noised.error(self.kind.predict(noised.noisy.to(dtype), noised.times, text, batch.sizes))
