"""What is embedded: `data/index.json`, read anew at every question (it is small)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffadapt.errors import SourceError

DATA = Path(__file__).resolve().parent / "data"
"""The folder of the pipelines, the adapters and their index."""

PIPELINES = ("unet", "dit")
"""The names of the embedded pipelines."""


@dataclass(frozen=True)
class Sample:
    """An embedded adapter: what it is, and how often its concept was found in pictures.

    algorithm, trainer, layout: what it is, what trained it, whose key names its file has. concept: what it draws.
    trigger: the word that a prompt needs, or "". prompt: one that shows the concept. score_without, score_with: how
    well pictures show the concept, 0 to 1 on average, of the base and with the adapter at strength 1. path: a file, or
    a PEFT folder.
    """

    name: str
    path: Path
    algorithm: str
    trainer: str
    layout: str
    concept: str
    trigger: str
    prompt: str
    score_without: float
    score_with: float


def entry(name: str) -> dict[str, Any]:
    """What the index says of a pipeline. Raises SourceError for an unknown name and for missing data."""
    if name not in PIPELINES:
        raise SourceError(f"No embedded pipeline is named {name!r}; there are {', '.join(PIPELINES)}.")
    found = _pipelines()
    if name not in found:
        raise SourceError(f"{DATA / 'index.json'} tells of {', '.join(found) or 'no pipeline'}, not of {name!r}.")
    known: dict[str, Any] = found[name]
    return known


def _pipelines() -> dict[str, Any]:
    file = DATA / "index.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["pipelines"]
    except FileNotFoundError as error:
        there = ", ".join(sorted(path.name for path in DATA.glob("*"))) or "nothing"
        raise SourceError(
            f"The embedded pipelines are missing: no {file} (the folder holds {there}). Install diffadapt again."
        ) from error
    except (KeyError, ValueError) as error:
        raise SourceError(f"{file} is broken: {error}. Install diffadapt again.") from error
    return found


def present(path: Path) -> Path:
    """The path, if it is there. Raises SourceError, which says what is there instead."""
    if not path.exists():
        there = ", ".join(sorted(beside.name for beside in path.parent.glob("*"))) or "nothing"
        raise SourceError(
            f"Of the embedded data {path} is missing; beside it there is {there}. Install diffadapt again."
        )
    return path


def adapters(name: str = "unet") -> tuple[Sample, ...]:
    """The adapters for an embedded pipeline. Raises SourceError for an unknown name and for missing data."""
    return tuple(
        Sample(
            name=one["name"], path=present(DATA / one["file"]), algorithm=one["algorithm"], trainer=one["trainer"],
            layout=one["layout"], concept=one["concept"], trigger=one["trigger"], prompt=one["prompt"],
            score_without=one["score"]["without"], score_with=one["score"]["with"],
        )
        for one in entry(name)["adapters"]
    )  # fmt: skip


def settings(name: str = "unet") -> dict[str, Any]:
    """The recommended arguments of the pipeline's call: steps, guidance. Raises SourceError as `adapters` does."""
    return dict(entry(name)["settings"])


def accuracy(name: str = "unet") -> dict[str, float]:
    """How often the base draws what the prompt says: property -> share (0 to 1), "right" where all of it is; "prompts":
    how many were drawn.

    Raises SourceError as `adapters` does.
    """
    return dict(entry(name)["accuracy"])


def title(name: str = "unet") -> str:
    """The pipeline's name in words, "Shapes-UNet". Raises SourceError as `adapters` does."""
    return str(entry(name)["title"])


def name_of(pipe: object) -> str:
    """The name of the embedded pipeline that this one is (by its class). Raises SourceError where it is none."""
    kind = type(pipe).__name__
    classes = {known["class"]: name for name, known in _pipelines().items()}
    if kind not in classes:
        raise SourceError(f"A {kind} is none of the embedded pipelines, which are {', '.join(classes)}.")
    return classes[kind]
