"""Measure, write the results, and write them into README.md.

python -m benchmarks.run                    all questions: some 10 minutes and 20 GB of memory on two cores
python -m benchmarks.run forward switch     those named
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

QUESTIONS = ("load", "merge", "switch", "forward", "mixed", "train", "combine", "inspect", "convert")
RESULTS = Path(__file__).resolve().parent / "results"


def measure_here(question: str) -> None:
    """Measure one question in this process and write its file."""
    from benchmarks.machine import describe
    from benchmarks.timing import DEVICE

    start = time.perf_counter()
    about = describe()
    result = importlib.import_module(f"benchmarks.{question}").measure()
    record = {"question": question, **about, "seconds": round(time.perf_counter() - start), "result": result}
    RESULTS.mkdir(exist_ok=True)
    name = question if DEVICE == "cpu" else f"{question}-{DEVICE}"
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def main(arguments: Sequence[str]) -> int:
    """Each question in a process of its own, so that one's memory and threads do not weigh on the next."""
    if len(arguments) == 2 and arguments[0] == "--here":
        measure_here(arguments[1])
        return 0
    unknown = [name for name in arguments if name not in QUESTIONS]
    if unknown:
        print(f"There is no question {', '.join(unknown)}; choose of {', '.join(QUESTIONS)}.")
        return 2
    for question in arguments or QUESTIONS:
        print(f"== {question}", flush=True)
        command = [sys.executable, "-m", "benchmarks.run", "--here", question]
        done = subprocess.run(command, cwd=RESULTS.parent.parent)
        if done.returncode:
            return done.returncode
    from benchmarks.render import render

    render()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
