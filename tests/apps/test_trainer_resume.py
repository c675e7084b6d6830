"""A run that is killed goes on from its last checkpoint with the same curve, to the bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file

from diffadapt.apps.trainer import checkpoints
from diffadapt.apps.trainer.history import read
from diffadapt.apps.trainer.loop import train
from diffadapt.apps.trainer.parsing import toml
from diffadapt.apps.trainer.settings import Settings
from diffadapt.command import main
from diffadapt.errors import TrainingError
from tests.apps.trained import same, settings

EVERYTHING = {
    "training__steps": 8, "training__accumulate": 2, "training__ema": 0.9, "training__batch": 1, "data__flip": True,
    "data__prompt_dropout": 0.3, "adapter__dropout": 0.2, "adapter__rank_dropout": 0.1, "checkpoints__every": 4,
    "adapter__tokens": {"<new>": "star"}, "training__warmup": 3, "samples__prompts": ["a star"], "samples__every": 3,
    "samples__options": {"num_inference_steps": 1},
}  # fmt: skip
"""Whatever draws at random or remembers something."""


def killed(file: Path, told: Settings, lines: int) -> None:
    """Start a run in a process of its own, and kill it without a word once its log has so many lines."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "diffadapt", "train", str(file)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        until = time.monotonic() + 300
        while len(read(told.out)) < lines and child.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        said = child.stderr.read().decode() if child.stderr else ""
        assert child.wait() == -signal.SIGKILL, said


def test_a_killed_run_goes_on_with_the_same_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = settings(tmp_path, **EVERYTHING)
    file = tmp_path / "run.toml"
    file.write_text(toml(told))
    killed(file, told, 5)
    done = len(read(told.out))
    assert 5 <= done < 8
    assert (told.out / "checkpoints" / "step-0000004").is_dir()
    assert main(["train", str(file), "--resume"]) == 0
    assert capsys.readouterr().out.strip().endswith("adapter.safetensors")
    whole = settings(tmp_path, output=str(tmp_path / "whole"), **EVERYTHING)
    train(whole)
    assert read(told.out) == read(whole.out)
    assert [line["step"] for line in read(told.out)] == list(range(1, 9))
    for name in ("adapter", "optimizer", "ema"):
        one, other = (load_file(s.out / "checkpoints" / "step-0000008" / f"{name}.safetensors") for s in (told, whole))
        assert same(one, other), name
    assert same(load_file(told.out / "adapter.safetensors"), load_file(whole.out / "adapter.safetensors"))


def test_only_the_same_run_goes_on(tmp_path: Path) -> None:
    given: dict[str, Any] = {"training__steps": 2, "checkpoints__every": 1, "training__schedule": "constant"}
    train(settings(tmp_path, **given))
    with pytest.raises(TrainingError, match=r"training.learning_rate was 0.002, is 0.01.*--fresh") as caught:
        train(settings(tmp_path, training__learning_rate=0.01, adapter__rank=4, **given))
    assert "adapter.rank was 2, is 4" in str(caught.value)
    same_again = settings(tmp_path, **given)
    next((tmp_path / "pictures").glob("*.txt")).write_text("another caption")
    with pytest.raises(TrainingError, match="the pictures or their captions are others"):
        train(same_again)


def test_a_longer_run_begins_as_the_shorter_one_and_fresh_begins_anew(tmp_path: Path) -> None:
    given: dict[str, Any] = {"checkpoints__every": 1, "training__schedule": "constant"}
    train(settings(tmp_path, training__steps=2, **given))
    longer = settings(tmp_path, training__steps=4, **given)
    train(longer)
    whole = settings(tmp_path, training__steps=4, output=str(tmp_path / "whole"), **given)
    train(whole)
    assert read(longer.out) == read(whole.out)
    train(settings(tmp_path, training__steps=1, training__schedule="linear"), fresh=True)
    assert [line["step"] for line in read(longer.out)] == [1]
    assert [path.name for path in (longer.out / "checkpoints").iterdir()] == ["step-0000001"]


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    told = settings(tmp_path, training__steps=2, checkpoints__every=1)
    train(told)
    folder = told.out / "checkpoints" / "step-0000002"
    (folder / "optimizer.safetensors").write_bytes(b"short")
    with pytest.raises(
        TrainingError, match=r"optimizer.safetensors: this checkpoint is broken .*Remove .*step-0000002"
    ):
        train(told)


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    kept = checkpoints.Checkpoints(tmp_path / "kept", keep=2)
    for step in (1, 2, 3):
        (kept.begin(step) / "state.json").write_text("{}")
        assert kept.steps() == [s for s in (1, 2) if s < step][-2:]
        kept.finish(step)
    assert kept.steps() == [2, 3]
    (kept.begin(4) / "half").write_text("")  # killed here
    assert kept.steps() == [2, 3]
    assert not list(kept.begin(4).iterdir())


def test_all_generators_are_brought_back(tmp_path: Path) -> None:
    def some() -> list[float]:
        return [random.gauss(0, 1), random.random(), numpy.random.randn(), numpy.random.rand(), torch.rand(()).item()]

    some()  # leaves half a pair of normal numbers in two of them
    checkpoints.write_tensors(tmp_path / "draws.safetensors", checkpoints.draws())
    first = some()
    checkpoints.set_draws(checkpoints.read_tensors(tmp_path / "draws.safetensors"))
    assert some() == first
