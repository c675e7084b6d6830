"""The command line: `diffadapt inspect FILE...` says what a file is."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from diffadapt.adapter import Adapter
from diffadapt.errors import DiffAdaptError
from diffadapt.reading import read_adapter


def describe(adapter: Adapter) -> dict[str, Any]:
    """What an adapter is, in plain types."""
    about = adapter.metadata
    return {
        "name": adapter.name,
        "dialect": adapter.dialect,
        "evidence": adapter.evidence,
        "families": list(adapter.candidates),
        "algorithms": dict(adapter.algorithms),
        "components": list(adapter.components),
        "modules": len(adapter.targets) + len(adapter.foreign),
        "ranks": list(about.ranks),
        "alphas": list(about.alphas),
        "trainer": about.trainer,
        "base model": about.base_model,
        "trigger words": list(about.trigger_words),
        "embeddings": list(adapter.embeddings),
        "unmatched": list(adapter.unmatched),
        "ignored": dict(adapter.ignored),
    }


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {inner}" for key, inner in value.items())
    if isinstance(value, list):
        shown = ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value[:12])
        return f"{shown} and {len(value) - 12} more" if len(value) > 12 else shown
    return str(value)


def inspect(sources: Sequence[str], as_json: bool) -> int:
    """Print what each source is. Returns 1 where one of them could not be read."""
    failed = False
    for source in sources:
        try:
            found = describe(read_adapter(source))
        except DiffAdaptError as error:
            print(f"{source}: {type(error).__name__}: {error}", file=sys.stderr)
            failed = True
            continue
        if as_json:
            print(json.dumps({"source": source, **found}))
        else:
            print(source)
            print("\n".join(f"  {key}: {_line(value)}" for key, value in found.items() if value not in (None, [], {})))
    return int(failed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. arguments: default: the process's own."""
    parser = argparse.ArgumentParser(prog="diffadapt", description="Read adapter files of any trainer.")
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("inspect", help="say what a file is: dialect, family, algorithms, ranks, problems")
    look.add_argument("sources", nargs="+", metavar="FILE", help="a file, a folder or a Hub id")
    look.add_argument("--json", action="store_true", help="one JSON object per line")
    chosen = parser.parse_args(arguments)
    return inspect(chosen.sources, chosen.json)
