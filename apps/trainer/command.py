"""`diffadapt train`: a run from a TOML file."""

from __future__ import annotations

import argparse
import os
import sys
import tomllib
from collections.abc import Sequence
from typing import Any

from diffadapt.errors import DiffAdaptError, TrainingError

from .parsing import toml
from .settings import Data, Prior, Samples, Settings, read_settings

INTERRUPTED = 130
EXAMPLES = ("style", "dreambooth")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `diffadapt train`."""
    parser.add_argument("config", nargs="?", metavar="TOML", help="the settings; relative paths are meant from there")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
        help="another value of a setting, such as training.steps=500 (may be given several times)",
    )  # fmt: skip
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--resume", action="store_true", help="there has to be a checkpoint to go on from")
    begin.add_argument("--fresh", action="store_true", help="begin anew, whatever is in the output")
    parser.add_argument("--example", choices=EXAMPLES, help="print settings to begin with, every key explained")


def run(chosen: argparse.Namespace) -> int:
    """Run the command. Returns 0, 1 for what cannot be done, with a line that says why, 130 after Ctrl-C."""
    try:
        if chosen.example:
            print(example(chosen.example), end="")
            return 0
        if not chosen.config:
            raise TrainingError("a TOML file is needed; `diffadapt train --example style > style.toml` writes one.")
        settings = read_settings(chosen.config, changes(chosen.changes))
        from .loop import train  # here: it imports torch's and Diffusers' larger parts

        file = train(settings, fresh=chosen.fresh, resume=chosen.resume)
        if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
            print(file)
    except (DiffAdaptError, OSError) as error:
        print(f"diffadapt train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from the last checkpoint.", file=sys.stderr)
        return INTERRUPTED
    return 0


def changes(given: Sequence[str]) -> dict[str, Any]:
    """What --set says: key -> value, which is read as TOML, or else is a text. Raises TrainingError without a `=`."""
    found: dict[str, Any] = {}
    for text in given:
        key, sign, value = text.partition("=")
        if not sign:
            raise TrainingError(f"--set {text}: expected KEY=VALUE, such as training.steps=500.")
        try:
            found[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = value
    return found


def example(kind: str) -> str:
    """Settings of a kind with every key, its default and what it means."""
    subject = kind == "dreambooth"
    settings = Settings(
        kind="dreambooth" if subject else "style",
        model="stable-diffusion-v1-5/stable-diffusion-v1-5",
        name="subject" if subject else "style",
        output=f"out/{kind}",
        data=Data(folder="pictures", prompt="a photo of sks dog" if subject else ""),
        prior=Prior(prompts=("a photo of a dog",) if subject else ()),
        samples=Samples(
            every=200, prompts=("a photo of sks dog on the beach",) if subject else ("a house by the sea",)
        ),
    )
    return toml(settings, comments=True)
