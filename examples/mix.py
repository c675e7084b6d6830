"""Several algorithms at once, live, with a strength per block: a mix is a change of numbers, nothing is reloaded.

Run: python examples/mix.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import tiny
import torch

import diffadapt

MIXES: dict[str, dict[str, object]] = {
    "lora alone": {"lora": 1.0},
    "lora and boft": {"lora": 0.6, "boft": 0.8},
    "four at once": {"lora": 0.4, "loha": 0.4, "boft": 0.4, "dora": 0.4},
    "dora, cross-attention only": {"dora": {"unet": {"attn2": 1.0, "default": 0.0}}},
    "loha, weak in down, strong in up": {"loha": {"unet": {"down": 0.2, "mid": 0.6, "up": 1.0}}},
    "loha, one block": {"loha": {"unet": {"up": {"block_0": 1.0}, "default": 0.0}}},
}


def main() -> None:
    pipe = diffadapt.enable(tiny.pipeline())
    with tempfile.TemporaryDirectory() as folder:
        for name, algorithm, options in (
            ("lora", "lora", {}),
            ("loha", "loha", {}),
            ("boft", "boft", {}),
            ("dora", "lora", {"dora_wd": True, "wd_on_out": True}),
        ):
            path = Path(folder) / f"{name}.safetensors"
            tiny.lycoris_file(path, algorithm, seed=len(name), **options)
            tiny.say(pipe.load_adapter(path, adapter_name=name))
        with pipe.adapters.disable():
            base = tiny.picture(pipe)
        for title, strengths in MIXES.items():
            start = time.perf_counter()
            pipe.adapters.set(strengths)
            seconds = time.perf_counter() - start
            change = tiny.difference(tiny.picture(pipe), base)
            tiny.say(f"{title:34} image differs by {change:.3f}   switched in {seconds * 1e3:.1f} ms")
        pipe.adapters.clear()
    tiny.say("all adapters removed; base image bit for bit:", torch.equal(tiny.picture(pipe), base))


if __name__ == "__main__":
    main()
