"""The project's commands, for a machine that has only Python 3.11 or newer.

    python3.11 dev.py demo     the embedded pipelines draw with adapters of every kind (a minute once set up)
    python3.11 dev.py test     the test suite; further arguments go to pytest
    python3.11 dev.py check    ruff (lint and format) and mypy
    python3.11 dev.py bench    the benchmarks; further arguments name the questions
    python3.11 dev.py setup    only what each of the others does first: make or update the virtual environment .venv

Uses nothing but the standard library. The environment is set up once, and again when pyproject.toml changes.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
MARK = VENV / "diffadapt-setup.txt"
TORCH = "2.13.0"
"""The torch that is installed where the environment has none; any that pyproject.toml admits works."""


def run(*command: str | Path, check: bool = True) -> int:
    """Run a command in the project's folder, after printing it. check: a failing command ends this script."""
    words = [str(word) for word in command]
    print("$", shlex.join(words), flush=True)
    code = subprocess.run(words, cwd=ROOT).returncode
    if code and check:
        sys.exit(code)
    return code


def pip(*arguments: str, check: bool = True) -> int:
    """Run the environment's own pip."""
    return run(PYTHON, "-m", "pip", "--disable-pip-version-check", *arguments, check=check)


def has_gpu() -> bool:
    """Whether an NVIDIA driver is at work here."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True).returncode == 0


def has_torch() -> bool:
    """Whether the environment has a torch already."""
    probe = "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)"
    return subprocess.run([str(PYTHON), "-c", probe]).returncode == 0


def install_torch() -> None:
    """The CPU build where there is no NVIDIA GPU: from the indexes pip is set up with, else from where uv knows it."""
    if sys.platform == "darwin" or has_gpu():
        pip("install", f"torch=={TORCH}")
        return
    print("No NVIDIA GPU: looking for torch's CPU build.", flush=True)
    if pip("install", f"torch=={TORCH}+cpu", check=False) == 0:
        return
    print("pip's indexes have none for this Python; uv knows where it is.", flush=True)
    if pip("install", "uv", check=False) == 0:
        target = ("--python", str(PYTHON), "--torch-backend", "cpu")
        if run(PYTHON, "-m", "uv", "pip", "install", *target, f"torch=={TORCH}", check=False) == 0:
            return
    print("Neither has it: taking the default build, which also runs on a CPU but is larger.", flush=True)
    pip("install", f"torch=={TORCH}")


def state() -> str:
    """What the environment was made from; a different text means that it has to be brought up to date."""
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + Path(__file__).read_bytes()).hexdigest()
    return f"{digest} {VENV}"


def setup(extras: str = "test") -> None:
    """Make the virtual environment, or bring it up to date. Does nothing where it is and has these extras.

    The tests alone want `quantised`: Diffusers imports such libraries with itself, which takes a second and prints.
    """
    mark = MARK.read_text(encoding="utf-8") if MARK.is_file() and PYTHON.exists() else ""
    if mark.startswith(state()) and set(extras.split(",")) <= set(mark.rpartition(" ")[2].split(",")):
        return
    if not PYTHON.exists():
        print(f"Making a virtual environment in {VENV.name}", flush=True)
        venv.create(VENV, with_pip=True)
    if not has_torch():
        install_torch()
    version = "import importlib.metadata as m; print(m.version('torch').split('+')[0])"
    installed = subprocess.run([str(PYTHON), "-c", version], check=True, capture_output=True, text=True).stdout.strip()
    keep = VENV / "constraints.txt"  # so that no other package brings another torch
    keep.write_text(f"torch=={installed}\n", encoding="utf-8")
    install = ("install", "--constraint", str(keep.relative_to(ROOT)), "--editable")
    if pip(*install, f".[{extras}]", check=extras == "test") != 0:
        print("Not every quantiser is to be had here; the tests that need them are skipped.", flush=True)
        pip(*install, ".[test]")
    MARK.write_text(f"{state()} {extras}", encoding="utf-8")


def install_browser() -> None:
    """A Chromium for the tests of the page, where this machine has none: the system's package where we may install
    one, else the build that Playwright brings."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    if any(map(shutil.which, names)):
        return
    print("No Chromium here, which the tests of the mixer's page drive: installing one.", flush=True)
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        found = run("apt-get", "update", "-qq", check=False) or run(
            "apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu-core", check=False
        )
        if found == 0:
            return
    run(PYTHON, "-m", "playwright", "install", "chromium", check=False)


def demo(arguments: Sequence[str]) -> int:
    """Run `diffadapt demo`."""
    return run(PYTHON, "-m", "diffadapt", "demo", *arguments, check=False)


def test(arguments: Sequence[str]) -> int:
    """Run the test suite."""
    install_browser()
    return run(PYTHON, "-m", "pytest", *arguments, check=False)


def check(arguments: Sequence[str]) -> int:
    """Lint, format, types: all three, whichever fails."""
    codes = [
        run(PYTHON, "-m", "ruff", "check", *(arguments or ["."]), check=False),
        run(PYTHON, "-m", "ruff", "format", "--check", *(arguments or ["."]), check=False),
        run(PYTHON, "-m", "mypy", *arguments, check=False),
    ]
    return max(codes)


def bench(arguments: Sequence[str]) -> int:
    """Run the benchmarks and write their results into README.md."""
    return run(PYTHON, "-m", "benchmarks.run", *arguments, check=False)


def done(arguments: Sequence[str]) -> int:
    """Nothing more than the setup."""
    return 0


COMMANDS = {"demo": demo, "test": test, "check": check, "bench": bench, "setup": done}


def main() -> int:
    """Read the command line, set up, run."""
    name, *arguments = sys.argv[1:] or [""]
    if name not in COMMANDS:
        print(__doc__)
        return 2
    if sys.version_info < (3, 11):  # noqa: UP036  (this file is what an older Python would run)
        print(f"diffadapt needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
        return 2
    setup("test,quantised" if name == "test" else "test")
    return COMMANDS[name](arguments)


if __name__ == "__main__":
    sys.exit(main())
