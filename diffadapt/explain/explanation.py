"""What a file is and why that is thought, as data: to print, and to read by machine in one stable shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1
"""Of the JSON; grows where a field changes its meaning or leaves."""

Span = tuple[float, float]
"""The smallest and the largest value."""


@dataclass(frozen=True)
class Candidate:
    """A family the file may be for, or was found not to be for, and what speaks for it or against it."""

    family: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """The modules of one algorithm in one part of the model.

    blocks: "down_blocks.1", or "transformer_blocks 0-18" where there are many alike. rank, alpha, scale (alpha by
    rank), norm (Frobenius, of each module's change at full strength): smallest and largest; None where there is none
    or it was not read.
    """

    component: str | None
    blocks: str
    algorithm: str
    modules: int
    parameters: int
    rank: tuple[int, int] | None = None
    alpha: Span | None = None
    scale: Span | None = None
    norm: Span | None = None


@dataclass(frozen=True)
class Problem:
    """Something to know before using the file. kind: "unmatched", "alpha", "rank", "metadata", "hash", "nonfinite"."""

    kind: str
    message: str


@dataclass(frozen=True)
class Explanation:
    """What recognition found in one adapter.

    evidence: the keys that decided the dialect. candidates: families it may be for, best first; ambiguous: keys and
    shapes leave more than one. ruled_out: families that know the names, and why they are not meant. dtypes: tensors by
    type. tags: the most frequent training tags. hashes: by name, where asked for. norm: of all changes together, where
    asked for. header_only: the tensors' data were not looked at;
    alphas_sampled: nor all alphas, but one of each kind of module. Paths and keys are the file's own.
    """

    source: str
    dialect: str
    evidence: str
    candidates: tuple[Candidate, ...] = ()
    ruled_out: tuple[Candidate, ...] = ()
    ambiguous: bool = False
    table: tuple[Row, ...] = ()
    dtypes: Mapping[str, int] = field(default_factory=dict)
    embeddings: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)
    trainer: str | None = None
    base_model: str | None = None
    agrees: bool | None = None
    """Whether the base model that the metadata tell is of a candidate family; None where they tell none we know."""
    trigger_words: tuple[str, ...] = ()
    tags: tuple[tuple[str, int], ...] = ()
    problems: tuple[Problem, ...] = ()
    hashes: Mapping[str, str | None] | None = None
    norm: float | None = None
    file_bytes: int | None = None
    header_only: bool = False
    alphas_sampled: bool = False

    @property
    def family(self) -> str | None:
        return self.candidates[0].family if self.candidates else None

    @property
    def algorithms(self) -> dict[str, int]:
        """Modules by algorithm."""
        counts: Counter[str] = Counter()
        for row in self.table:
            counts[row.algorithm] += row.modules
        return dict(counts)

    @property
    def modules(self) -> int:
        return sum(row.modules for row in self.table)

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.table)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON; the same fields for every file."""
        return {
            "schema": SCHEMA,
            "source": self.source,
            "error": None,
            "dialect": {"name": self.dialect, "evidence": self.evidence},
            "family": {
                "name": self.family,
                "ambiguous": self.ambiguous,
                "candidates": [_candidate(one) for one in self.candidates],
                "ruled_out": [_candidate(one) for one in self.ruled_out],
            },
            "base_model": {"told": self.base_model, "agrees": self.agrees},
            "trainer": self.trainer,
            "algorithms": self.algorithms,
            "modules": self.modules,
            "parameters": self.parameters,
            "dtypes": dict(self.dtypes),
            "table": [dict(vars(row)) for row in self.table],
            "norm": self.norm,
            "embeddings": list(self.embeddings),
            "prefixes": list(self.prefixes),
            "trigger_words": list(self.trigger_words),
            "tags": [list(tag) for tag in self.tags],
            "hashes": None if self.hashes is None else dict(self.hashes),
            "file": {"bytes": self.file_bytes, "header_only": self.header_only, "alphas_sampled": self.alphas_sampled},
            "unmatched": list(self.unmatched),
            "ignored": dict(self.ignored),
            "problems": [dict(vars(problem)) for problem in self.problems],
        }

    def __str__(self) -> str:
        by = ", ".join(f"{count} {name}" for name, count in sorted(self.algorithms.items()))
        types = ", ".join(self.dtypes)
        size = "" if self.file_bytes is None else f", {_short(self.file_bytes)}B"
        only = ", only its header read" if self.header_only else ""
        only += ", and an alpha of each kind of module" if self.alphas_sampled else ""
        facts: list[tuple[str, Iterable[str]]] = [
            ("dialect", [self.evidence or self.dialect]),
            ("family", self._families()),
            ("base model", [] if self.base_model is None else [self._base_model()]),
            ("trainer", _given(self.trainer)),
            ("algorithms", _given(by)),
            ("parameters", [f"{_short(self.parameters)} in {types}"] if self.parameters else []),
            ("norm", [] if self.norm is None else [f"{self.norm:.4g}"]),
            ("embeddings", _given(", ".join(self.embeddings))),
            ("prefixes", _given(", ".join(self.prefixes))),
            ("trigger words", _given(", ".join(self.trigger_words[:12]))),
            ("tags", _given(", ".join(f"{tag} {count}" for tag, count in self.tags[:12]))),
            ("hashes", [f"{name} {value}" for name, value in (self.hashes or {}).items() if value]),
            ("ignored", [f"{n} keys: {why}" for why, n in Counter(self.ignored.values()).items()]),
            ("problems", [problem.message for problem in self.problems]),
        ]
        lines = [f"{self.source} ({self.modules} module{'s' * (self.modules != 1)}{size}{only})"]
        for title, values in facts:
            lines += [f"  {title if not number else '':<14}{value}" for number, value in enumerate(values)]
        return "\n".join([*lines, *(f"  {line}" for line in _table(self.table) if self.table)])

    def _families(self) -> list[str]:
        lines = [f"{'or ' if n else ''}{one.family}: {'; '.join(one.reasons)}" for n, one in enumerate(self.candidates)]
        lines += [f"not {one.family}: {'; '.join(one.reasons)}" for one in self.ruled_out]
        if not self.candidates and self.table:
            lines.insert(0, "unknown: no table has these names; a pipeline with modules of these names can take it")
        return lines

    def _base_model(self) -> str:
        verdict = {True: "agrees with", False: "contradicts", None: "says nothing of"}[self.agrees]
        return f"told {self.base_model}, which {verdict} the recognised {self.family or 'names'}"


def _candidate(one: Candidate) -> dict[str, Any]:
    return {"name": one.family, "reasons": list(one.reasons)}


def _given(text: str | None) -> list[str]:
    return [text] if text else []


def _table(rows: Sequence[Row]) -> list[str]:
    """The rows in columns as wide as needed."""
    with_norm = any(row.norm for row in rows)
    head = ["component", "blocks", "algorithm", "modules", "rank", "alpha/rank", "parameters"]
    cells = [head + ["norm"] * with_norm]
    for row in rows:
        cell = [row.component or "?", row.blocks, row.algorithm, str(row.modules), span(row.rank), span(row.scale)]
        cells.append([*cell, _short(row.parameters), *([span(row.norm)] if with_norm else [])])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(cell, widths, strict=True)).rstrip() for cell in cells]


def span(values: Span | None) -> str:
    """ "4" or "4 to 16"; "-" for none."""
    if values is None:
        return "-"
    low, high = (f"{value:.4g}" for value in values)
    return low if low == high else f"{low} to {high}"


def _short(count: float) -> str:
    """A count with a unit: 84.9 M."""
    for unit in ("", " k", " M", " G"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} T"
