"""A compiled model trains as it does uncompiled: one graph, no break in it, and none compiled again at a later step."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import diffadapt
from tests import tiny

UNET = {
    "block_out_channels": (32,), "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}  # fmt: skip
TARGETS = "mid_block.**.attn2.to_*"
"""A compiler takes a second and more for every adapted layer."""


def losses(algorithm: str, **compiled: Any) -> list[float]:
    """Of a few steps; how the model is compiled, if it is."""
    torch._dynamo.reset()
    counters.clear()
    pipe = diffadapt.enable(tiny.sd(**UNET))
    pipe.adapters.add("a", algorithm, rank=4, targets=TARGETS)
    optimizer = torch.optim.SGD(pipe.adapters.parameters("a"), lr=20.0)
    goal = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    if compiled:
        pipe.unet = torch.compile(pipe.unet, **compiled)
    found = []
    for _ in range(3):
        loss = (pipe.unet(*tiny.inputs()).sample - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize("algorithm", ["lora", "lokr", "oft", "dora", "loha", "boft"])
def test_the_losses_of_an_uncompiled_model_in_one_graph(algorithm):
    eager = losses(algorithm)
    traced = losses(algorithm, backend="aot_eager", fullgraph=True)
    assert eager[-1] < eager[0]
    assert traced == pytest.approx(eager, rel=1e-6)  # the same kernels; some sums in another order
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="inductor needs a C++ compiler")
def test_inductor_trains_too():
    eager = losses("lora")
    assert losses("lora", backend="inductor", fullgraph=True) == pytest.approx(eager, rel=1e-5)  # fused kernels
    assert counters["stats"]["unique_graphs"] == 1
