"""What do a merge and the way back take, for each of the three ways a merge can be remembered?

The addmm floor itself depends on what the allocator holds (1.7 s in a new process, 1.2 s after a merge by code, on two
cores), so each way is compared only with the floor of its own rounds.
The first merge is told apart: it also gets the memory for the copy from the system, which later merges use again.
Floors, over the same 722 layers in the same rounds: float32 `addmm` of every weight rounded back to bfloat16, and a
copy of every weight. Peer: Diffusers' `fuse_lora` and `unfuse_lora`, whose way back is to subtract what was added.
"""

from __future__ import annotations

import gc
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import diffadapt
from benchmarks import sdxl
from benchmarks.timing import DEVICE, median, peak_growth, ratio, seconds, synchronise

WAYS: tuple[Literal["copy", "code", "file"], ...] = ("copy", "code", "file")
ROUNDS = 5


class Floors:
    """The plain arithmetic that no merge can do without."""

    def __init__(self, model: Any, path: Path, before: dict[str, Tensor]) -> None:
        """before: copies of all parameters, which serve here too: memory under pressure would slow the floors down."""
        tensors = load_file(path, device=DEVICE)
        keys = {name: sdxl.kohya_key(name) for name in sdxl.targets(model)}
        self.layers = [
            (m.weight.data, tensors[f"{keys[n]}.lora_up.weight"], tensors[f"{keys[n]}.lora_down.weight"])
            for n, m in sdxl.targets(model).items()
        ]
        self.copies = [before[f"{name}.weight"] for name in keys]

    def addmm(self) -> None:
        for weight, up, down in self.layers:
            weight.float().addmm_(up.float(), down.float()).to(weight.dtype)

    def copy(self) -> None:
        for (weight, _, _), saved in zip(self.layers, self.copies, strict=True):
            weight.copy_(saved)


def changed(model: Any, before: dict[str, Tensor]) -> tuple[int, int]:
    """How many tensors and how many single numbers differ from `before`."""
    counts = [int((p != before[name]).sum()) for name, p in model.named_parameters()]
    return sum(count > 0 for count in counts), sum(counts)


def ours(model: Any, path: Path, base: Path, floors: Floors, before: dict[str, Tensor]) -> dict[str, Any]:
    """Rounds of addmm, copy, merge and unmerge, for every way."""
    pipe = diffadapt.enable(sdxl.pipeline(model))
    pipe.load_adapter(path, adapter_name="a")
    results: dict[str, Any] = {}
    for way in WAYS:
        taken: dict[str, list[float]] = {"addmm": [], "copy": [], "merge": [], "unmerge": []}
        peak: int | None = None
        remembered, first = 0, 0.0
        merge = partial(pipe.adapters.merge, remember=way, base=base)
        for number in range(ROUNDS + 1):
            if number == 0:  # the warm-up, which also asks the system for the memory of a copy
                start = time.perf_counter()
                report, peak = peak_growth(merge)
                synchronise()
                first = time.perf_counter() - start
                remembered = sum(report.remembered.values())
                pipe.adapters.unmerge()
                floors.addmm()
                continue
            steps = {"addmm": floors.addmm, "copy": floors.copy}, {"merge": merge, "unmerge": pipe.adapters.unmerge}
            row = {n: seconds(call) for part in steps[:: 1 if number % 2 else -1] for n, call in part.items()}
            for name, value in row.items():
                taken[name].append(value)
        results[way] = {
            "first_merge_s": median([first]),
            "merge_s": median(taken["merge"]),
            "merge_by_addmm": ratio(taken["merge"], taken["addmm"]),
            "unmerge_s": median(taken["unmerge"]),
            "unmerge_by_copy": ratio(taken["unmerge"], taken["copy"]),
            "addmm_s": median(taken["addmm"]),
            "copy_s": median(taken["copy"]),
            "remembered_mib": round(remembered / 2**20, 1),
            "peak_mib": None if peak is None else round(peak / 2**20, 1),
            "changed_after_unmerge": dict(zip(("tensors", "numbers"), changed(model, before), strict=True)),
        }
    pipe.adapters.clear()
    return results


def diffusers(model: Any, path: Path, before: dict[str, Tensor]) -> dict[str, Any]:
    """Load, fuse, unfuse, unload with Diffusers, and what is left changed."""
    pipe = sdxl.pipeline(model)
    pipe.load_lora_weights(path, adapter_name="a")
    fuse, unfuse = [], []
    for number in range(2):
        fuse.append(seconds(pipe.fuse_lora))
        unfuse.append(seconds(pipe.unfuse_lora))
        if number == 0:
            after = {n.replace(".base_layer", ""): p for n, p in model.named_parameters() if ".lora_" not in n}
            counts = [int((p != before[name]).sum()) for name, p in after.items()]
    pipe.unload_lora_weights()
    return {
        "fuse_s": median(fuse),
        "unfuse_s": median(unfuse),
        "changed_after_unfuse": {"tensors": sum(count > 0 for count in counts), "numbers": sum(counts)},
    }


@torch.no_grad()
def measure() -> dict[str, Any]:
    model = sdxl.unet()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        path, base = sdxl.kohya_file(model, Path(folder) / "a.safetensors"), Path(folder) / "base"
        (base / "unet").mkdir(parents=True)
        save_file(model.state_dict(), base / "unet" / "diffusion_pytorch_model.safetensors")
        floors = Floors(model, path, before)
        results = ours(model, path, base, floors, before)
        del floors
        gc.collect()
        peer = diffusers(model, path, before)
    about = {"layers": len(sdxl.targets(model)), "weights": sum(p.numel() for p in before.values())}
    return about | results | {"diffusers": peer}
