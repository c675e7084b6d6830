"""Accelerate with DDP and with FSDP2 on two processes: the losses and the file of one process with the whole batch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed import run as launcher

import tests
from tests.training import spread


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left, that trained all cases in all ways."""
    found = tmp_path_factory.mktemp("spread")
    here = ["--standalone", "--nproc-per-node", "2", "--local-addr", "localhost", "-m", "tests.training.spread"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(tests.__file__).parents[1])
        patch.setenv("PYTHON_EXEC", sys.executable)
        patch.setenv("OMP_NUM_THREADS", "1")
        launcher.main([*here, str(found)])
    return found


@pytest.fixture
def accelerator():
    """Accelerate in this process alone."""
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The norm of what two files differ by."""
    assert one.keys() == other.keys()
    return float(sum((one[key].double() - other[key].double()).square().sum() for key in one)) ** 0.5


@pytest.mark.parametrize("name", spread.CASES)
def test_two_processes_train_what_one_trains(name, folder, accelerator, tmp_path):
    case, ways = spread.CASES[name], [way for way, (_, names) in spread.WAYS.items() if name in names]
    begun = spread.pipeline(case).adapters.save("a", tmp_path / "begun.safetensors")
    truth = spread.train(case, tmp_path / "one.safetensors", lambda *both: both, accelerator)
    one = load_file(tmp_path / "one.safetensors")
    learnt = distance(one, load_file(begun))
    assert truth[-1] < truth[0] - 0.005
    # The same sums in another order: some roundings of float32. In bfloat16 every activation is rounded to 8 bits, and
    # products of half as many rows round differently.
    exact = case.dtype == torch.float32
    of_losses, of_files = (1e-6, 1e-5) if exact else (2e-3, 5e-2)
    assert ways
    for way in ways:
        losses = json.loads((folder / "losses.json").read_text())[f"{way}: {name}"]
        assert losses == pytest.approx(truth, rel=of_losses), way
        files = [load_file(folder / f"{way} {name} {rank}.safetensors") for rank in (0, 1)]
        assert distance(*files) == 0.0
        assert distance(files[0], one) < of_files * learnt, way
