"""The main job from end to end: two files of different trainers, mixed live, merged, and taken out to the very bits.

Run: python examples/quickstart.py     (writes out/base.png, out/mix.png, out/merged.png)
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import tiny
import torch

import diffadapt


def main() -> None:
    pipe = diffadapt.enable(tiny.pipeline())
    base = tiny.picture(pipe, tiny.OUT / "base.png")
    weights = {name: p.detach().clone() for name, p in pipe.unet.named_parameters()}
    with torch.no_grad():
        plain = pipe.unet(*tiny.inputs()).sample
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        lokr = tiny.lycoris_file(files / "pixel.safetensors", "lokr", seed=1)
        lora = tiny.peft_folder(files / "detail", seed=2)

        tiny.say("1. One at a time, against the forward of the trainer that wrote the file")
        for name, source, truth in (("pixel", files / "pixel.safetensors", lokr), ("detail", files / "detail", lora)):
            tiny.say(pipe.load_adapter(source, adapter_name=name, weight=1.0))
            pipe.adapters.set(name)
            with torch.no_grad():
                output = pipe.unet(*tiny.inputs()).sample
            change = tiny.difference(output, plain)
            tiny.say(f"  changes the UNet's output by {change:.2f}", end=" ")
            tiny.say(f"and differs from the trainer's by {tiny.difference(output, truth):.0e}")

    tiny.say("2. Both live: pixel at 0.7, detail at 1.0 in the up blocks only")
    pipe.adapters.set({"pixel": 0.7, "detail": {"unet": {"up": 1.0, "default": 0.0}}})
    mix = tiny.picture(pipe, tiny.OUT / "mix.png")
    tiny.say(f"  the image differs from the base's by {tiny.difference(mix, base):.2f}")

    tiny.say("3. Merged into the weights")
    tiny.say(" ", pipe.adapters.merge())
    merged = tiny.picture(pipe, tiny.OUT / "merged.png")
    tiny.say(f"  relative difference to the live mix: {tiny.difference(merged, mix):.0e}")

    tiny.say("4. Unmerged")
    pipe.adapters.unmerge()
    same = all(torch.equal(p, weights[name]) for name, p in pipe.unet.named_parameters())
    tiny.say(f"  all {len(weights)} weight tensors have their old bits: {same}")
    with pipe.adapters.disable():
        tiny.say(f"  the base image is back, bit for bit: {torch.equal(tiny.picture(pipe), base)}")
    tiny.say(f"Images: {', '.join(sorted(p.name for p in tiny.OUT.glob('*.png')))} in {tiny.OUT.name}/")
    if not same:
        raise SystemExit("unmerge did not restore the weights")


if __name__ == "__main__":
    main()
