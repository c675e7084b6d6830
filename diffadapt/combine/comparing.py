"""`compare`: where adapters act, where they meet, and what of that is likely to clash, before a picture is made.

What it calls a clash and an outlier are rules of thumb with the numbers below; the numbers themselves are all there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffadapt.adapter import Adapter
from diffadapt.combine.analysis import (
    Block,
    Field,
    Matrix,
    Place,
    Similarity,
    columns,
    cosines,
    of_grams,
    plain_matrix,
)
from diffadapt.combine.change import Change, Leading
from diffadapt.combine.walking import label
from diffadapt.errors import CombineError

DIRECTIONS = 4
"""How many leading singular directions of each change are compared."""
OPPOSED, ALIKE, CROWDED = -0.2, 0.5, 0.3
"""A cosine in a block of at most, or at least, so much; an overlap of leading directions of at least so much."""
LARGE = 0.5
"""A block is large for an adapter where it has this share of the energy that an even spread over blocks would give."""
DOMINANT = 0.9
"""The share of a layer's energy in its largest singular value, of at least four, that is named."""
FAR, FACTOR = 5.0, 4.0
"""A norm is far from the median by so many robust deviations of the logarithms, and by this factor at least."""


@dataclass(frozen=True)
class BlockRow:
    """What n adapters do in one block, weights included.

    energy: the squared Frobenius norm of each. share: of each adapter's own energy over all blocks. cosine: of the
    changes in this block. shared: for each pair, the energy (as shares of each adapter's) that lies on the same
    layers, sum of min(share_i, share_j); summed over blocks it is between 0 and 1. directions: for each pair, how much
    of the leading singular directions coincides, 0 to 1, mean of the input and the output side, weighted by energy.
    """

    block: Block
    energy: tuple[float, ...]
    share: tuple[float, ...]
    cosine: Matrix
    shared: Matrix
    directions: Matrix

    @property
    def norms(self) -> tuple[float, ...]:
        """The Frobenius norm of each change."""
        return tuple(math.sqrt(one) for one in self.energy)


class Clash(NamedTuple):
    """Two adapters in a block that is large for both. kind: "opposed" (they cancel), "alike" (they add up to too much),
    "crowded" (they act on the same directions, to different ends). value: the cosine or the overlap of directions."""

    kind: str
    adapters: tuple[str, str]
    block: Block
    value: float


class Outlier(NamedTuple):
    """A layer unlike the rest of its adapter. kind: "dominant" (value: the share of the energy in one singular value)
    or "norm" (value: the Frobenius norm by the adapter's median)."""

    kind: str
    adapter: str
    target: str
    value: float


@dataclass(frozen=True)
class Comparison:
    """What adapters at given weights do to one another. similarity: without the weights; a negative weight turns the
    cosines of the rows (not those of `similarity`) around."""

    similarity: Similarity
    weights: tuple[float, ...]
    rows: tuple[BlockRow, ...]
    clashes: tuple[Clash, ...]
    outliers: tuple[Outlier, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return self.similarity.names

    @property
    def shared(self) -> Matrix:
        """For each pair, how much of their energy lies on the same layers, 0 to 1."""
        total = torch.zeros(len(self.names), len(self.names), dtype=torch.float64)
        for row in self.rows:
            total += torch.tensor(row.shared, dtype=torch.float64)
        return _matrix(total)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {
            "similarity": self.similarity.to_dict(),
            "weights": list(self.weights),
            "shared": plain_matrix(self.shared),
            "blocks": [
                {
                    **row.block._asdict(), "energy": list(row.energy), "share": list(row.share),
                    "cosine": plain_matrix(row.cosine), "shared": plain_matrix(row.shared),
                    "directions": plain_matrix(row.directions),
                }
                for row in self.rows
            ],
            "clashes": [
                {**clash._asdict(), "adapters": list(clash.adapters), "block": clash.block._asdict()}
                for clash in self.clashes
            ],
            "outliers": [outlier._asdict() for outlier in self.outliers],
        }  # fmt: skip

    def __str__(self) -> str:
        numbers = [str(n + 1) for n in range(len(self.names))]
        pairs = [(i, j) for i in range(len(numbers)) for j in range(i)]
        cells = [["component", "block", *(f"share {n}" for n in numbers),
                  *(f"cosine {j + 1},{i + 1}" for i, j in pairs)]]  # fmt: skip
        for row in self.rows:
            angles = [f"{row.cosine[i][j]:+.3f}" for i, j in pairs]
            cells.append([row.block.component, row.block.block, *(f"{part:.1%}" for part in row.share), *angles])
        lines = [str(self.similarity), "", "share of each adapter's energy, and cosines, by block", *columns(cells)]
        for kind, pair, block, value in self.clashes:
            lines.append(f"{kind}: {pair[0]} and {pair[1]} in {block.component} {block.block} ({value:+.2f})")
        said = {"dominant": "of the energy in one direction", "norm": "times the median norm"}
        lines += [f"outlier: {o.adapter} at {o.target}: {o.value:.3g} {said[o.kind]}" for o in self.outliers]
        return "\n".join(lines)


def compare(
    adapters: Mapping[Adapter, float] | Iterable[Adapter], weights: Sequence[float] | None = None, *, base: Any = None
) -> Comparison:
    """Where adapters act, where they meet, and what is likely to clash.

    adapters: with weights as adapter -> weight, or in `weights` (default: 1 each). base: a pipeline with the base
    weights, wanted only where changes depend on them; without it these are named in `similarity.left_out`. Raises
    CombineError for no adapters, such of different models, and another number of weights.
    """
    if isinstance(adapters, Mapping):
        weights = [*adapters.values()] if weights is None else weights
    field = Field([*adapters], base)
    given = [1.0] * len(field.names) if weights is None else [float(weight) for weight in weights]
    if len(given) != len(field.names):
        raise CombineError(f"there are {len(field.names)} adapters and {len(given)} weights.")
    work = _Work(field, given)
    for place in field.places():
        work.take(place)
    return work.comparison()


class _Work:
    """A comparison under way."""

    def __init__(self, field: Field, weights: Sequence[float]) -> None:
        self.field, self.weights = field, torch.tensor(weights, dtype=torch.float64)
        self.grams: dict[Block, Tensor] = {}
        self.overlaps: dict[Block, Tensor] = {}
        self.masses: dict[Block, Tensor] = {}
        self.energies: list[tuple[Block, Tensor]] = []
        self.norms: dict[int, dict[str, float]] = {}
        self.dominant: list[Outlier] = []

    def take(self, place: Place) -> None:
        """Measure one target."""
        gram = self.field.gram(place.changes)
        zero = torch.zeros_like(gram)
        self.grams[place.block] = self.grams.get(place.block, zero) + gram
        self.energies.append((place.block, gram.diagonal() * self.weights.square()))
        leading = {number: change.leading(DIRECTIONS) for number, change in place.changes.items()}
        mass = gram.diagonal()[:, None].mul(gram.diagonal()[None, :]).clamp(min=0).sqrt()
        overlap = _overlaps(leading, len(self.field.names))
        self.overlaps[place.block] = self.overlaps.get(place.block, zero) + mass * overlap
        self.masses[place.block] = self.masses.get(place.block, zero) + mass
        for number, change in place.changes.items():
            self._layer(number, label(place.name), change, leading[number], float(gram[number, number]))

    def _layer(self, number: int, target: str, change: Change, leading: Leading, square: float) -> None:
        self.norms.setdefault(number, {})[target] = square**0.5
        if change.rank >= DIRECTIONS and square:
            share = float(leading.values[0]) ** 2 / square
            if share >= DOMINANT:
                self.dominant.append(Outlier("dominant", self.field.names[number], target, share))

    def comparison(self) -> Comparison:
        similarity = of_grams(self.field, self.grams)
        rows = self._rows()
        clashes = sorted(self._clashes(rows), key=lambda clash: -abs(clash.value))
        far = [outlier for number, norms in self.norms.items() for outlier in _far(self.field.names[number], norms)]
        far.sort(key=lambda outlier: -abs(math.log(outlier.value)))
        dominant = sorted(self.dominant, key=lambda outlier: -outlier.value)
        return Comparison(similarity, tuple(self.weights.tolist()), rows, tuple(clashes), (*far, *dominant))

    def _rows(self) -> tuple[BlockRow, ...]:
        total = sum((energy for _, energy in self.energies), torch.zeros_like(self.weights))
        inverse = torch.where(total > 0, 1 / total, 0.0)
        shared = {block: torch.zeros_like(gram) for block, gram in self.grams.items()}
        for block, energy in self.energies:
            part = energy * inverse
            shared[block] += torch.minimum(part[:, None], part[None, :])
        signs = torch.outer(self.weights, self.weights)
        rows = []
        for block, gram in self.grams.items():
            energy = gram.diagonal() * self.weights.square()
            mass = self.masses[block]
            directions = torch.where(mass > 0, self.overlaps[block] / mass, 0.0)
            rows.append(
                BlockRow(block, tuple(energy.tolist()), tuple((energy * inverse).tolist()), cosines(gram * signs),
                         _matrix(shared[block]), _matrix(directions))
            )  # fmt: skip
        return tuple(rows)

    def _clashes(self, rows: Sequence[BlockRow]) -> Iterator[Clash]:
        names = self.field.names
        for row in rows:
            large = [share >= LARGE / len(rows) and share > 0 for share in row.share]
            for i in range(len(names)):
                for j in range(i + 1, len(names)):
                    if not (large[i] and large[j]):
                        continue
                    cosine, directions = row.cosine[i][j], row.directions[i][j]
                    pair = (names[i], names[j])
                    if cosine <= OPPOSED:
                        yield Clash("opposed", pair, row.block, cosine)
                    elif cosine >= ALIKE:
                        yield Clash("alike", pair, row.block, cosine)
                    elif directions >= CROWDED:
                        yield Clash("crowded", pair, row.block, directions)


def _overlaps(leading: Mapping[int, Leading], count: int) -> Tensor:
    """How much of the leading directions of each pair coincides: |U_i' U_j|^2 by the smaller number of directions."""
    found = torch.zeros(count, count, dtype=torch.float64)
    for i, one in leading.items():
        for j, other in leading.items():
            if j < i:
                continue
            size = min(len(one.values), len(other.values)) or 1
            left = (one.left.double().T @ other.left.double()).square().sum()
            right = (one.right.double().T @ other.right.double()).square().sum()
            found[i, j] = found[j, i] = float(left + right) / (2 * size)
    return found


def _far(name: str, norms: Mapping[str, float]) -> Iterator[Outlier]:
    """The layers whose norm is far from the median of those that do anything."""
    logs = {target: math.log(norm) for target, norm in norms.items() if norm > 0}
    if len(logs) < 4:
        return
    middle = median(logs.values())
    # 1.4826 times the median deviation is the standard deviation of a normal distribution.
    spread = 1.4826 * median(abs(value - middle) for value in logs.values())
    for target, value in logs.items():
        if abs(value - middle) > max(FAR * spread, math.log(FACTOR)):
            yield Outlier("norm", name, target, math.exp(value - middle))


def _matrix(values: Tensor) -> Matrix:
    return tuple(map(tuple, values.tolist()))
