"""`diffadapt convert`: the command line of a batch."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from tqdm import tqdm

from diffadapt.converters import cluster, local
from diffadapt.converters.batch import Batch, Engine
from diffadapt.converters.interrupt import INTERRUPTED, first_interrupt
from diffadapt.converters.plan import DTYPES, PARTS, Plan
from diffadapt.converters.work import FAILED, Record
from diffadapt.dialects import DIALECTS
from diffadapt.errors import ConvertError, DiffAdaptError

WRITTEN = tuple(sorted(dialect.name for dialect in DIALECTS))
ENGINES: Mapping[str, Engine] = {"local": local.run, "ray": cluster.run}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `diffadapt convert`."""
    add = parser.add_argument
    add("sources", nargs="+", metavar="SRC", help="a file, a folder (with all below it) or a pattern")
    add("--to", metavar="DIALECT", help=f"one of {', '.join(WRITTEN)} (default: each file's own)")
    add(
        "-o",
        "--out",
        required=True,
        type=Path,
        help="a folder, in which SRC's tree is mirrored; or one .safetensors file",
    )
    numbers = parser.add_argument_group("what is made of the numbers")
    add = numbers.add_argument
    add("--dtype", choices=tuple(DTYPES), help="the type of the numbers (default: as they are)")
    add("--algorithm", choices=("lora",), help="exact where that is possible, else of --rank")
    add("--rank", type=int, metavar="N", help="the largest rank of a layer")
    add("--ratio", type=float, help="drop singular values that are smaller than the largest by this")
    add("--share", type=float, help="keep this share of the Frobenius norm, from 0 to 1")
    add("--cumulative", type=float, help="keep this share of the sum of singular values, from 0 to 1")
    add("--only", choices=PARTS, help="what runs at every step, or the text encoders")
    about = parser.add_argument_group("metadata and checks")
    add = about.add_argument
    add("--strip", action="store_true", help="drop metadata, but for what the numbers' meaning hangs on")
    add("--keep", nargs="*", default=(), metavar="PATTERN", help="with --strip: metadata to keep")
    add("--strict", action="store_true", help="a key that no algorithm explains is an error")
    add("--check", action="store_true", help="refuse NaN and infinity")
    add("--verify", action="store_true", help="read every result again and compare it")
    run = parser.add_argument_group("the run")
    add = run.add_argument
    add("--dry-run", action="store_true", help="say what would be done")
    add("--overwrite", action="store_true", help="also results that are there and were made of something else")
    add("--engine", choices=tuple(ENGINES), default="local", help="this machine's cores (default), or Ray's tasks")
    add("--workers", type=int, metavar="N", help="processes (default: as many as cores)")
    add("--shard", metavar="I/N", help="part I of N, for job arrays: every part has its own report")
    add("--report", type=Path, help="where the report goes (default: diffadapt-convert.jsonl in the output folder)")
    add("--json", action="store_true", help="a line of JSON for every file, on the standard output")
    add(
        "--fail-on",
        choices=("any", "all", "none"),
        default="any",
        help="when the exit code is 1 (default: any failure)",
    )


def run(chosen: argparse.Namespace) -> int:
    """Run the command. Returns 0, or 1 by `--fail-on`, 130 after Ctrl-C; 2 for options that do not go together, and
    where the engine is not to be had."""
    try:
        given = {field.name: getattr(chosen, field.name) for field in fields(Plan)}
        plan = Plan(**given | {"keep": tuple(chosen.keep)})
        batch = Batch(chosen.sources, chosen.out, plan, part=chosen.shard, report=chosen.report)
        if chosen.engine == "ray":
            cluster.imported()  # before a folder is made
    except DiffAdaptError as error:
        print(f"diffadapt convert: {error}", file=sys.stderr)
        return 2
    if chosen.dry_run:
        return _tell(batch)
    counts: Counter[str] = Counter()
    with first_interrupt() as stop:
        try:
            _convert(batch, chosen, counts, stop)
        except ConvertError as error:
            print(f"diffadapt convert: {error}", file=sys.stderr)
            return 2
    print(
        f"{', '.join(f'{count} {status}' for status, count in sorted(counts.items()))}; {batch.report}", file=sys.stderr
    )
    if stop.is_set():
        print("Stopped. The same command goes on where this one was.", file=sys.stderr)
        return int(INTERRUPTED)
    bad = counts[FAILED]
    return int({"any": bad > 0, "all": 0 < bad == _total(batch), "none": False}[chosen.fail_on])


def _convert(batch: Batch, chosen: argparse.Namespace, counts: Counter[str], stop: threading.Event) -> None:
    """Run the batch, count what becomes of its files and show it. Raises ConvertError where the engine cannot begin."""
    total = _total(batch)
    options = {"overwrite": chosen.overwrite, "workers": chosen.workers, "engine": ENGINES[chosen.engine]}
    records = batch.run(stop=stop, **options)
    for record in tqdm(records, "convert", total, unit="file", disable=total < 2 or None, leave=False):
        counts[record.status] += 1
        _show(record, chosen.json)


def _total(batch: Batch) -> int:
    return len(batch.jobs) + len(batch.missing)


def _show(record: Record, as_json: bool) -> None:
    """A record on the standard output, or what is wrong with it on the other."""
    if as_json:
        tqdm.write(json.dumps(record.to_dict()), file=sys.stdout)
    elif record.status == FAILED:
        tqdm.write(f"{record.source}\n  {record.kind}: {record.message}", file=sys.stderr)
    elif record.left_out:
        reasons = Counter(record.left_out.values())
        said = "; ".join(f"{count} keys left out: {why}" for why, count in reasons.items())
        tqdm.write(f"{record.source}\n  {said}", file=sys.stderr)


def _tell(batch: Batch) -> int:
    for job in batch.jobs:
        print(f"{job.source} -> {job.file}")
    for record in batch.missing:
        print(record.message, file=sys.stderr)
    return int(bool(batch.missing))
