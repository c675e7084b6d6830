"""How long does loading take, for the 1st to the 10th adapter, and how much memory?

Floor: `safetensors.torch.load_file` and one number read of every tensor. Peer: Diffusers' `load_lora_weights`.
A loaded adapter's tensors are still mapped, so "ready" adds what the first denoising step after the load takes more
than the second; the same is done for Diffusers.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import diffadapt
from benchmarks import sdxl
from benchmarks.timing import DEVICE, median, peak_growth, ratio, seconds

ADAPTERS = 10
PEERS = 4
"""As many as Diffusers is asked to load: each takes seconds, and the trend shows."""


def read(path: Path) -> float:
    return sum(float(tensor.view(-1)[0]) for tensor in load_file(path, device=DEVICE).values())


@torch.no_grad()
def first_use(model: Any) -> float:
    """How much longer the first step takes than a later one."""
    step = partial(model, **sdxl.step_inputs(model))
    return seconds(step) - min(seconds(step), seconds(step))


def one_by_one(load: Callable[[Path, str], object], paths: list[Path]) -> tuple[list[float], list[float], int | None]:
    """Seconds of every load, of the bare read just before it, and the peak memory of the first load."""
    loads, reads, peak = [], [], None
    for number, path in enumerate(paths):
        reads.append(seconds(partial(read, path)))
        call = partial(seconds, partial(load, path, f"a{number}"))
        if number == 0:
            taken, peak = peak_growth(call)
        else:
            taken = call()
        loads.append(taken)
    return loads, reads, peak


def measure() -> dict[str, Any]:
    model = sdxl.unet()
    layers = list(sdxl.targets(model).values())
    numbers = sum(sdxl.RANK * (layer.in_features + layer.out_features) for layer in layers)
    with tempfile.TemporaryDirectory() as folder:
        paths = [sdxl.kohya_file(model, Path(folder) / f"{i}.safetensors", seed=i) for i in range(ADAPTERS)]
        for path in paths:
            read(path)
        with torch.no_grad():
            model(**sdxl.step_inputs(model))  # warm-up
        pipe = diffadapt.enable(sdxl.pipeline(model))
        pipe.load_adapter(paths[0], adapter_name="warm-up")
        pipe.adapters.remove("warm-up")
        ours, reads, our_peak = one_by_one(lambda path, name: pipe.load_adapter(path, adapter_name=name), paths)
        pipe.adapters.clear()
        pipe.load_adapter(paths[0], adapter_name="one")
        our_first_use = first_use(model)
        pipe.adapters.clear()
        gc.collect()

        plain = sdxl.pipeline(model)
        theirs, _, their_peak = one_by_one(
            lambda path, name: plain.load_lora_weights(path, adapter_name=name), paths[:PEERS]
        )
        plain.unload_lora_weights()
        plain.load_lora_weights(paths[0], adapter_name="one")
        their_first_use = first_use(model)
    return {
        "file_mb": round(2 * numbers / 1e6, 1),
        "layers": len(layers),
        "read_s": median(reads),
        "load_s": [float(f"{s:.4g}") for s in ours],
        "load_by_read": ratio(ours, reads),
        "tenth_by_first": float(f"{ours[-1] / ours[0]:.3g}"),
        "peak_mib": None if our_peak is None else round(our_peak / 2**20, 1),
        "first_use_s": float(f"{our_first_use:.3g}"),
        "diffusers_load_s": [float(f"{s:.4g}") for s in theirs],
        "diffusers_by_load": ratio(theirs, ours[:PEERS]),
        "diffusers_peak_mib": None if their_peak is None else round(their_peak / 2**20, 1),
        "diffusers_first_use_s": float(f"{their_first_use:.3g}"),
        "diffusers_ready_by_ready": float(f"{(theirs[0] + their_first_use) / (ours[0] + our_first_use):.3g}"),
    }
