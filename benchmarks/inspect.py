"""How long does `diffadapt inspect` take for 10 000 SDXL files of 2166 keys, of which it reads the headers?

A collection repeats few layouts of tensors, so two folders are measured: files of 36 layouts (ranks and types) that
differ in their metadata, and files of which no two are alike (as rank-resized files are). They are sparse: a header,
then a hole. The command runs as a user starts it, with its imports. Beside it: `json.loads` of every header, and the
names and shapes by way of safetensors' own reader.
"""

from __future__ import annotations

import json
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks import sdxl
from benchmarks.machine import ROOT

ALIKE, UNLIKE, SAMPLE = 10_000, 500, 500
TYPES = {"F16": 2, "BF16": 2, "F32": 4}
RANKS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
Sizes = dict[str, tuple[int, int]]


def entries(layers: Sizes, dtype: str, rank_of: Callable[[str], int]) -> tuple[str, int]:
    """The header's entries of a Kohya LoRA, in safetensors' order, and the bytes of the data."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (inputs, outputs) in layers.items():
        key, rank = sdxl.kohya_key(name), rank_of(name)
        shapes |= {
            f"{key}.alpha": (),
            f"{key}.lora_down.weight": (rank, inputs),
            f"{key}.lora_up.weight": (outputs, rank),
        }
    texts, end = [], 0
    for key in sorted(shapes):
        start, end = end, end + TYPES[dtype] * (shapes[key][0] * shapes[key][1] if shapes[key] else 1)
        shape = ",".join(map(str, shapes[key]))
        texts.append(f'"{key}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{start},{end}]}}')
    return ",".join(texts), end


def write(path: Path, body: str, data: int, rank: int, chance: random.Random) -> None:
    """A file with as many metadata as sd-scripts writes, and a hole for its data."""
    tags = {f"tag {chance.randrange(5000)}": chance.randrange(1, 90) for _ in range(100)}
    metadata = {f"ss_option_{number}": str(chance.random()) for number in range(75)} | {
        "ss_network_module": "networks.lora", "ss_base_model_version": "sdxl_base_v1-0", "ss_network_dim": str(rank),
        "ss_output_name": path.stem, "ss_tag_frequency": json.dumps({f"10_{path.stem}": tags}),
    }  # fmt: skip
    text = f'{{"__metadata__":{json.dumps(metadata, separators=(",", ":"))},{body}}}'.encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + data)


def fill(folder: Path, count: int, alike: bool) -> None:
    """Make `count` files."""
    layers = {name: (m.in_features, m.out_features) for name, m in sdxl.targets(sdxl.blank()).items()}
    chance = random.Random(0)
    made: dict[tuple[str, int], tuple[str, int]] = {}
    for number in range(count):
        dtype, rank = list(TYPES)[number % 3], RANKS[number // 3 % len(RANKS)]
        if not alike:
            made.clear()
        if (dtype, rank) not in made:
            made[dtype, rank] = entries(layers, dtype, lambda _: rank if alike else chance.randint(1, rank))  # noqa: B023
        write(folder / f"{number:05}.safetensors", *made[dtype, rank], rank, chance)


def command(folder: Path) -> dict[str, Any]:
    """Inspect a folder with the command line: wall time, and processor time of all its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        run = [sys.executable, "-m", "diffadapt", "inspect", "--json", str(folder)]
        subprocess.run(run, cwd=ROOT, stdout=out, check=True)
        wall = time.perf_counter() - start
        out.seek(0)
        found = json.load(out)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    if any(one["error"] or one["family"]["name"] != "sdxl" for one in found):
        raise RuntimeError("a file was not recognised")
    return {"files": len(found), "wall_s": round(wall, 1), "cpu_s": round(spent, 1)}


def parse(path: Path) -> int:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return len(json.loads(file.read(length)))


def shapes(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return len([file.get_slice(key).get_shape() for key in file.keys()])  # noqa: SIM118 (it is no mapping)


def each(call: Callable[[Path], int], paths: list[Path]) -> float:
    """Milliseconds of processor time for one file."""
    start = time.process_time()
    for path in paths:
        call(path)
    return float(f"{(time.process_time() - start) / len(paths) * 1e3:.3g}")


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        alike, unlike = Path(place, "alike"), Path(place, "unlike")
        alike.mkdir()
        unlike.mkdir()
        fill(alike, ALIKE, alike=True)
        fill(unlike, UNLIKE, alike=False)
        sample = sorted(alike.iterdir())[:SAMPLE]
        result: dict[str, Any] = {
            "keys": parse(sample[0]) - 1,
            "alike": command(alike) | {"structures": len(TYPES) * len(RANKS)},
            "unlike": command(unlike),
            "json_ms": each(parse, sample),
            "safe_open_ms": each(shapes, sample),
            "busy": [round(load, 1) for load in os.getloadavg()],
        }
    spent = result["alike"]["cpu_s"] / ALIKE * 1e3
    return result | {"by_json": float(f"{spent / result['json_ms']:.3g}")}
