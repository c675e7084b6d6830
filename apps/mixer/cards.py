"""What the library shows of one file: read off its header, so that thousands take seconds."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from diffadapt.adapter import Adapter
from diffadapt.errors import DiffAdaptError, SourceError
from diffadapt.explain.explanation import Explanation, span
from diffadapt.explain.files import explain_file
from diffadapt.explain.recogniser import Recogniser, read
from diffadapt.io.folder import CONFIG_OF
from diffadapt.io.headers import read_small, read_text, small_tensors
from diffadapt.io.sniff import FileKind, sniff
from diffadapt.io.source import read_checkpoint

LOOK = 1
"""Of what a card holds: cards that were kept by another version are made anew."""

_WORDS = 24


@dataclass(frozen=True)
class Card:
    """One adapter file. id: its place in the library, the name that the page and the endpoints know it by.

    modules: how many the file changes. structure: equal for files that fit the same pipelines, "" where the file cannot
    be used. problem: why it cannot, "" where it can. warnings: what to know before.
    """

    id: str
    name: str
    size: int = 0
    family: str = ""
    dialect: str = ""
    algorithms: str = ""
    ranks: str = ""
    modules: int = 0
    trainer: str = ""
    base_model: str = ""
    trigger_words: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    structure: str = ""
    problem: str = ""
    concept: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Card:
        found: dict[str, Any] = json.loads(text)
        return cls(**found | {name: tuple(found[name]) for name in ("trigger_words", "warnings")})

    def matches(self, words: str) -> bool:
        """Whether every word of a search is somewhere on the card."""
        said = " ".join((self.id, self.name, self.family, self.algorithms, self.trainer, self.concept,
                         *self.trigger_words)).lower()  # fmt: skip
        return all(word in said for word in words.lower().split())


@dataclass(frozen=True)
class Fit:
    """How a file and the loaded pipeline go together. level: "green" (all of it is applied), "amber" (some keys find no
    module), "red" (nothing, or it does not fit), "grey" (not looked at yet)."""

    level: str
    text: str
    reasons: tuple[str, ...] = ()


def name_of(path: Path) -> str:
    """What people call a file: its name, or its folder's where a trainer gives every file the same."""
    return _text(path.parent.name if path.stem in CONFIG_OF and path.parent.name else path.stem)


def _text(text: str) -> str:
    """A file's name may hold bytes that no text can."""
    return text.encode("utf-8", "replace").decode()


def card_of(path: Path, card_id: str, recogniser: Recogniser) -> Card:
    """The card of a file; what is wrong with it is on the card, not raised."""
    bare = Card(card_id, name_of(path))
    try:
        bare = replace(bare, size=path.stat().st_size)
        return _filled(bare, explain_file(path, recogniser=recogniser), _structure(path))
    except DiffAdaptError as error:
        return replace(bare, problem=_text(str(error)))
    except OSError as error:
        return replace(bare, problem=_unreadable(path, error))


def _unreadable(path: Path, error: OSError) -> str:
    """What an error says, without the place on this machine that is in its text."""
    return f"{_text(path.name)}: cannot be read ({error.strerror})."


def _filled(card: Card, found: Explanation, structure: str) -> Card:
    spans = [row.rank for row in found.table if row.rank]
    ranks = span((min(low for low, _ in spans), max(high for _, high in spans))) if spans else ""
    return replace(
        card, family=found.family or "", dialect=found.dialect, algorithms=", ".join(sorted(found.algorithms)),
        ranks=ranks, modules=found.modules, trainer=found.trainer or "", base_model=found.base_model or "",
        trigger_words=found.trigger_words[:_WORDS], warnings=tuple(problem.message for problem in found.problems),
        structure=structure,
    )  # fmt: skip


def _structure(path: Path) -> str:
    if sniff(path, path.name) is not FileKind.SAFETENSORS:  # a pickle, which is like no other
        about = path.stat()
        return blake2b(b"%s %d %d" % (os.fsencode(path), about.st_size, about.st_mtime_ns), digest_size=16).hexdigest()
    header = read_text(path)
    config = json.dumps(header.config, sort_keys=True, default=str).encode()
    return blake2b(header.parts()[1] + config, digest_size=16).hexdigest()


def stand_in(path: Path) -> Adapter:
    """The adapter of a file without its values, as far as that can be told from the header."""
    if sniff(path, path.name) is not FileKind.SAFETENSORS:
        return read(read_checkpoint(path))
    header = read_text(path)
    parsed = header.parse()
    small = small_tensors(parsed.tensors)
    return read(header.checkpoint(parsed, small.by_key(read_small(path, parsed.data_start, small))))


def fit_of(path: Path, pipeline: Any) -> Fit:
    """What a load of the file would apply to the pipeline."""
    try:
        report = pipeline.adapters.fit(stand_in(path))
    except SourceError as error:
        return Fit("grey", "fit unknown", (str(error),))
    except OSError as error:
        return Fit("grey", "fit unknown", (_unreadable(path, error),))
    except DiffAdaptError as error:
        return Fit("red", "does not fit", (str(error),))
    return fit_of_report(report)


def fit_of_report(report: Any) -> Fit:
    """The badge of a load's report."""
    counted = f"{len(report.applied)} of {report.total}"
    reasons = [f"no module here: {name}" for name in report.unmatched_targets[:20]]
    reasons += [f"no algorithm explains: {key}" for key in report.unmatched[:20]] if not reasons else []
    reasons += [f"ignored: {key}: {why}" for key, why in list(report.ignored.items())[:20]]
    return Fit("green" if report.complete else "amber", counted, tuple(reasons))


def facts(card: Card, fit: Fit | None) -> Mapping[str, Any]:
    """A card as plain data, for the page and the endpoints."""
    found = asdict(card) | {"trigger_words": list(card.trigger_words), "warnings": list(card.warnings)}
    found["fit"] = asdict(fit) | {"reasons": list(fit.reasons)} if fit else None
    return found
