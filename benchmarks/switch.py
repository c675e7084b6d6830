"""What does it take to change the strengths of four loaded adapters, live, over 722 layers?

Peer: Diffusers' `set_adapters` with the same four files and numbers.
"""

from __future__ import annotations

import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import torch

import diffadapt
from benchmarks import sdxl
from benchmarks.timing import alternate, median

NAMES = ("a", "b", "c", "d")


def measure() -> dict[str, Any]:
    model = sdxl.unet()
    with tempfile.TemporaryDirectory() as folder:
        paths = [sdxl.kohya_file(model, Path(folder) / f"{n}.safetensors", seed=i) for i, n in enumerate(NAMES)]
        pipe = diffadapt.enable(sdxl.pipeline(model))
        for name, path in zip(NAMES, paths, strict=True):
            pipe.load_adapter(path, adapter_name=name)
        with torch.no_grad():
            model(**sdxl.step_inputs(model))  # so that everything a switch has to reach is there
        numbers = count(1)
        taken = alternate(
            {
                "number": lambda: pipe.adapters.set({n: 0.1 + 0.01 * (next(numbers) % 7) for n in NAMES}),
                "one_of_four": lambda: pipe.adapters.set({NAMES[next(numbers) % 4]: 1.0}),
                "blocks": lambda: pipe.adapters.set(
                    {n: {"unet": {"down": 0.2, "mid": 0.01 * (next(numbers) % 7), "up": 1.0}} for n in NAMES}
                ),
            },
            rounds=15,
        )
        pipe.adapters.clear()
        plain = sdxl.pipeline(model)
        for name, path in zip(NAMES, paths, strict=True):
            plain.load_lora_weights(path, adapter_name=name)
        peer = alternate(
            {"number": lambda: plain.set_adapters(list(NAMES), [0.1 + 0.01 * (next(numbers) % 7)] * 4)}, rounds=5
        )
    return {
        "set_ms": {name: float(f"{median(values) * 1e3:.3g}") for name, values in taken.items()},
        "diffusers_set_ms": float(f"{median(peer['number']) * 1e3:.3g}"),
        "diffusers_by_set": float(f"{median(peer['number']) / median(taken['number']):.3g}"),
    }
