"""Merging in bfloat16, the three ways back, and what a merge reports. Each way restores the very bits.

Run: python examples/merge_and_restore.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import tiny
import torch

import diffadapt

WAYS: tuple[tuple[Literal["copy", "code", "file"], str], ...] = (
    ("copy", "a copy of every merged weight: the fastest"),
    ("code", "a compressed difference: less memory, more time"),
    ("file", "nothing: the base model's own files are read again"),
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        tiny.pipeline().to(torch.bfloat16).save_pretrained(files / "base")
        pipe = diffadapt.enable(tiny.pipeline().to(torch.bfloat16))
        before = {name: p.detach().clone() for name, p in pipe.unet.named_parameters()}
        for name, algorithm in (("lora", "lora"), ("lokr", "lokr"), ("oft", "diag-oft")):
            path = files / f"{name}.safetensors"
            tiny.lycoris_file(path, algorithm, seed=len(name))
            pipe.load_adapter(path, adapter_name=name, weight=0.5)
        live = tiny.picture(pipe).float()
        for way, meaning in WAYS:
            report = pipe.adapters.merge(remember=way, base=files / "base")
            change = tiny.difference(tiny.picture(pipe).float(), live)
            changed = sum(not torch.equal(p, before[n]) for n, p in pipe.unet.named_parameters())
            pipe.adapters.unmerge()
            wrong = sum(not torch.equal(p, before[n]) for n, p in pipe.unet.named_parameters())
            tiny.say(f"{way}: {meaning}\n  {report}")
            tiny.say(f"  merged image differs from the live one by {change:.3f} (bfloat16 rounding)")
            tiny.say(f"  {changed} of {len(before)} tensors were changed, {wrong} differ after unmerge")
            if wrong:
                raise SystemExit(f"unmerge by {way} did not restore the weights")
        report = pipe.adapters.merge(mode="auto", max_loss=0.05)
        tiny.say("auto: layers that would lose more than 5 % of the change to rounding stay live")
        tiny.say(f"  {report}")


if __name__ == "__main__":
    main()
