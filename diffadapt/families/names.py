"""Module names as data: patterns that turn a trainer's name into Diffusers modules, and back.

A pattern is a dotted name whose counters are placeholders: `down_blocks.{i}.attentions.{j}.proj_in`. Dots and
underscores are the same here: `down_blocks_0_attentions_1_proj_in` and every mixture match, because flattened names
never give one text two meanings within a family. A name is looked up by its skeleton (each counter replaced by `#`),
not searched. Counters are not limited: a tiny model with the same naming resolves as the full-size one does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

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
    a fused projection. shares: the targets' parts of the rows, in proportion. grid: see `Grid`. exchange: the halves of
    the rows change places (native shift|scale, Diffusers scale|shift). written: whether writing uses this spelling.
    """

    foreign: str
    targets: tuple[str, ...]
    shares: tuple[int, ...] = ()
    grid: Grid | None = None
    exchange: bool = False
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
        if self.grid is None:
            return values
        cells = self.grid.split(int(values["n"]))
        return None if cells is None else values | cells

    def route(self, values: Mapping[str, str]) -> Route:
        return Route(tuple(fill(target, values) for target in self.targets), self.shares, self.exchange)


@dataclass(frozen=True)
class Route:
    """The Diffusers modules of one foreign module; see `Rule`."""

    modules: tuple[str, ...]
    shares: tuple[int, ...] = ()
    exchange: bool = False


class Names:
    """The name table of one component, in both directions."""

    def __init__(self, rules: Iterable[Rule], native: Iterable[Rule] = ()) -> None:
        """rules: Diffusers' own names and their spellings. native: the original code's names."""
        self.rules = (*rules,)
        self.native = (*native,)
        self._index: dict[str, list[Rule]] = {}
        for rule in (*self.rules, *self.native):
            self._index.setdefault(rule.skeleton, []).append(rule)
        self._inverse: dict[str, list[tuple[Rule, Rule]]] = {}
        for rule in self.native:
            if rule.written and len(rule.targets) == 1:
                inverse = Rule(rule.targets[0], (rule.foreign,))
                self._inverse.setdefault(inverse.skeleton, []).append((inverse, rule))

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


def under(container: str, leaves: Iterable[str]) -> list[str]:
    """The patterns of a block's leaves."""
    return [f"{container}.{leaf}" for leaf in leaves]


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
