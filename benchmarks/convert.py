"""How long does a file take to get other names, beside a copy of it?

An SDXL LoRA of rank 32 from Kohya's names to Diffusers'; results are removed between rounds. Floor: `cp`. Also the copy
that is waited for until it is on the disk, as ours is. Peers: load_file, a dictionary of new names, save_file; and
Diffusers' own converter with save_file. All hold numbers, ours has the BLAKE3 of the source in its header besides. The
first file of a structure is timed apart: what is worked out for it holds for those after it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from benchmarks import sdxl
from benchmarks.timing import alternate, median, peak_growth, ratio, seconds
from diffadapt.converters.jobs import Job
from diffadapt.converters.plan import Plan
from diffadapt.converters.work import DONE, Record, convert

ROUNDS = 5


def ours(source: Path, out: Path) -> Record:
    record = convert(Job(str(source), str(out)), Plan("diffusers"))
    if record.status != DONE:
        raise RuntimeError(record.message)
    return record


def by_hand(source: Path, out: Path, names: dict[str, str]) -> None:
    """With the new names known beforehand."""
    save_file({names[key]: tensor for key, tensor in load_file(source).items() if key in names}, out)


def diffusers(source: Path, out: Path) -> None:
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers

    tensors, _ = _convert_non_diffusers_lora_to_diffusers(load_file(source))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, out)


def synced_copy(source: Path, out: Path) -> None:
    shutil.copyfile(source, out)
    with out.open("rb+") as file:
        os.fsync(file.fileno())


def names_of(source: Path) -> dict[str, str]:
    """Kohya's keys -> Diffusers'."""
    modules = {sdxl.kohya_key(name): name for name in sdxl.targets(sdxl.blank())}
    ends = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    found = {}
    for key in load_file(source):
        module, _, end = key.partition(".")
        if end in ends:
            found[key] = f"unet.{modules[module]}.{ends[end]}"
    return found


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        source = sdxl.kohya_file(sdxl.blank(), Path(folder) / "source.safetensors")
        outs = {name: Path(folder) / f"{name}.safetensors" for name in ("cp", "synced", "ours", "hand", "diffusers")}
        names = names_of(source)

        def fresh(name: str, call: Callable[[Path], object]) -> Callable[[], object]:
            def run() -> None:
                call(outs[name])
                outs[name].unlink()

            return run

        calls = {
            "cp": fresh("cp", lambda out: subprocess.run(["cp", source, out], check=True)),
            "synced": fresh("synced", lambda out: synced_copy(source, out)),
            "ours": fresh("ours", lambda out: ours(source, out)),
            "hand": fresh("hand", lambda out: by_hand(source, out, names)),
            "diffusers": fresh("diffusers", lambda out: diffusers(source, out)),
        }
        first = seconds(calls["ours"])
        taken = alternate(calls, ROUNDS)
        _, peak = peak_growth(calls["ours"])
        return {
            "file_mb": source.stat().st_size / 1e6, "cp_s": median(taken["cp"]), "names_s": median(taken["ours"]),
            "synced_copy_s": median(taken["synced"]), "by_hand_s": median(taken["hand"]),
            "diffusers_s": median(taken["diffusers"]), "names_by_cp": ratio(taken["ours"], taken["cp"]),
            "names_by_synced_copy": ratio(taken["ours"], taken["synced"]),
            "by_hand_by_names": ratio(taken["hand"], taken["ours"]),
            "diffusers_by_names": ratio(taken["diffusers"], taken["ours"]),
            "peak_mib": None if peak is None else peak / 2**20, "first_s": round(first, 4),
        }  # fmt: skip
