"""The converters, for files of the library: a table of what became of each, and the files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

from diffadapt.converters.batch import Batch
from diffadapt.converters.plan import Plan
from diffadapt.converters.work import DONE, KEPT, Record
from diffadapt.errors import ConvertError

from .shelf import Shelf

FILES = 200
"""Of one conversion on the page; for more there is the command line."""

COLUMNS = ("file", "result", "from", "family", "algorithms", "keys", "left out", "said")


def convert(shelf: Shelf, ids: Sequence[str], out: Path, plan: Plan) -> list[Record]:
    """Convert cards of the shelf into a folder, and give a record for each. Raises ConvertError for no files or too
    many; what is wrong with a file is in its record."""
    if not 0 < len(ids) <= FILES:
        raise ConvertError(f"{len(ids)} files are chosen; expected 1 to {FILES}.")
    batches: list[dict[str, str]] = []  # results are called like their cards: of one name, each goes to another folder
    for one in dict.fromkeys(ids):
        name = shelf.card(one).name.lower()
        free = next((batch for batch in batches if name not in batch), None)
        if free is None:
            batches.append(free := {})
        free[name] = str(shelf.path(one))
    found: list[Record] = []
    for number, batch in enumerate(batches):
        found += Batch([*batch.values()], out / str(number + 1) if number else out, plan).run(workers=1)
    return found


def row(record: Record) -> list[str]:
    """A record as a row of the table, without places on this machine."""
    result = {DONE: "written", KEPT: "written before"}.get(record.status, record.status)
    kinds = ", ".join(f"{count} {name}" for name, count in record.algorithms.items())
    said = record.message or (f"largest loss {record.losses:.2g}" if record.losses else "")
    return [
        Path(record.source).name, result, record.dialect, record.family or "", kinds, str(record.keys or ""),
        str(len(record.left_out) or ""), said,
    ]  # fmt: skip


def results(records: Sequence[Record]) -> list[Path]:
    """The files that are there now."""
    return [record.file for record in records if record.status in (DONE, KEPT)]


def packed(records: Sequence[Record], out: Path) -> Path:
    """The results as one file, with the report beside them; they are stored as they are."""
    path = out.parent / f"{out.name}.zip"
    with ZipFile(path, "w", ZIP_STORED) as archive:
        for file in results(records):
            archive.write(file, file.relative_to(out))
        archive.writestr("report.jsonl", "".join(f"{json.dumps(_told(record))}\n" for record in records))
    return path


def _told(record: Record) -> dict[str, object]:
    """A record without places on this machine."""
    return {**record.to_dict(), "source": Path(record.source).name, "out": record.file.name}
