"""From what a command line names to explanations, in worker processes where there are many files."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from diffadapt.errors import DiffAdaptError, NonFiniteError, SourceError
from diffadapt.explain.build import of_structure, with_hashes, with_metadata
from diffadapt.explain.explanation import SCHEMA, Explanation, Problem
from diffadapt.explain.recogniser import Recogniser, read
from diffadapt.explain.sources import Found, Kind, find
from diffadapt.families.choose import Module, choose
from diffadapt.io.headers import read_text
from diffadapt.io.hub import split_address
from diffadapt.io.remote import read_hub, read_url
from diffadapt.io.sniff import FileKind, sniff
from diffadapt.io.source import read_checkpoint
from diffadapt.io.stores import read_store

_MANY = 64
"""Fewer files are done before worker processes have started."""
_CHUNK = 16
Result = TypeVar("Result")


class Wanted(NamedTuple):
    """What is asked for beyond headers: each reads the tensors' data, and is for local files only.

    hashes: of the file and of its tensors. norms: of the deltas. check: for NaN and infinity.
    """

    hashes: bool = False
    norms: bool = False
    check: bool = False


@dataclass(frozen=True)
class Failure:
    """A source that could not be explained. kind: the name of the error's class."""

    source: str
    kind: str
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {"schema": SCHEMA, "source": self.source, "error": {"type": self.kind, "message": self.message}}

    def __str__(self) -> str:
        return f"{self.source}\n  {self.kind}: {self.message}"


Outcome = Explanation | Failure


def explain_files(
    sources: Iterable[str], wanted: Wanted | None = None, workers: int | None = None
) -> Iterator[Outcome]:
    """Explain everything that the sources name (see `sources.find`), in order; one that fails is a `Failure`.

    workers: processes; default: the processors at hand for many files, none for few.
    """
    return explain_each(find(sources), _itself, wanted, workers)


def explain_each(
    found: Iterable[Found],
    render: Callable[[Outcome], Result],
    wanted: Wanted | None = None,
    workers: int | None = None,
) -> Iterator[Result]:
    """What `render` makes of each outcome, in order. render: a function of a module, for it runs in the workers."""
    things = list(found)
    work = partial(_outcome, wanted=wanted or Wanted(), render=render)
    count = workers if workers is not None else _processors() if len(things) >= _MANY else 1
    if count <= 1:
        yield from map(work, things)
        return
    # The families' tables are built before the processes part, which share them from then on.
    choose([Module("denoiser", "none", {})], None)
    # fork: workers start with everything imported. Elsewhere than on Linux it is not safe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(count, context, _alone) as pool:
        yield from pool.map(work, things, chunksize=_CHUNK)


def explain_file(path: Path, wanted: Wanted | None = None, recogniser: Recogniser | None = None) -> Explanation:
    """Explain a local file: by its header, and by its data as far as is asked for. Errors as for `read_adapter`.

    recogniser: remembers structures from call to call. A pickle has no header and is always read.
    """
    wanted = wanted or Wanted()
    if sniff(path, path.name) is FileKind.SAFETENSORS and not (wanted.norms or wanted.check):
        header = read_text(path)
        found = (recogniser or Recogniser()).explain(header)
        raw_metadata = header.parse().metadata if wanted.hashes else {}
    else:
        raw = read_checkpoint(path)
        raw_metadata = raw.metadata
        found = with_metadata(of_structure(read(raw), norms=wanted.norms), raw_metadata, raw.config)
        found = replace(found, source=path.name, file_bytes=path.stat().st_size)
        if wanted.check:
            try:
                raw.check_finite()
            except NonFiniteError as error:
                found = replace(found, problems=(*found.problems, Problem("nonfinite", str(error))))
    return with_hashes(found, path, raw_metadata) if wanted.hashes else found


_recogniser = Recogniser()
"""This process's."""


def _outcome(found: Found, wanted: Wanted, render: Callable[[Outcome], Result]) -> Result:
    try:
        return render(replace(_explained(found, wanted), source=found.text))
    except DiffAdaptError as error:
        source = found.text if found.kind is not Kind.MISSING else found.text.partition(":")[0]
        return render(Failure(source, type(error).__name__, str(error)))


def _explained(found: Found, wanted: Wanted) -> Explanation:
    if found.kind is Kind.FILE:
        return explain_file(Path(found.text), wanted, _recogniser)
    if found.kind is Kind.URL:
        return _recogniser.explain(read_url(found.text))
    if found.kind is Kind.HUB:
        return _recogniser.explain(read_hub(*split_address(found.text)))
    if found.kind is Kind.STORE:
        return _recogniser.explain(read_store(found.text))
    raise SourceError(found.text)


def _alone() -> None:
    """Set a worker up: one thread each, for there are as many workers as processors. Alphas are sampled."""
    global _recogniser
    _recogniser = Recogniser(sampled=True)
    torch.set_num_threads(1)
    # What was made before will not become garbage, and what headers make has no cycles: collections need seldom walk.
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _itself(outcome: Outcome) -> Outcome:
    return outcome
