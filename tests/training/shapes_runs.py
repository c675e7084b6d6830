"""Fifty steps of training on an embedded pipeline, for any method: towards what an embedded adapter does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

import diffadapt
from diffadapt import shapes

STEPS, BATCH, SIZE = 50, 2, 8
# The small layers of the embedded models: what a method must be told to fit them, and how fast it learns.
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4}, "rslora": {"rank": 4}, "dora": {"rank": 4}, "loha": {"rank": 4}, "loha_dora": {"rank": 4},
    "lokr": {"rank": 4}, "lokr_dora": {"rank": 4}, "oft": {"rank": 8}, "oft_dora": {"rank": 8}, "oft_peft": {"rank": 8},
    "boft": {"rank": 16}, "boft_peft": {"rank": 4}, "glora": {"rank": 4}, "dylora": {"rank": 4, "unit": 2},
    "adalora": {"rank": 4, "target_rank": 2}, "tlora": {"rank": 4}, "vera": {"rank": 32}, "hra": {"rank": 4},
    "vblora": {"rank": 2, "vector_length": 16, "num_vectors": 32}, "fourierft": {"frequencies": 100, "scaling": 10.0},
}  # fmt: skip
TARGETS: dict[str, Any] = {
    "unet": "attn2",
    "dit": [f"transformer_blocks.{block}.attn.{part}" for block in (1, 2) for part in ("to_*", "add_*")],
}  # fmt: skip
RATES = {"ia3": 3e-2, "ia3_peft": 3e-2, "vera": 3e-2, "fourierft": 1e-1, "vblora": 2e-2, "tlora": 1e-3, "full": 1e-3}
RATE = 5e-3


@dataclass(frozen=True)
class Task:
    """What is learnt: a model's inputs, and what it is to make of them."""

    call: Callable[[Any], Tensor]
    goal: Tensor
    base: Tensor


def model_of(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


@cache
def task(kind: str) -> Task:
    """A batch of noise with prompts, and the outputs with the embedded style `outline`, doubled."""
    pipe = diffadapt.enable(shapes.load(kind))
    model = model_of(pipe)
    prompts = ["a red star on a blue background", "a green circle on a yellow background"]
    noise = torch.randn(BATCH, model.config.in_channels, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([300, 700])
    with torch.no_grad():
        if kind == "unet":
            text = pipe.encode_prompt(prompts, "cpu", 1, False)[0]

            def call(part: Any) -> Tensor:
                return part(noise, steps, text).sample
        else:
            text, _, pooled, _ = pipe.encode_prompt(prompts, None, None)

            def call(part: Any) -> Tensor:
                return part(noise, encoder_hidden_states=text, pooled_projections=pooled, timestep=steps).sample

        base = call(model)
        sample = next(s for s in shapes.adapters(kind) if s.name == "outline")
        pipe.load_adapter(sample.path, adapter_name="style", weight=2.0)
        return Task(call, call(model), base)


def train(pipe: Any, name: str, algorithm: str, kind: str, steps: int = STEPS, **options: Any) -> list[float]:
    """Train a fresh adapter; the loss of every step."""
    known = task(kind)
    asked = {"targets": TARGETS[kind], **OPTIONS.get(algorithm, {}), **options}
    report = pipe.adapters.add(name, algorithm, **asked)
    assert len(report.applied) > 10
    optimiser = torch.optim.AdamW(pipe.adapters.parameters(name), lr=RATES.get(algorithm, RATE), weight_decay=0.0)
    torch.manual_seed(0)
    losses = []
    for step in range(steps):
        loss = (known.call(model_of(pipe)) - known.goal).square().mean() / (known.goal - known.base).square().mean()
        losses.append(float(loss.detach()))
        (loss + 0.001 * pipe.adapters.penalty(name)).backward()
        optimiser.step()
        pipe.adapters.allocate(step, steps, name)
        optimiser.zero_grad()
    pipe.adapters.eval(name)
    return losses


def distance(one: Tensor, other: Tensor, base: Tensor) -> float:
    """The largest difference by the largest change of the base's output."""
    return float((one - other).abs().max() / (one - base).abs().max())
