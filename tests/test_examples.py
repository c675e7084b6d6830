"""Every example runs, offline, and says what it found."""

from __future__ import annotations

import importlib.util
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
}


def test_every_example_is_listed() -> None:
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"tiny"}
    assert scripts == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str, tmp_path: Path) -> None:
    if name == "take_over" and importlib.util.find_spec("diffadapt.take_over") is None:
        pytest.skip("diffadapt.take_over is not there yet")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    script = ROOT / "examples" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for expected in EXAMPLES[name]:
        assert expected in done.stdout, done.stdout
