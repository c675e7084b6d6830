"""What is learnt from: the pictures, encoded once, in an order that hangs on the seed and a step's number alone."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from diffadapt.errors import TrainingError

from .kinds import Kind, Sizes
from .pictures import Example, buckets, cropped, fitting, opened, pixels
from .settings import Data


@dataclass(frozen=True)
class Batch:
    """Pictures of one size. clean: latents (n, C, h, w). sizes: of the files' pictures. size: in pixels, of all.
    weight: of their loss."""

    clean: Tensor
    captions: list[str]
    sizes: Sizes
    size: tuple[int, int]
    weight: float = 1.0


@dataclass(frozen=True)
class Place:
    """Which batch it is: its number in the run, and which of the processes takes it."""

    seed: int
    position: int
    process: int = 0
    processes: int = 1

    def generator(self, what: str) -> torch.Generator:
        """A generator for one purpose, the same whenever the run comes here."""
        mixed = random.Random(f"{self.seed} {what} {self.position} {self.process}").getrandbits(62)
        return torch.Generator().manual_seed(mixed)


class Material:
    """Encoded pictures with captions. Nothing of it changes while it is read."""

    def __init__(
        self,
        kind: Kind,
        examples: Sequence[Example],
        data: Data,
        name: str = "pictures",
        weight: float = 1.0,
        quiet: bool = False,
    ) -> None:
        """Encode the pictures, which are kept as latents in the main memory.

        name: sets what is drawn for these pictures apart from what is drawn for others.
        Raises TrainingError for a resolution that the model cannot have.
        """
        multiple, side = kind.multiple, data.resolution
        if side % multiple:
            near = max(multiple, round(side / multiple) * multiple)
            raise TrainingError(f"data.resolution is {side}; the model needs a multiple of {multiple}, such as {near}.")
        self.examples, self.name, self.weight = list(examples), name, weight
        sizes = buckets(side, multiple) if data.buckets else [(side, side)]
        self.sizes = [fitting(example.size, sizes) for example in self.examples]
        self.groups: dict[tuple[int, int], list[int]] = {}
        for row, size in enumerate(self.sizes):
            self.groups.setdefault(size, []).append(row)
        self.latents: list[Tensor] = []
        self.mirrored: list[Tensor] = []
        pairs = zip(self.examples, self.sizes, strict=True)
        for example, size in tqdm(pairs, "encoding", len(self.examples), delay=3.0, disable=quiet, file=sys.stderr):
            seen = pixels(cropped(opened(example.path), size))
            self.latents.append(kind.encode(seen)[0].cpu())
            if data.flip:
                self.mirrored.append(kind.encode(seen.flip(3))[0].cpu())

    def rows(self, place: Place, count: int) -> list[int]:
        """The pictures of a batch of `count` for each process.

        All are shown once before any is shown again, but for those that fill up the last batch of a size.
        """
        whole = count * place.processes
        each = sum(-(-len(group) // whole) for group in self.groups.values())
        epoch, number = divmod(place.position, each)
        drawn = random.Random(f"{place.seed} order {epoch} {self.name}")
        found: list[list[int]] = []
        for group in self.groups.values():
            order = drawn.sample(group, len(group))
            for start in range(0, len(order), whole):
                found.append([order[(start + step) % len(order)] for step in range(whole)])
        drawn.shuffle(found)
        return found[number][place.process :: place.processes]

    def batch(self, place: Place, count: int) -> Batch:
        """A batch; its pictures are mirrored or not at random, where that is asked for."""
        rows = self.rows(place, count)
        turned = torch.rand(len(rows), generator=place.generator(f"flip {self.name}")) < 0.5
        clean = [
            self.mirrored[row] if self.mirrored and turn else self.latents[row]
            for row, turn in zip(rows, turned.tolist(), strict=True)
        ]
        chosen = [self.examples[row] for row in rows]
        captions, sizes = [example.caption for example in chosen], [example.size for example in chosen]
        return Batch(torch.stack(clean), captions, sizes, self.sizes[rows[0]], self.weight)
