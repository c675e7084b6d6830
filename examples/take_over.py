"""A script for Diffusers' own LoRA methods gains every format by one line: `enable(pipe, take_over=True)`.

Diffusers itself reads neither of the two files here (a LoHa and a BOFT of LyCORIS).

Run: python examples/take_over.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import tiny
import torch

import diffadapt


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        for name, algorithm in (("ink", "loha"), ("paper", "boft")):
            tiny.lycoris_file(files / f"{name}.safetensors", algorithm, seed=len(name))

        plain = tiny.pipeline()
        base = tiny.picture(plain)
        try:
            plain.load_lora_weights(files, weight_name="paper.safetensors", adapter_name="paper")
            tiny.say("Diffusers alone: loaded")
        except Exception as error:  # noqa: BLE001  (whatever it is, it is what a user sees)
            tiny.say(f"Diffusers alone: {type(error).__name__}: {str(error).splitlines()[0][:90]}")

        pipe = diffadapt.enable(tiny.pipeline(), take_over=True)
        pipe.load_lora_weights(files, weight_name="ink.safetensors", adapter_name="ink")
        pipe.load_lora_weights(files, weight_name="paper.safetensors", adapter_name="paper")
        pipe.set_adapters(["ink", "paper"], adapter_weights=[1.0, 0.5])
        tiny.say("taken over: active", pipe.get_active_adapters())
        live = tiny.picture(pipe)
        tiny.say(f"the image differs from the base's by {tiny.difference(live, base):.2f}")
        pipe.fuse_lora()
        tiny.say(f"fused: relative difference to the live mix {tiny.difference(tiny.picture(pipe), live):.0e}")
        pipe.unfuse_lora()
        pipe.unload_lora_weights()
        same = torch.equal(tiny.picture(pipe), base)
        tiny.say("unfused and unloaded: base image bit for bit:", same)
        if not same:
            raise SystemExit("the base did not come back")


if __name__ == "__main__":
    main()
