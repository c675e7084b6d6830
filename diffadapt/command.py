"""The command line: `diffadapt inspect FILE...` says what a file is, and why that is thought."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence

from diffadapt.explain.explanation import Explanation
from diffadapt.explain.files import Outcome, Wanted, explain_each
from diffadapt.explain.sources import find


def _text(outcome: Outcome) -> tuple[bool, str]:
    return isinstance(outcome, Explanation), str(outcome)


def _json(outcome: Outcome) -> tuple[bool, str]:
    return isinstance(outcome, Explanation), json.dumps(outcome.to_dict())


def inspect(sources: Sequence[str], wanted: Wanted, as_json: bool, workers: int | None = None) -> int:
    """Print what each source is. Returns 1 where one of them could not be explained."""
    outcomes: Iterator[tuple[bool, str]] = explain_each(find(sources), _json if as_json else _text, wanted, workers)
    failed = False
    if as_json:
        print("[", end="")
        for number, (good, text) in enumerate(outcomes):
            print(",\n" if number else "\n", text, sep="", end="")
            failed |= not good
        print("\n]")
        return int(failed)
    for good, text in outcomes:
        print(text, file=sys.stdout if good else sys.stderr)
        failed |= not good
    return int(failed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. arguments: default: the process's own."""
    parser = argparse.ArgumentParser(prog="diffadapt", description="Read adapter files of any trainer.")
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("inspect", help="say what a file is: dialect, family, algorithms, ranks, problems")
    look.add_argument(
        "sources", nargs="+", metavar="FILE",
        help="a file, a folder (with all below it), a pattern, https://..., a Hub id owner/name, or "
        "hf://owner/name/file.safetensors; of remote files only the header is fetched",
    )  # fmt: skip
    look.add_argument("--json", action="store_true", help="a list of objects")
    look.add_argument("--hashes", action="store_true", help="sha256, AutoV2, AutoV3 (reads the whole file)")
    look.add_argument("--norms", action="store_true", help="how large the changes are (reads the whole file)")
    look.add_argument("--check", action="store_true", help="look for NaN and infinity (reads the whole file)")
    look.add_argument("--workers", type=int, metavar="N", help="processes (default: all processors for many files)")
    chosen = parser.parse_args(arguments)
    wanted = Wanted(chosen.hashes, chosen.norms, chosen.check)
    return inspect(chosen.sources, wanted, chosen.json, chosen.workers)
