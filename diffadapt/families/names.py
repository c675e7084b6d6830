"""Module names as data: patterns that turn a trainer's name into Diffusers modules, and back.

A pattern is a dotted name whose counters are placeholders: `down_blocks.{i}.attentions.{j}.proj_in`. Dots and
underscores are the same here: `down_blocks_0_attentions_1_proj_in` and every mixture match, because flattened names
never give one text two meanings within a family. A name is looked up by its skeleton (each counter replaced by `#`),
not searched. Counters are not limited: a tiny model with the same naming resolves as the full-size one does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import gcd

from diffadapt.families.model import Model

_LONGEST_COUNTER = 4
_TOKEN = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Grid:
    """How the counter `{n}` of an original UNet holds Diffusers' two: n = offset + period * i + j, 0 <= j < width."""

    offset: int
    period: int
    width: int

    def split(self, n: int) -> dict[str, str] | None:
        i, j = divmod(n - self.offset, self.period)
        return {"i": str(i), "j": str(j)} if i >= 0 and j < self.width else None

    def join(self, values: Mapping[str, str]) -> int:
        return self.offset + self.period * int(values["i"]) + int(values.get("j", 0))


@dataclass(frozen=True)
class Rule:
    """One line of a name table.

    foreign: the trainer's pattern. targets: the Diffusers patterns of its rows, in order; several where the trainer saw
    a fused projection. shares: the targets' parts of the rows, in proportion; () for those of the full-size model.
    grid: see `Grid`. exchange: the halves of the rows change places (native shift|scale, Diffusers scale|shift).
    part: (k, n) where the foreign module is the k-th of n equal parts of the one target, which Diffusers has fused.
    at: the only value of `{i}` it holds for; such a rule stands before the one for the others.
    written: whether writing uses this spelling.
    """

    foreign: str
    targets: tuple[str, ...]
    shares: tuple[int, ...] = ()
    grid: Grid | None = None
    exchange: bool = False
    part: tuple[int, int] | None = None
    at: int | None = None
    written: bool = True

    @cached_property
    def skeleton(self) -> str:
        return "_".join("#" if _is_counter(token) else token for token in _tokens(self.foreign))

    @cached_property
    def _counters(self) -> tuple[tuple[str, bool], ...]:
        """The counters in order: a placeholder's name, or a fixed number."""
        found = (token for token in _tokens(self.foreign) if _is_counter(token))
        return tuple((token.strip("{}"), token.startswith("{")) for token in found)

    def match(self, counters: tuple[str, ...]) -> dict[str, str] | None:
        """The values of the placeholders, or None where a fixed number differs."""
        values: dict[str, str] = {}
        for (name, free), seen in zip(self._counters, counters, strict=True):
            if not free:
                if name != seen:
                    return None
            elif values.setdefault(name, seen) != seen:
                return None
        if self.at is not None and int(values["i"]) != self.at:
            return None
        if self.grid is None:
            return values
        cells = self.grid.split(int(values["n"]))
        return None if cells is None else values | cells

    def route(self, values: Mapping[str, str]) -> Route:
        modules = tuple(fill(target, values) for target in self.targets)
        return Route(modules, self.shares, self.exchange, self.part, self.targets)


@dataclass(frozen=True)
class Route:
    """The Diffusers modules of one foreign module, and their patterns; see `Rule`."""

    modules: tuple[str, ...]
    shares: tuple[int, ...] = ()
    exchange: bool = False
    part: tuple[int, int] | None = None
    patterns: tuple[str, ...] = ()


class Names:
    """The name table of one component, in both directions. Built when first asked: most files need few families."""

    def __init__(
        self,
        rules: Iterable[Rule] = (),
        native: Iterable[Rule] = (),
        model: Model | None = None,
        levels: tuple[str, ...] = (),
    ) -> None:
        """rules: spellings beside Diffusers' own names. native: the original code's names. model: the full-size class,
        whose own names and fused projections are in the table, and whose shapes say how fused rows are shared. levels:
        beginnings of the class's own names that others write instead of each other, longest first."""
        self._given, self._native = (*rules,), (*native,)
        self.model, self._levels = model, levels

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """Diffusers' own names, and their spellings."""
        if self.model is None:
            return self._given
        measured = self.model.measured
        own = same([*measured.modules, *measured.parameters])
        known = {rule.skeleton for rule in own}
        # A UNet with fewer keys than queries shares the rows otherwise at every level: no one trains it fused.
        fused = [
            rule
            for rule in _projections(measured.modules)
            if rule.skeleton not in known and all(measured.rows(target) for target in rule.targets)
        ]
        moved = [rule for rule in _moved(own, self._levels) if rule.skeleton not in known]
        return (*own, *moved, *map(self._shared, (*fused, *self._given)))

    @cached_property
    def native(self) -> tuple[Rule, ...]:
        """The original code's names."""
        return tuple(map(self._shared, self._native))

    def _shared(self, rule: Rule) -> Rule:
        """The rule with the shares that the full-size model has."""
        if rule.shares or len(rule.targets) == 1 or self.model is None:
            return rule
        rows = [self.model.measured.rows(renumbered(target)) for target in rule.targets]
        sizes = [count for count in rows if count is not None]
        if len(sizes) != len(rows):
            raise ValueError(f"{rule.foreign}: the layout {self.model.layout} has no rows for all of {rule.targets}")
        unit = gcd(*sizes)
        return replace(rule, shares=tuple(size // unit for size in sizes))

    @cached_property
    def _index(self) -> dict[str, list[Rule]]:
        index: dict[str, list[Rule]] = {}
        for rule in (*self.rules, *self.native):
            index.setdefault(rule.skeleton, []).append(rule)
        return index

    @cached_property
    def _inverse(self) -> dict[str, list[tuple[Rule, Rule]]]:
        """Diffusers' skeleton -> the rules behind it, turned round, and the rules themselves."""
        inverses: dict[str, list[tuple[Rule, Rule]]] = {}
        for rule in self.native:
            if rule.written and len(rule.targets) == 1 and rule.part is None:
                inverse = Rule(rule.targets[0], (rule.foreign,))
                inverses.setdefault(inverse.skeleton, []).append((inverse, rule))
        return inverses

    @property
    def skeletons(self) -> Collection[str]:
        """The skeletons of all names."""
        return self._index.keys()

    def knows(self, skeleton: str) -> bool:
        """Whether some name has this skeleton: a cheap, nearly exact test for whole files."""
        return skeleton in self._index

    def resolve(self, module: str) -> Route | None:
        """The Diffusers modules behind a name, dotted or flat; None where the table has none."""
        return _resolve(self, module)

    def native_name(self, module: str) -> str | None:
        """The original code's name of a Diffusers module, dotted; None where it has none of its own."""
        skeleton, counters = skeleton_of(module)
        for inverse, rule in self._inverse.get(skeleton, ()):
            values = inverse.match(counters)
            if values is not None:
                return fill(rule.foreign, values if rule.grid is None else {**values, "n": str(rule.grid.join(values))})
        return None

    def lookup(self, module: str) -> Route | None:
        """`resolve` without its cache."""
        skeleton, counters = skeleton_of(module)
        for rule in self._index.get(skeleton, ()):
            values = rule.match(counters)
            if values is not None:
                return rule.route(values)
        return None


def same(templates: Iterable[str]) -> list[Rule]:
    """Rules for modules whose name is Diffusers' own."""
    return [Rule(template, (template,)) for template in templates]


def _moved(own: Iterable[Rule], levels: tuple[str, ...]) -> Iterator[Rule]:
    """The class's own names with the other levels in front, for each name that begins with one of them."""
    for rule in own:
        first = next((level for level in levels if rule.foreign.startswith(level)), None)
        if first is not None:
            rest = rule.foreign.removeprefix(first)
            yield from (Rule(level + rest, rule.targets) for level in levels if level != first)


FUSED_PROJECTIONS = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}
"""Diffusers' Linears after `fuse_qkv_projections()`, and the Linears whose rows they hold one after the other."""


def _projections(patterns: Iterable[str]) -> Iterator[Rule]:
    """The fused names that trainers of fused models write."""
    known = set(patterns)
    for container in {pattern.rpartition(".")[0] for pattern in known if pattern.endswith((".to_k", ".add_k_proj"))}:
        for fused, parts in FUSED_PROJECTIONS.items():
            targets = tuple(f"{container}.{part}" for part in parts)
            if known.issuperset(targets):
                yield Rule(f"{container}.{fused}", targets)


def renumbered(pattern: str) -> str:
    """The pattern with its placeholders named in order: i, j, k, ..."""
    letters = iter("ijklmn")
    return _TOKEN.sub(lambda _: f"{{{next(letters)}}}", pattern)


def between(theirs: str, ours: str, leaves: Mapping[str, str]) -> list[Rule]:
    """Rules for modules that differ in name only: the foreign container and leaf, and Diffusers'. "" for the root."""
    return [
        Rule(".".join(filter(None, (theirs, foreign))), (".".join(filter(None, (ours, leaf))),))
        for foreign, leaf in leaves.items()
    ]


def under(container: str, leaves: Iterable[str]) -> tuple[str, ...]:
    """The patterns of a block's leaves."""
    return tuple(f"{container}.{leaf}" for leaf in leaves)


def fill(template: str, values: Mapping[str, str]) -> str:
    """The pattern with its placeholders' values."""
    return template.format_map(values)


@lru_cache(maxsize=65536)
def skeleton_of(module: str) -> tuple[str, tuple[str, ...]]:
    """The name with `#` for each counter, flat, and the counters."""
    tokens = module.replace(".", "_").split("_")
    counters = tuple(token for token in tokens if _is_counter(token))
    if counters:
        tokens = ["#" if _is_counter(token) else token for token in tokens]
    return "_".join(tokens), counters


@lru_cache(maxsize=65536)
def _resolve(names: Names, module: str) -> Route | None:
    return names.lookup(module)


def _tokens(pattern: str) -> list[str]:
    return pattern.replace(".", "_").split("_")


def _is_counter(token: str) -> bool:
    if token.startswith("{"):
        return True
    # Longer numbers count nothing; and int() refuses absurd ones.
    return token.isdecimal() and token.isascii() and len(token) <= _LONGEST_COUNTER
