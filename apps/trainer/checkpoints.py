"""Checkpoints from which a run goes on to the bit: each a folder, written beside its place as a whole and renamed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffadapt.errors import TrainingError

_NAME = re.compile(r"step-(\d+)")
STATE = "state.json"


class Checkpoints:
    """The checkpoints of a run, below its output."""

    def __init__(self, folder: Path, keep: int) -> None:
        """keep: how many of the newest stay."""
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Those that are there, oldest first."""
        found = [_NAME.fullmatch(path.name) for path in self.folder.glob("step-*")]
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / f"step-{step:07}"

    def part(self, step: int) -> Path:
        """Where it is written before it is whole."""
        return self.folder / f"step-{step:07}.part"

    def begin(self, step: int) -> Path:
        """An empty folder to write into."""
        part = self.part(step)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        return part

    def finish(self, step: int) -> Path:
        """Put a checkpoint that was written as a whole into its place, and remove the oldest ones."""
        part, path = self.part(step), self.path(step)
        for file in part.iterdir():
            _to_disk(file)
        _to_disk(part)
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
        _to_disk(self.folder)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.path(old))
        return path

    def clear(self) -> None:
        """Remove all."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk (a power cut would lose it otherwise)."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file; of tensors that share memory, copies."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, file)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """What was written. Raises TrainingError for a file that cannot be read."""
    try:
        found: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{file}: this checkpoint is broken ({error}). Remove {file.parent} to go on from the one before it."
        ) from error
    return found


def read_state(folder: Path) -> dict[str, Any]:
    """What state.json of a checkpoint says. Raises TrainingError for a broken one."""
    try:
        found: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{folder / STATE}: this checkpoint is broken ({error}). Remove {folder} to go on from the one before it."
        ) from error
    return found


def split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors, and the rest as JSON can hold it."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {"param_groups": state["param_groups"], "state": {}}
    for number, known in state["state"].items():
        for name, value in known.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{name}"] = value
            else:
                plain["state"].setdefault(str(number), {})[name] = value
    return tensors, plain


def joined(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    """What `split` took apart."""
    state: dict[int, dict[str, Any]] = {int(number): dict(known) for number, known in plain["state"].items()}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    return {"state": state, "param_groups": plain["param_groups"]}


def draws() -> dict[str, Tensor]:
    """The states of all global generators: torch's of every device, Python's and NumPy's."""
    version, numbers, gauss = random.getstate()
    legacy: Any = numpy.random.get_state()
    found = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *numbers], dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(legacy[1].astype("int64")),
        "numpy_place": torch.tensor(legacy[2:4], dtype=torch.int64),
        "numpy_gauss": torch.tensor([legacy[4]], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        found |= {f"cuda.{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())}
    return found


def set_draws(states: Mapping[str, Tensor]) -> None:
    """Bring all global generators to where `draws` found them."""
    torch.set_rng_state(states["torch"])
    version, *numbers = states["python"].tolist()
    gauss = states["python_gauss"].tolist()
    random.setstate((version, tuple(numbers), gauss[0] if gauss else None))
    place, has_gauss = states["numpy_place"].tolist()
    key = states["numpy"].numpy().astype("uint32")
    numpy.random.set_state(("MT19937", key, place, has_gauss, float(states["numpy_gauss"])))
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda.{number}" in states:
            torch.cuda.set_rng_state(states[f"cuda.{number}"], number)
