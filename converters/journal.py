"""What is done, line by line, so that a stopped run goes on where it was; and in the end a report of all files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import diffadapt
from diffadapt.converters.jobs import Job
from diffadapt.converters.plan import Plan
from diffadapt.converters.sources import state
from diffadapt.converters.work import DONE, FAILED, KEPT, Record
from diffadapt.errors import SourceError
from diffadapt.io.safetensors_writer import write_whole

_FIELDS = {field.name for field in fields(Record)}


class Journal:
    """A file of JSON lines, one for each file: appended to as files are done, put in order at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = {record.source: record for record in _read(path)}

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *exc: object) -> None:
        """One line for each file, by name, in place of what was appended."""
        self._file.close()
        lines = [json.dumps(record.to_dict()) for _, record in sorted(self.records.items())]
        write_whole(self.path, lambda file: file.write("".join(f"{line}\n" for line in lines).encode()))

    def add(self, record: Record) -> None:
        """Write down what became of a file."""
        self.records[record.source] = record
        self._file.write(json.dumps(record.to_dict()) + "\n")
        self._file.flush()

    def kept(self, job: Job, plan: Plan) -> Record | None:
        """The record of a file that is done: of this source as it is now, by this plan and version, and still there."""
        record = self.records.get(job.name)
        if record is None or record.status == FAILED or (record.out, record.plan) != (job.out, plan.key):
            return None
        if record.version != diffadapt.__version__:
            return None
        try:
            same = (*state(job.source), job.file.stat().st_size) == (record.size, record.modified, record.bytes)
        except (OSError, SourceError):
            return None
        return record if same and record.status in (DONE, KEPT) else None


def _read(path: Path) -> Iterable[Record]:
    """The records of a journal; a line that a crash cut short is left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return
    for line in text.splitlines():
        try:
            data: Any = json.loads(line)
            yield Record(**{name: value for name, value in data.items() if name in _FIELDS})
        except (ValueError, TypeError, AttributeError):
            continue
