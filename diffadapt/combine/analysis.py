"""How adapters relate before a picture is made: `similarity` (cosines of what they do to the weights) and `balance`.

An adapter is taken as the one long vector of all its weight changes (norms' weights too, biases not), at strength 1 on
every target; two that share no target are at right angles. Inner products of low-rank changes come from small products
of their factors, so that whole SDXL and Flux adapters take seconds and no dense change is ever made of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffadapt.adapter import Adapter
from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.full import Full
from diffadapt.combine.change import Change, change_of, inner
from diffadapt.combine.ground import Ground
from diffadapt.combine.part import Part, shape_of
from diffadapt.combine.walking import Name, block_of, deltas_of, label
from diffadapt.errors import AlgorithmError, CombineError, MergeError

Matrix = tuple[tuple[float, ...], ...]


class Block(NamedTuple):
    """A part of a model: ("unet", "down_blocks.1")."""

    component: str
    block: str


@dataclass(frozen=True)
class Similarity:
    """Cosines of n adapters, between -1 (they cancel) and 1 (the same direction); 0 where either does nothing.

    names: of the adapters, made different by a number where two are the same. matrix: of whole adapters, n rows of n.
    components, blocks: the same for the parts of the model alone. norms: the Frobenius norm of each whole adapter.
    left_out: adapter -> target -> why it was not measured.
    """

    names: tuple[str, ...]
    matrix: Matrix
    components: Mapping[str, Matrix]
    blocks: Mapping[Block, Matrix]
    norms: tuple[float, ...]
    left_out: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {
            "names": list(self.names),
            "matrix": plain_matrix(self.matrix),
            "components": {name: plain_matrix(matrix) for name, matrix in self.components.items()},
            "blocks": [{**key._asdict(), "matrix": plain_matrix(matrix)} for key, matrix in self.blocks.items()],
            "norms": list(self.norms),
            "left_out": {name: dict(found) for name, found in self.left_out.items()},
        }

    def __str__(self) -> str:
        rows = [["", *(str(n + 1) for n in range(len(self.names))), "norm"]]
        for number, (name, row) in enumerate(zip(self.names, self.matrix, strict=True)):
            rows.append([f"{number + 1} {name}", *(f"{value:+.3f}" for value in row), f"{self.norms[number]:.4g}"])
        return "\n".join(["cosine of whole adapters", *columns(rows), *left_out_lines(self.left_out)])


class Place(NamedTuple):
    """A target and the changes that adapters make there: index of the adapter -> change."""

    name: Name
    block: Block
    changes: Mapping[int, Change]


class Field:
    """Several adapters over the same targets. left_out fills while `places` runs."""

    def __init__(self, adapters: Sequence[Adapter], base: Any) -> None:
        if not adapters:
            raise CombineError("there is nothing to compare; give at least one adapter.")
        self.adapters, self.names = tuple(adapters), labels(adapters)
        families = dict.fromkeys(family for adapter in adapters for family in adapter.candidates)
        self._ground = Ground(base, tuple(families))
        self.left_out: dict[str, dict[str, str]] = {}

    def places(self) -> Iterator[Place]:
        """Every target that any adapter changes the weight of, one after the other.

        Raises CombineError where adapters change one weight in different shapes: they are for different models.
        """
        found: dict[Name, dict[int, Delta]] = {}
        for number, adapter in enumerate(self.adapters):
            for name, delta in deltas_of(adapter):
                if not isinstance(delta, Full) or delta.changes_weight:
                    found.setdefault(name, {})[number] = delta
        for name, deltas in found.items():
            changes = self._changes(name, deltas)
            if changes:
                yield Place(name, Block(name.component or "model", block_of(name.module)), changes)

    def _changes(self, name: Name, deltas: Mapping[int, Delta]) -> dict[int, Change]:
        known = self._ground.shape(name)
        if known is None and all(delta.shape_alone is None for delta in deltas.values()):
            for number, delta in deltas.items():
                self._leave(number, name, f"the {delta.algorithm} depends on the base weight; give base=pipe")
            return {}
        try:
            shape = shape_of([*deltas.values()], known, self._ground.usual_shapes(name))
        except CombineError as error:
            raise CombineError(f"{label(name)}: {error}") from error
        changes: dict[int, Change] = {}
        for number, delta in deltas.items():
            owner = self.adapters[number].source
            if delta.live_only is not None:
                self._leave(number, name, delta.live_only)
                continue
            part = Part(owner, delta, 1.0, shape, partial(self._ground.weight, name, owner, delta))
            try:
                changes[number] = change_of(part)
            except (AlgorithmError, CombineError, MergeError) as error:
                self._leave(number, name, str(error))
        return changes

    def _leave(self, number: int, name: Name, why: str) -> None:
        self.left_out.setdefault(self.names[number], {})[label(name)] = why

    def gram(self, changes: Mapping[int, Change]) -> Tensor:
        """The inner products at one target, (n, n) in float64; 0 for adapters that are not there."""
        gram = torch.zeros(len(self.adapters), len(self.adapters), dtype=torch.float64)
        for i, one in changes.items():
            gram[i, i] = one.squared()
            for j, other in changes.items():
                if j > i:
                    gram[i, j] = gram[j, i] = inner(one, other)
        return gram


def similarity(adapters: Iterable[Adapter], *, base: Any = None) -> Similarity:
    """How alike adapters are: the cosines of what they do to the weights, whole and by part of the model.

    base: a pipeline (or model) with the base weights, wanted only where changes depend on them; without it these are
    named in `left_out`. Raises CombineError for no adapters, and for such of different models.
    """
    field_ = Field([*adapters], base)
    grams: dict[Block, Tensor] = {}
    for place in field_.places():
        gram = field_.gram(place.changes)
        grams[place.block] = grams[place.block] + gram if place.block in grams else gram
    return of_grams(field_, grams)


def of_grams(field_: Field, grams: Mapping[Block, Tensor]) -> Similarity:
    """The similarity of inner products that were summed by block."""
    count = len(field_.names)
    nothing = torch.zeros(count, count, dtype=torch.float64)
    whole = sum(grams.values(), nothing)
    parts = {
        part: sum((gram for block, gram in grams.items() if block.component == part), nothing)
        for part in dict.fromkeys(block.component for block in grams)
    }
    return Similarity(
        field_.names,
        cosines(whole),
        {part: cosines(gram) for part, gram in parts.items()},
        {block: cosines(gram) for block, gram in grams.items()},
        tuple(whole.diagonal().sqrt().tolist()),
        field_.left_out,
    )


def balance(
    adapters: Mapping[Adapter, float] | Iterable[Adapter],
    rule: str = "constant_total",
    total: float = 1.0,
    *,
    base: Any = None,
) -> dict[str, float]:
    """Weights by adapter's name whose sum is `total`.

    adapters: in equal shares, or adapter -> the size of its share (2:1 is the same as 10:5; none negative).
    "constant_total": a share of the total each, so that more adapters do not mean a stronger mix. "equal_effect":
    weight times Frobenius norm of the whole change is in proportion to the shares, so that a loud adapter does not
    drown a quiet one. base: the pipeline, for changes that depend on its weights. Raises CombineError for an unknown
    rule, for shares or changes that sum to nothing, and where a change cannot be measured.
    """
    shares = dict(adapters) if isinstance(adapters, Mapping) else dict.fromkeys(adapters, 1.0)
    if rule not in ("constant_total", "equal_effect"):
        raise CombineError(f"no rule is called {rule!r}; there are constant_total and equal_effect.")
    if not shares or min(shares.values()) < 0 or not sum(shares.values()):
        raise CombineError(f"the shares are {[*shares.values()]}; expected none below 0, and some above.")
    names, parts = labels([*shares]), [*shares.values()]
    if rule == "equal_effect":
        norms = _norms([*shares], base)
        silent = [name for name, norm in zip(names, norms, strict=True) if not norm]
        if silent:
            raise CombineError(f"{', '.join(silent)} changes no weight, so no strength makes it equal to others.")
        parts = [part / norm for part, norm in zip(parts, norms, strict=True)]
    return {name: total * part / sum(parts) for name, part in zip(names, parts, strict=True)}


def _norms(adapters: Sequence[Adapter], base: Any) -> list[float]:
    """The norm of each whole adapter. Raises CombineError where a part of one cannot be measured."""
    field_ = Field(adapters, base)
    squares = [0.0] * len(adapters)
    for place in field_.places():
        for number, change in place.changes.items():
            squares[number] += change.squared()
    if field_.left_out:
        raise CombineError("; ".join(left_out_lines(field_.left_out)))
    return [square**0.5 for square in squares]


def labels(adapters: Iterable[Adapter]) -> tuple[str, ...]:
    """The adapters' names, with a number where one comes again."""
    seen: Counter[str] = Counter()
    found = []
    for adapter in adapters:
        seen[adapter.name] += 1
        found.append(adapter.name if seen[adapter.name] == 1 else f"{adapter.name} ({seen[adapter.name]})")
    return tuple(found)


def cosines(gram: Tensor) -> Matrix:
    """The cosines of inner products; 0 with what has no length."""
    norms = gram.diagonal().clamp(min=0).sqrt()
    scale = torch.where(norms > 0, 1 / norms, 0.0)
    return tuple(map(tuple, (gram * scale[:, None] * scale[None, :]).clamp(-1, 1).tolist()))


def plain_matrix(matrix: Matrix) -> list[list[float]]:
    """A matrix as lists."""
    return [list(row) for row in matrix]


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, in columns as wide as needed."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def left_out_lines(left_out: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A line for each reason why changes of an adapter were not measured, with the first of their names."""
    lines = []
    for name, found in left_out.items():
        for why, count in Counter(found.values()).items():
            targets = [target for target, reason in found.items() if reason == why]
            more = f" and {count - 3} more" if count > 3 else ""
            lines.append(f"not measured, {name}: {', '.join(targets[:3])}{more}: {why}")
    return lines
