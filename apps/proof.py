"""Measures a promise: a mix merged into the weights draws what it draws live, and unmerging gives the base's bits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageChops
from torch import nn

from diffadapt import shapes

AGREE = 3
"""Largest difference of two pictures that is taken for rounding, of 255: both sum the same numbers in another order,
and every step of denoising goes on from there."""


@dataclass(frozen=True)
class Proof:
    """What was measured. difference: the largest of any colour of any pixel between the live and the merged picture, of
    255. changed: components whose weights did not have their old bits after unmerging. base_back: whether the picture
    without adapters is bit for bit what it was before."""

    mix: Mapping[str, float]
    live: Image.Image
    merged: Image.Image
    difference: int
    changed: tuple[str, ...]
    base_back: bool

    @property
    def holds(self) -> bool:
        return self.difference <= AGREE and not self.changed and self.base_back

    def __str__(self) -> str:
        mix = " + ".join(f"{name} {weight:g}" for name, weight in self.mix.items())
        bits = f"CHANGED in {', '.join(self.changed)}" if self.changed else "back in every component"
        return (
            f"Mix {mix}: the live and the merged picture differ by at most {self.difference} of 255.\n"
            f"Unmerged, the base's bits are {bits}; its picture is {'the same' if self.base_back else 'NOT the same'}."
        )


def fingerprints(pipe: Any) -> dict[str, str]:
    """Component -> SHA-256 over the names and the bits of all its weights."""
    return {name: _digest(part) for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def _digest(part: nn.Module) -> str:
    found = hashlib.sha256()
    for key, tensor in sorted(part.state_dict().items()):
        found.update(key.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def difference(a: Image.Image, b: Image.Image) -> int:
    """The largest difference of two pictures in any colour of any pixel, of 255."""
    return max(ImageChops.difference(a.convert("RGB"), b.convert("RGB")).tobytes())


def prove(
    pipe: Any, before: Mapping[str, str], mix: Mapping[str, float], prompt: str, seed: int = 0, **overrides: Any
) -> Proof:
    """Draw with a mix of loaded adapters, merge it, draw, unmerge, draw without it; the strengths are left at 0.

    before: the `fingerprints` of the pipeline as it was loaded. overrides: arguments of the pipeline's call.
    """
    pipe.adapters.set({})
    base = shapes.picture(pipe, prompt, seed, **overrides)
    pipe.adapters.set(mix)
    live = shapes.picture(pipe, prompt, seed, **overrides)
    pipe.adapters.merge()
    merged = shapes.picture(pipe, prompt, seed, **overrides)
    pipe.adapters.unmerge()
    pipe.adapters.set({})
    after = fingerprints(pipe)
    changed = tuple(name for name, old in before.items() if after.get(name) != old)
    back = shapes.picture(pipe, prompt, seed, **overrides)
    return Proof(mix, live, merged, difference(live, merged), changed, back.tobytes() == base.tobytes())
