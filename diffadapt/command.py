"""The command line: `diffadapt inspect FILE...` says what a file is, and why that is thought; `diffadapt convert`
writes files anew in another dialect; `diffadapt demo` shows adapters at work, `diffadapt app` lets people mix them,
`diffadapt train` makes new ones."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from diffadapt.errors import DiffAdaptError
from diffadapt.explain.explanation import Explanation
from diffadapt.explain.files import Outcome, Wanted, explain_each
from diffadapt.explain.sources import find

_CONVERTERS, _MIXER = "diffadapt.converters", "diffadapt.apps.mixer.serving"
MODULES = {
    **dict.fromkeys(("convert", "resize"), f"{_CONVERTERS}.command"),
    **dict.fromkeys(("index", "scan", "dedupe"), f"{_CONVERTERS}.library"),
    **dict.fromkeys(("merge", "extract"), f"{_CONVERTERS}.making"),
    "app": _MIXER,
    "train": "diffadapt.apps.trainer.command",
}
"""Commands that live elsewhere, and the module of each, which has `run`."""

LIBRARY = {
    "index": "keep one SQLite file of what is in a library: hashes, families, norms, trigger words, health",
    "scan": "say which files are broken, dangerous or to be used with care",
    "dedupe": "find the same adapter in several files, in whatever dialects",
}


MAKING = {
    "merge": "adapters into a checkpoint on disk, a layer at a time",
    "extract": "a LoRA of what a fine-tuned checkpoint differs in from its base",
}


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


def demo(pipeline: str, out: Path, prompt: str | None, seed: int, merged: bool, steps: int | None) -> int:
    """Draw with the embedded pipelines and their adapters. Returns 1 where that failed, and says why."""
    from diffadapt.apps.demo import Wishes, run  # here, because it imports Pillow
    from diffadapt.shapes import PIPELINES

    try:
        code: int = run(PIPELINES if pipeline == "both" else (pipeline,), out, Wishes(prompt, seed, merged, steps))
    except (DiffAdaptError, OSError) as error:
        print(f"diffadapt demo: {error}", file=sys.stderr)
        return 1
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. arguments: default: the process's own."""
    parser = argparse.ArgumentParser(prog="diffadapt", description="Read and use adapter files of any trainer.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_inspect(commands.add_parser("inspect", help="say what a file is: dialect, family, algorithms, problems"))
    _add_demo(commands.add_parser("demo", help="draw with small embedded pipelines and their adapters, offline"))
    _add_convert(commands.add_parser("convert", help="files to another dialect, size or algorithm, in batches"))
    resize = commands.add_parser("resize", help="smaller ranks: `convert` with a rule for them")
    _add_convert(resize)
    for name, what in MAKING.items():
        _add_making(commands.add_parser(name, help=what), name)
    for name, what in LIBRARY.items():
        _add_library(commands.add_parser(name, help=what), name)
    _add_app(commands.add_parser("app", help="the mixer: blend adapters on a page, see what they do"))
    _add_train(commands.add_parser("train", help="an adapter on a folder of pictures, by a TOML file"))
    chosen = parser.parse_args(arguments)
    if chosen.command == "resize" and not any((chosen.rank, chosen.ratio, chosen.share, chosen.cumulative)):
        resize.error("one of --rank, --ratio, --share, --cumulative is needed")
    if chosen.command in MODULES:
        code: int = import_module(MODULES[chosen.command]).run(chosen)
        return code
    if chosen.command == "demo":
        return demo(chosen.pipeline, chosen.out, chosen.prompt, chosen.seed, chosen.merge, chosen.steps)
    wanted = Wanted(chosen.hashes, chosen.norms, chosen.check)
    return inspect(chosen.sources, wanted, chosen.json, chosen.workers)


def _add_inspect(look: argparse.ArgumentParser) -> None:
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


def _add_convert(change: argparse.ArgumentParser) -> None:
    from diffadapt.converters.command import add_arguments

    add_arguments(change)


def _add_making(make: argparse.ArgumentParser, name: str) -> None:
    from diffadapt.converters.making import add_arguments

    add_arguments(make, name)


def _add_library(look: argparse.ArgumentParser, name: str) -> None:
    from diffadapt.converters.library import add_arguments

    add_arguments(look, name)


def _add_demo(show: argparse.ArgumentParser) -> None:
    show.add_argument("--pipeline", choices=("unet", "dit", "both"), default="both", help="which (default: both)")
    show.add_argument("--out", type=Path, default=Path("out"), help="a .png file, or a folder (default: out)")
    show.add_argument("--prompt", metavar="TEXT", help="draw this (default: each adapter's own prompt)")
    show.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
    show.add_argument("--steps", type=int, metavar="N", help="of denoising (default: as recommended)")
    show.add_argument("--merge", action="store_true", help="draw with merged weights, not with live adapters")


def _add_app(serve: argparse.ArgumentParser) -> None:
    from diffadapt.apps.mixer.serving import add_arguments

    add_arguments(serve)


def _add_train(learn: argparse.ArgumentParser) -> None:
    from diffadapt.apps.trainer.command import add_arguments

    add_arguments(learn)
