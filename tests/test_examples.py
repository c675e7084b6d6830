"""Every example runs, offline, and says what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = {
    "quickstart": ["have their old bits: True", "the base image is back, bit for bit: True"],
    "mix": ["four at once", "base image bit for bit: True"],
    "merge_and_restore": ["copy: ", "code: ", "file: ", "0 differ after unmerge"],
    "train_in_place": ["step 29", "loaded into a new pipeline, differs by"],
    "take_over": ["base image bit for bit: True"],
    "train_style": [
        "The same run: diffadapt train",
        "style.safetensors",
        "dots, by pictures of prompts that no training had: ",
    ],
    "train_dreambooth": [
        "subject.safetensors",
        "moko, on backgrounds that it never had: ",
        "prompts that are followed",
    ],
    "train_shapes": ["unet frame LoRA", "dit frame LoRA"],
}
ORDER = sorted(EXAMPLES, key=lambda name: name != "train_shapes")
"""All share one process, which imports the libraries once. The first starts processes of its own: they are forked from
this one, so that they need not import anything either, before it has threads of its own."""
STYLES = ("outline", "zibo", "dusk", "frame")
SHORT = ["--steps", "2", "--measured", "1", "--prompts", "a red star on a blue background", "--out"]
ARGUMENTS = {
    "train_shapes": ["--work", "work", "--share", "0.001", "--styles", *STYLES],
    "train_style": [*SHORT, "style"],
    "train_dreambooth": ["--class-pictures", "2", *SHORT, "dreambooth"],
}
"""A thousandth of the steps, one adapter of each trainer: the way from nothing to package data, not the result."""
EACH = """
import gc
gc.set_threshold(100_000, 20, 100)
import contextlib, json, os, runpy, subprocess, sys, tempfile, traceback
import diffadapt, lycoris, peft
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection, T5EncoderModel
gc.freeze()

folder, names, arguments = sys.argv[1], sys.argv[3:], json.loads(sys.argv[2])
sys.path.insert(0, folder)

def script(path, *given):
    sys.argv = [path, *given]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        return "" if not end.code else f"exit code {end.code}"
    except BaseException:
        return traceback.format_exc()
    return ""

class Forked:
    def __init__(self, command):
        assert command[0] == sys.executable
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            error = script(*map(str, command[1:]))
            print(error, file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(bool(error))

    def wait(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

for name in names:
    with tempfile.TemporaryFile("w+") as said:
        real, subprocess.Popen = subprocess.Popen, Forked
        with contextlib.redirect_stdout(said):
            error = script(os.path.join(folder, name + ".py"), *arguments.get(name, []))
        subprocess.Popen = real
        said.seek(0)
        print(json.dumps([name, said.read(), error]), flush=True)
"""
"""Runs every script as Python would alone, one after the other, and says what each printed and how it failed."""


def child(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    command = (sys.executable, *command)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


def test_every_example_is_listed() -> None:
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"tiny"}
    assert scripts == set(EXAMPLES)


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each of the examples printed."""
    done = child(tmp_path_factory.mktemp("examples"), "-c", EACH, str(ROOT / "examples"), json.dumps(ARGUMENTS), *ORDER)
    found = {name: (text, error) for name, text, error in map(json.loads, done.stdout.splitlines())}
    assert list(found) == ORDER, done.stderr[-3000:]
    assert not any(error for _, error in found.values()), (found, done.stderr[-3000:])
    return {name: text for name, (text, _) in found.items()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str, printed: dict[str, str]) -> None:
    for expected in EXAMPLES[name]:
        assert expected in printed[name], printed[name]


def test_a_stopped_build_goes_on_where_it_was(tmp_path: Path) -> None:
    """Killed in the middle of a training, and called again, it ends with the same losses as one that was left alone."""
    sys.path.append(str(ROOT / "examples"))
    import torch
    from shapes import loop
    from torch import nn

    def build(folder: Path, stop: int | None) -> tuple[float, list[float]]:
        torch.manual_seed(0)
        model = nn.Linear(4, 4)

        def loss(step: int) -> torch.Tensor:
            if step == stop:
                raise KeyboardInterrupt
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            return (model(x) - x.flip(1)).square().mean()

        plan = loop.Plan("small", steps=40, rate=1e-2, warmup=5, average=0.9)
        end = loop.train(plan, model, list(model.parameters()), loss, folder)
        return end, [value.item() for value in model.weight.flatten()]

    whole = build(tmp_path / "whole", None)
    loop.SAVE_EVERY, before = 0.0, loop.SAVE_EVERY
    try:
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "stopped", 23)
        assert build(tmp_path / "stopped", None) == whole
    finally:
        loop.SAVE_EVERY = before
