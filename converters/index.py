"""A library of adapters as one SQLite file: what every file is, does and says, found out once.

    files      a row for every file: hashes, fingerprint, family, algorithms, ranks, norms, trigger words, health, ...
    about      the version of the tables

Everything that is a list or a mapping is JSON text. The file is for others to read, too.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from diffadapt.converters.workers import Died, each
from diffadapt.errors import ConvertError, DiffAdaptError, NonFiniteError, SourceError
from diffadapt.explain.sources import Kind, find
from diffadapt.fingerprint import fingerprint
from diffadapt.io.safetensors_writer import write_whole
from diffadapt.io.source import read_checkpoint
from diffadapt.reading import read_adapter

VERSION = 1
OK, PROBLEM, BROKEN = "ok", "problem", "broken"
"""Nothing to say; to be used with care (see its problems); cannot be read."""

COLUMNS = {
    "path": "TEXT PRIMARY KEY", "size": "INTEGER", "modified": "INTEGER", "sha256": "TEXT", "autov2": "TEXT",
    "autov3": "TEXT", "fingerprint": "TEXT", "dialect": "TEXT", "family": "TEXT", "algorithms": "TEXT",
    "ranks": "TEXT", "norm": "REAL", "norms": "TEXT", "trigger_words": "TEXT", "trainer": "TEXT", "base_model": "TEXT",
    "title": "TEXT", "licence": "TEXT", "health": "TEXT", "problems": "TEXT",
}  # fmt: skip
"""path: absolute. modified: nanoseconds. norms: of the changes, by component and blocks. licence: as the file says."""

Row = dict[str, Any]


@contextmanager
def open_index(path: Path) -> Iterator[sqlite3.Connection]:
    """The index at a path, made where there is none. Raises SourceError for a file that is none of ours."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as database:
            database.row_factory = sqlite3.Row
            columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
            with database:
                database.execute("CREATE TABLE IF NOT EXISTS about (version INTEGER)")
                if (found := database.execute("SELECT version FROM about").fetchone()) is None:
                    database.execute("INSERT INTO about VALUES (?)", (VERSION,))
                elif found["version"] != VERSION:
                    raise SourceError(
                        f"{path.name}: is an index of version {found['version']}; delete it, and index anew."
                    )
                database.execute(f"CREATE TABLE IF NOT EXISTS files ({columns})")
                database.execute("CREATE INDEX IF NOT EXISTS by_fingerprint ON files (fingerprint)")
            yield database
    except (sqlite3.DatabaseError, OSError) as error:
        raise SourceError(f"{path.name}: cannot be used as an index ({error}). Name another file.") from error


def update(
    database: sqlite3.Connection,
    sources: Sequence[str],
    *,
    workers: int | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Row]:
    """Bring the index to what the sources hold now, and give the rows that are new, as they are found.

    sources: as of `diffadapt inspect`, local ones. Files whose size and time of change are the index's are not read
    again; files below the sources' folders that are gone leave the index. Stopped in the middle, it goes on next time.
    """
    paths = [Path(one.text).resolve() for one in find(sources) if one.kind is Kind.FILE]
    known = {row["path"]: (row["size"], row["modified"]) for row in database.execute("SELECT * FROM files")}
    folders = [Path(source).expanduser().resolve() for source in sources]
    here = set(map(str, paths))
    gone = [path for path in known if path not in here and any(Path(path).is_relative_to(f) for f in folders)]
    with database:
        database.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in gone])
    new = [path for path in paths if known.get(str(path)) != _state(path)]
    marks = ", ".join("?" * len(COLUMNS))
    for path, row in each(look, new, workers, stop):
        if isinstance(row, Died):
            row = _broken(path, "reading it ended the process, probably for want of memory")
        with database:
            database.execute(f"INSERT OR REPLACE INTO files VALUES ({marks})", [row[name] for name in COLUMNS])
        yield row


def look(path: Path) -> Row:
    """The row of a file."""
    try:
        return _row(path)
    except (DiffAdaptError, OSError) as error:
        return _broken(path, str(error))


def _row(path: Path) -> Row:
    checkpoint = read_checkpoint(path)
    adapter = read_adapter(checkpoint, check_finite=False)
    found = adapter.explain(norms=True, hashes=True)
    problems = [problem.message for problem in found.problems]
    try:
        checkpoint.check_finite()
    except NonFiniteError as error:
        problems.append(str(error))
    raw = adapter.metadata.raw
    hashes = found.hashes or {}
    return _empty(path) | {
        "sha256": hashes.get("sha256"), "autov2": hashes.get("autov2"), "autov3": hashes.get("autov3"),
        "fingerprint": fingerprint(adapter), "dialect": found.dialect, "family": found.family,
        "algorithms": json.dumps(found.algorithms), "ranks": json.dumps(adapter.metadata.ranks), "norm": found.norm,
        "norms": json.dumps({f"{r.component} {r.blocks}": r.norm for r in found.table if r.norm is not None}),
        "trigger_words": json.dumps(found.trigger_words), "trainer": found.trainer, "base_model": found.base_model,
        "title": raw.get("modelspec.title") or raw.get("ss_output_name"),
        "licence": raw.get("modelspec.license") or raw.get("license"),
        "health": PROBLEM if problems else OK, "problems": json.dumps(problems),
    }  # fmt: skip


def _empty(path: Path) -> Row:
    size, modified = _state(path)
    return dict.fromkeys(COLUMNS) | {"path": str(path), "size": size, "modified": modified}


def _broken(path: Path, why: str) -> Row:
    return _empty(path) | {"health": BROKEN, "problems": json.dumps([why])}


def _state(path: Path) -> tuple[int | None, int | None]:
    try:
        about = path.stat()
    except OSError:
        return None, None
    return about.st_size, about.st_mtime_ns


def duplicates(database: sqlite3.Connection) -> list[list[sqlite3.Row]]:
    """Files that do the same to the bit, in whatever dialect: groups of two and more, the largest saving first."""
    groups: dict[str, list[sqlite3.Row]] = {}
    for row in database.execute("SELECT * FROM files WHERE fingerprint IS NOT NULL ORDER BY path"):
        groups.setdefault(row["fingerprint"], []).append(row)
    several = [group for group in groups.values() if len(group) > 1]
    return sorted(several, key=lambda group: -sum(row["size"] for row in group[1:]))


def export(database: sqlite3.Connection, path: Path) -> None:
    """Write all rows to a Parquet file, columns as in the index. Raises ConvertError where pyarrow is not installed,
    SourceError where the file cannot be written."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConvertError('A Parquet file needs pyarrow: pip install "diffadapt[parquet]".') from error
    kinds = {"INTEGER": pyarrow.int64(), "REAL": pyarrow.float64(), "TEXT": pyarrow.string()}
    schema = pyarrow.schema([(name, kinds[kind.split()[0]]) for name, kind in COLUMNS.items()])
    rows = [dict(row) for row in database.execute("SELECT * FROM files ORDER BY path")]
    table = pyarrow.Table.from_pylist(rows, schema)
    write_whole(path, lambda file: pyarrow.parquet.write_table(table, file))


def health(database: sqlite3.Connection) -> Counter[str]:
    """How many files are well, to be used with care, and broken."""
    return Counter(row["health"] for row in database.execute("SELECT health FROM files"))
