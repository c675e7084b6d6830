"""`diffadapt merge` and `diffadapt extract`: from adapters and checkpoints to checkpoints and adapters."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from diffadapt.adapter import Adapter
from diffadapt.converters.change import only
from diffadapt.converters.plan import DTYPES, PARTS
from diffadapt.errors import DiffAdaptError
from diffadapt.reading import read_adapter


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """The options of one of the two commands."""
    add = parser.add_argument
    if command == "merge":
        add("base", type=Path, help="a .safetensors checkpoint, or a folder as Diffusers saves it")
        add("adapters", nargs="+", metavar="ADAPTER[:WEIGHT]", help="files, with their strengths (default: 1)")
        add("-o", "--out", required=True, type=Path, help="the merged file or folder")
        add("--only", choices=PARTS, help="what runs at every step, or the text encoders")
    else:
        add("tuned", type=Path, help="the fine-tuned checkpoint: a .safetensors file, or a folder")
        add("base", type=Path, help="the one it was made from")
        add("-o", "--out", required=True, type=Path, help="the adapter, a .safetensors file")
        add("--rank", required=True, type=int, metavar="N", help="of every layer, at most")
        add("--to", default="kohya", metavar="DIALECT", help="the dialect (default: kohya)")
        add("--dtype", choices=tuple(DTYPES), default="fp16", help="the type of the numbers (default: fp16)")


def run(chosen: argparse.Namespace) -> int:
    """Run the command. Returns 0, or 1 with the reason."""
    try:
        return _merge(chosen) if chosen.command == "merge" else _extract(chosen)
    except (DiffAdaptError, OSError) as error:
        print(f"diffadapt {chosen.command}: {error}", file=sys.stderr)
        return 1


def _merge(chosen: argparse.Namespace) -> int:
    from diffadapt.converters.merging import merge_files

    adapters = [weighed(text) for text in chosen.adapters]
    if chosen.only is not None:
        adapters = [(only(adapter, chosen.only), weight) for adapter, weight in adapters]
    done = merge_files(chosen.base, adapters, chosen.out)
    print(f"{chosen.out}: {done.changed} parameters of {len(done.files)} files changed")
    return 0


def weighed(text: str) -> tuple[Adapter, float]:
    """An adapter and its strength of "file.safetensors:0.8". A path that exists wins over a number."""
    path, colon, number = text.rpartition(":")
    if not colon or Path(text).exists():
        return read_adapter(text), 1.0
    try:
        weight = float(number)
    except ValueError:
        return read_adapter(text), 1.0
    return read_adapter(path), weight


def _extract(chosen: argparse.Namespace) -> int:
    from diffadapt.combine import extract

    found = extract(chosen.tuned, chosen.base, chosen.rank, dtype=DTYPES[chosen.dtype], name=chosen.out.stem)
    worst = max(found.losses.values(), default=0.0)
    found.save(chosen.out, dialect=chosen.to)
    print(f"{chosen.out}: {len(found.targets)} modules; rank {chosen.rank} costs a layer at most {worst:.1%}")
    return 0
