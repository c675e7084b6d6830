"""Which pictures the demo makes: of every adapter alone, of pairs, and of one adapter at several strengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from diffadapt.shapes import Sample

PAIRS = (("outline", "dusk"), ("stripes", "frame"))
"""Adapters to mix: what the first changes leaves room for the second."""

SWEPT = "glow"
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
"""The adapter whose strength is varied, and its strengths."""


class Shot(NamedTuple):
    """A picture to make: adapters and their strengths, and a prompt."""

    mix: tuple[tuple[str, float], ...]
    prompt: str


@dataclass(frozen=True)
class Wishes:
    """What the command was asked for. prompt: for all adapters whose trigger word (if any) is in it; None: each one's
    own. merged: the pictures are made with merged weights, not live. steps: of denoising; None: as recommended."""

    prompt: str | None = None
    seed: int = 0
    merged: bool = False
    steps: int | None = None

    def text(self, sample: Sample) -> str:
        """The prompt for an adapter's picture."""
        return sample.prompt if self.prompt is None or sample.trigger not in self.prompt else self.prompt

    @property
    def overrides(self) -> dict[str, Any]:
        """Arguments for the pipeline's call."""
        return {} if self.steps is None else {"num_inference_steps": self.steps}


def pairs(samples: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """Two pairs to mix: those of PAIRS that are there, else neighbours."""
    known = {sample.name: sample for sample in samples}
    chosen = [(known[a], known[b]) for a, b in PAIRS if a in known and b in known]
    rest = [sample for sample in samples if not sample.trigger and not any(sample in pair for pair in chosen)]
    return [*chosen, *zip(rest[::2], rest[1::2], strict=False)][: len(PAIRS)]


def swept(samples: Sequence[Sample]) -> Sample:
    """The adapter whose strength is varied."""
    return next((sample for sample in samples if sample.name == SWEPT), samples[0])


def alone(sample: Sample, wishes: Wishes) -> tuple[Shot, Shot]:
    """The base's picture, and the one with an adapter."""
    return strengths(sample, 0.0, wishes), strengths(sample, 1.0, wishes)


def mixed(first: Sample, second: Sample, wishes: Wishes) -> tuple[Shot, ...]:
    """The base's picture, those with each of two adapters, and the one with both."""
    mixes = ((), ((first.name, 1.0),), ((second.name, 1.0),), ((first.name, 1.0), (second.name, 1.0)))
    return tuple(Shot(mix, wishes.text(first)) for mix in mixes)


def strengths(sample: Sample, weight: float, wishes: Wishes) -> Shot:
    """The picture with one adapter at a weight; at 0 it is the base's."""
    return Shot(((sample.name, weight),) if weight else (), wishes.text(sample))


def every(samples: Sequence[Sample], wishes: Wishes) -> list[Shot]:
    """Every picture of the sheet."""
    shots = [shot for sample in samples for shot in alone(sample, wishes)]
    shots += [shot for pair in pairs(samples) for shot in mixed(*pair, wishes)]
    return shots + [strengths(swept(samples), weight, wishes) for weight in WEIGHTS]
