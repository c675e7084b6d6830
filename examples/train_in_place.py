"""Train an adapter where it is used: add an untrained one, optimise its tensors, save, load again.

The UNet stays frozen; gradients flow into the adapter alone. The target here is the output of another UNet.

Run: python examples/train_in_place.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import tiny
import torch
from torch import nn

import diffadapt


def main() -> None:
    pipe = diffadapt.enable(tiny.pipeline())
    with torch.no_grad():
        target = tiny.unet(seed=5)(*tiny.inputs()).sample
    tiny.say(pipe.adapters.add("mine", algorithm="lora", rank=8, targets="attn", seed=3))
    parameters = pipe.adapters.parameters("mine")
    tiny.say(f"{sum(p.numel() for p in parameters)} trainable numbers in {len(parameters)} tensors")

    optimiser = torch.optim.AdamW(parameters, lr=5e-3)
    losses = []
    for step in range(30):
        loss = nn.functional.mse_loss(pipe.unet(*tiny.inputs()).sample, target)
        torch.autograd.backward(loss)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        if step % 10 == 0 or step == 29:
            tiny.say(f"step {step:2}: loss {losses[-1]:.4f}")

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        trained = pipe.unet(*tiny.inputs()).sample
        file = pipe.adapters.save("mine", Path(folder) / "mine.safetensors", dialect="diffusers")
        other = diffadapt.enable(tiny.pipeline())
        tiny.say(other.load_adapter(file))
        error = tiny.difference(other.unet(*tiny.inputs()).sample, trained)
    tiny.say(f"the saved file, loaded into a new pipeline, differs by {error:.0e}")
    if losses[-1] >= losses[0] or error > 1e-4:
        raise SystemExit("training or saving went wrong")


if __name__ == "__main__":
    main()
