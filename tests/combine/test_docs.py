"""docs/combine.md says of every method what is true of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import diffadapt
from diffadapt.algorithms.full import Full
from diffadapt.combine import METHODS
from diffadapt.errors import CombineError
from tests.combine.made import adapter, lora

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "combine.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|\n ").split("|")]
    for line in TEXT[TEXT.index("## All methods") :].splitlines()
    if line.startswith("| `")
]
METHOD = re.compile(r"`(\w+)`")


def named(cell: str) -> list[str]:
    return METHOD.findall(cell)


def test_every_method_is_there_once_and_no_other() -> None:
    assert sorted(name for row in ROWS for name in named(row[0])) == sorted(METHODS)


def test_what_is_recommended_exists() -> None:
    known = {*METHODS, *diffadapt.__all__}
    other = {"rank", "compare", "mixed", "Adapter", "pipe", "resize", "balance", "composite"}
    for name in named(TEXT[: TEXT.index("## All methods")]):
        assert name in known | other, name


@pytest.mark.parametrize("row", ROWS, ids=lambda row: named(row[0])[0])
def test_sizes_are_as_said(row: list[str]) -> None:
    """Of two LoRAs of rank 2 and 3 (of 2 and 2 where a method wants one rank, of two OFTs where it wants rotations)."""
    names, sizes = named(row[0]), row[3].split("; ")
    for i, name in enumerate(names):
        said = sizes[min(i, len(sizes) - 1)]
        if name == "orthofuse":
            continue  # of no LoRAs: tests/combine/test_orthofuse.py
        first, second = (lora(2, 1), lora(2, 2)) if name.startswith("peft_") else (lora(2, 1), lora(3, 2))
        made = diffadapt.combine({adapter(first, "a"): 1.0, adapter(second, "b"): 0.5}, name)
        (delta,) = made.targets.values()
        if said in ("full", "others full"):
            assert isinstance(delta, Full), name
            continue
        pair = delta.low_rank()
        assert pair is not None, name
        expected = {"that rank": {2}, "largest rank": {3}, "each layer's own": {2, 3}}
        if said in expected:
            assert pair.rank in expected[said], name
        else:
            assert said == "ranks add up", said
            assert pair.rank <= 5, name
            assert pair.rank > 3 or not METHODS[name].keeps_one, name


@pytest.mark.parametrize("row", ROWS, ids=lambda row: named(row[0])[0])
def test_how_many_go_together_is_as_said(row: list[str]) -> None:
    names, counts = named(row[0]), row[2].split("; ")
    parts = [adapter(lora(2, seed), str(seed)) for seed in range(3)]
    for i, name in enumerate(names):
        if name == "orthofuse":
            continue
        if counts[min(i, len(counts) - 1)] == "two":
            with pytest.raises(CombineError):
                diffadapt.combine(dict.fromkeys(parts, 1.0), name)
        else:
            made = diffadapt.combine(dict.fromkeys(parts, 1.0), name)
            assert all(torch.isfinite(t).all() for d in made.targets.values() for t in d.tensors().values())
