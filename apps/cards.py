"""What the demo's sheet shows, as rows of cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from diffadapt.shapes import Sample

from .proof import Proof
from .sheet import Card, Row
from .shots import WEIGHTS, Shot, Wishes, alone, mixed, pairs, strengths, swept

if TYPE_CHECKING:
    from PIL.Image import Image


def rows(samples: Sequence[Sample], made: Mapping[Shot, Image], proof: Proof | None, wishes: Wishes) -> list[Row]:
    """The rows of the sheet. made: all of `shots.every`."""
    single = tuple(_alone(sample, [made[shot] for shot in alone(sample, wishes)], wishes) for sample in samples)
    found = [Row("Each adapter at strength 1, beside the base: same prompt, same noise", single)]
    two = tuple(_mixed(pair, [made[shot] for shot in mixed(*pair, wishes)], wishes) for pair in pairs(samples))
    if two:
        found.append(Row("Two at once", two))
    one = swept(samples)
    last = [_swept(one, [made[strengths(one, weight, wishes)] for weight in WEIGHTS], wishes)]
    last += [_proved(proof)] if proof else []
    return [*found, Row("Strengths, and a merge" if proof else "Strengths", tuple(last))]


def _alone(sample: Sample, pictures: Sequence[Image], wishes: Wishes) -> Card:
    score = f"score {sample.score_without:.2f}, with it {sample.score_with:.2f}"
    lines = (sample.concept, f"“{wishes.text(sample)}”", f"{sample.trainer} · {sample.layout}", score)
    shown = tuple(zip(pictures, ("base", sample.name), strict=True))
    return Card(sample.name, shown, sample.algorithm, lines)


def _mixed(pair: tuple[Sample, Sample], pictures: Sequence[Image], wishes: Wishes) -> Card:
    first, second = pair
    captions = ("base", f"{first.name} 1", f"{second.name} 1", f"{first.name} 1, {second.name} 1")
    shown = tuple(zip(pictures, captions, strict=True))
    badge = f"{first.algorithm} + {second.algorithm}"
    return Card(f"{first.name} + {second.name}", shown, badge, (f"“{wishes.text(first)}”",))


def _swept(sample: Sample, pictures: Sequence[Image], wishes: Wishes) -> Card:
    shown = tuple(zip(pictures, [f"{sample.name} {weight:g}" for weight in WEIGHTS], strict=True))
    return Card(f"{sample.name}, from 0 to {WEIGHTS[-1]:g}", shown, sample.algorithm, (f"“{wishes.text(sample)}”",))


def _proved(proof: Proof) -> Card:
    bits = "Unmerged, the base's bits are back." if not proof.changed else "Unmerged, the base's bits are NOT back."
    lines = (f"They differ by at most {proof.difference} of 255. {bits}",)
    return Card(" + ".join(proof.mix), ((proof.live, "live"), (proof.merged, "merged")), lines=lines)
