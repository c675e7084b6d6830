"""The log of a run: a line of JSON for every step. What a killed run wrote after its last checkpoint is taken back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = "log.jsonl"


class History:
    """step, loss, learning_rate and gradient (the norm before it is clipped) of every step."""

    def __init__(self, folder: Path, step: int, active: bool = True) -> None:
        """step: how many are done: later lines are dropped. active: whether this process writes."""
        self.file, self.active = folder / FILE, active
        self.losses: list[float] = []
        if not active:
            return
        kept = [line for line in read(folder) if line["step"] <= step]
        self.losses = [line["loss"] for line in kept]
        part = self.file.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        part.replace(self.file)

    def add(self, step: int, loss: float, rate: float, gradient: float) -> None:
        """Write a step's line. Floats are written so that they are read as the same bits."""
        self.losses.append(loss)
        if self.active:
            line = {"step": step, "loss": loss, "learning_rate": rate, "gradient": gradient}
            with self.file.open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")

    def recent(self, count: int = 50) -> float:
        """The mean loss of the last steps."""
        return sum(self.losses[-count:]) / max(1, len(self.losses[-count:]))


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; one that a kill cut short is left out."""
    file = folder / FILE
    found: list[dict[str, Any]] = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
