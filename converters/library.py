"""`diffadapt index`, `scan` and `dedupe`: a library of files, what is wrong in it, and what is in it twice."""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tqdm import tqdm

from diffadapt.converters.index import BROKEN, OK, PROBLEM, duplicates, export, health, open_index, update
from diffadapt.converters.interrupt import INTERRUPTED, first_interrupt
from diffadapt.errors import DiffAdaptError

INDEX = "diffadapt-index.sqlite"


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """The options of one of the three commands."""
    parser.add_argument("sources", nargs="+", metavar="SRC", help="a file, a folder (with all below it) or a pattern")
    parser.add_argument(
        "--index", type=Path, metavar="FILE",
        help=f"the index, which is brought up to date (default: {INDEX} in the folder)" if command == "index"
        else "use and keep this index (default: none is kept)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: as many as cores)")
    parser.add_argument("--json", action="store_true", help="lines of JSON")
    if command == "index":
        parser.add_argument("--parquet", type=Path, metavar="FILE", help="write the index to a Parquet file, too")
    if command == "dedupe":
        parser.add_argument("--delete", action="store_true", help="delete all but the first of each group")


def run(chosen: argparse.Namespace) -> int:
    """Run the command. Returns 0; 1 where something is broken (scan) or cannot be read; 130 after Ctrl-C."""
    try:
        with _index(chosen) as database, first_interrupt() as stop:
            rows = update(database, chosen.sources, workers=chosen.workers, stop=stop)
            done = sum(1 for _ in tqdm(rows, chosen.command, unit="file", disable=None, leave=False))
            if stop.is_set():
                print(f"Stopped after {done} files; with an index kept, the same command goes on.", file=sys.stderr)
                return int(INTERRUPTED)
            return COMMANDS[chosen.command](database, chosen)
    except DiffAdaptError as error:
        print(f"diffadapt {chosen.command}: {error}", file=sys.stderr)
        return 1


@contextmanager
def _index(chosen: argparse.Namespace) -> Iterator[sqlite3.Connection]:
    with ExitStack() as last:
        path: Path | None = chosen.index
        if path is None and chosen.command == "index":
            first = Path(chosen.sources[0])
            path = (first if first.is_dir() else first.parent) / INDEX
        if path is None:
            path = Path(last.enter_context(tempfile.TemporaryDirectory())) / INDEX
        yield last.enter_context(open_index(path))


def _say_index(database: sqlite3.Connection, chosen: argparse.Namespace) -> int:
    if chosen.json:
        for row in database.execute("SELECT * FROM files ORDER BY path"):
            print(json.dumps(dict(row)))
    if chosen.parquet is not None:
        export(database, chosen.parquet)
    print(_counts(health(database)), file=sys.stderr if chosen.json else sys.stdout)
    return 0


def _say_health(database: sqlite3.Connection, chosen: argparse.Namespace) -> int:
    found = health(database)
    for row in database.execute("SELECT path, health, problems FROM files WHERE health != ? ORDER BY path", (OK,)):
        problems: Sequence[str] = json.loads(row["problems"])
        if chosen.json:
            print(json.dumps({"path": row["path"], "health": row["health"], "problems": problems}))
        else:
            print(f"{row['path']}\n  {row['health']}: " + "\n  ".join(problems))
    print(_counts(found), file=sys.stderr if chosen.json else sys.stdout)
    return int(found[BROKEN] > 0)


def _say_duplicates(database: sqlite3.Connection, chosen: argparse.Namespace) -> int:
    saved = 0
    for group in duplicates(database):
        first, *others = [row["path"] for row in group]
        saved += sum(row["size"] for row in group[1:])
        if chosen.json:
            print(json.dumps({"fingerprint": group[0]["fingerprint"], "files": [first, *others]}))
        else:
            print(f"{first} ({group[0]['dialect']})")
            print("\n".join(f"  = {row['path']} ({row['dialect']})" for row in group[1:]))
        if chosen.delete:
            for path in others:
                Path(path).unlink(missing_ok=True)
            with database:
                database.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in others])
    word = "deleted" if chosen.delete else "twice"
    print(f"{saved / 1e6:.1f} MB {word}", file=sys.stderr if chosen.json else sys.stdout)
    return 0


def _counts(found: Counter[str]) -> str:
    return ", ".join(f"{found[name]} {name}" for name in (OK, PROBLEM, BROKEN))


COMMANDS = {"index": _say_index, "scan": _say_health, "dedupe": _say_duplicates}
