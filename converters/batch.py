"""A batch: what is to be done, what is done already, and the report."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from diffadapt.converters import local
from diffadapt.converters.jobs import SUFFIX, Job, jobs, shard
from diffadapt.converters.journal import Journal
from diffadapt.converters.plan import Plan
from diffadapt.converters.work import KEPT, Record, failed
from diffadapt.errors import ConvertError
from diffadapt.io.safetensors_writer import PART

JOURNAL = "diffadapt-convert"

Engine: TypeAlias = "Callable[..., Iterator[Record]]"
"""Like `local.run`."""


class Batch:
    """The files of one command, and where they go."""

    def __init__(
        self, sources: Sequence[str], out: Path, plan: Plan, *, part: str | None = None, report: Path | None = None
    ) -> None:
        """part: "i/n", of a job array. report: where the journal is; default: in the output folder, or beside the
        output file. Raises ConvertError for names that clash and for a wrong part."""
        self.plan, self.out = plan, out
        found, missing = jobs(sources, out, plan.to)
        self.jobs: list[Job] = found if part is None else shard(found, part)
        self.missing = [failed(Job(one.text.partition(":")[0], ""), plan, "SourceError", one.text) for one in missing]
        folder = out.parent if out.suffix == SUFFIX and not out.is_dir() else out
        name = JOURNAL if part is None else f"{JOURNAL}.{part.replace('/', 'of')}"
        self.report = report or folder / f"{name}.jsonl"

    def run(
        self,
        *,
        overwrite: bool = False,
        workers: int | None = None,
        stop: threading.Event | None = None,
        engine: Engine = local.run,
    ) -> Iterator[Record]:
        """Convert what is not done, and give a record for every file, as they come. The report is written as they do.

        A file is done if the journal has it, from the source as it is now, by this plan and this version, and the
        result is there. Closing the iterator, or `stop`, leaves everything so that the next run goes on.
        """
        with Journal(self.report) as journal:
            for record in self.missing:
                journal.add(record)
                yield record
            left: list[Job] = []
            for job in self.jobs:
                record = None if overwrite else journal.kept(job, self.plan)
                if record is None:
                    left.append(job)
                else:
                    yield replace(record, status=KEPT, seconds=0.0)
            self._sweep(left)
            known: Mapping[str, Record] = dict(journal.records)
            for record in engine(left, self.plan, known=known, overwrite=overwrite, workers=workers, stop=stop):
                journal.add(record)
                yield record

    def _sweep(self, left: Sequence[Job]) -> None:
        """Remove what a run that was killed left half written of these files."""
        for folder in {job.file.parent for job in left}:
            names = {f".{job.file.name[:100]}." for job in left if job.file.parent == folder}
            for path in folder.glob(f".*{PART}"):
                if any(path.name.startswith(name) for name in names):
                    path.unlink(missing_ok=True)


def convert_files(
    sources: Sequence[str] | str, out: str | Path, to: str | None = None, **options: object
) -> list[Record]:
    """Convert files, folders or patterns to a dialect, and give a record of each; see `Plan` for the options.

        convert_files("loras", "converted", "diffusers", dtype="fp16")

    Raises ConvertError for options that do not go together; what is wrong with a file is in its record.
    """
    names = [sources] if isinstance(sources, str) else list(sources)
    try:
        plan = Plan(to=to, **options)
    except TypeError as error:
        raise ConvertError(f"{error}; see diffadapt.converters.plan.Plan.") from error
    return list(Batch(names, Path(out), plan).run())
