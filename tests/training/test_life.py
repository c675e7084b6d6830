"""Beside training and in the middle of it: precisions, other adapters, strengths, copies, pictures between steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import diffadapt
from tests import tiny

UNET = {
    "block_out_channels": (32,), "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}  # fmt: skip
ALGORITHMS = ("lora", "lokr", "oft", "dora")


def pipeline(algorithm: str = "lora", *, strength: Any = 1.0, dtype: torch.dtype = torch.float32) -> Any:
    """A pipeline with the adapter "a" in training, away from its beginning."""
    pipe = diffadapt.enable(tiny.sd(**UNET).to(dtype=dtype))
    pipe.adapters.add("a", algorithm, rank=4, strength=strength)
    stir(pipe.adapters.parameters("a"))
    return pipe


def stir(tensors: list[Tensor], by: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(by * torch.randn(tensor.shape, generator=generator))


def goal() -> Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def loss(pipe: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    return (pipe.unet(*tiny.inputs(dtype)).sample.float() - goal()).square().mean()


def gradient(pipe: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """All of "a"'s, in one row."""
    found = torch.autograd.grad(loss(pipe, dtype), pipe.adapters.parameters("a"), materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


def train(pipe: Any, steps: int = 4, dtype: torch.dtype = torch.float32) -> list[float]:
    optimizer = torch.optim.Adam(pipe.adapters.parameters("a"), lr=5e-3)
    losses = []
    for _ in range(steps):
        now = loss(pipe, dtype)
        optimizer.zero_grad()
        now.backward()
        optimizer.step()
        losses.append(float(now.detach()))
    return losses


def error(seen: Tensor, truth: Tensor) -> float:
    return float((seen - truth).norm() / truth.norm())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_half_precision(algorithm, dtype):
    pipe, truth = pipeline(algorithm, dtype=dtype), pipeline(algorithm)
    assert {p.dtype for p in pipe.adapters.parameters("a")} == {torch.float32}
    # Activations and their gradients have 8 bits (11 in float16) in every layer.
    assert error(gradient(pipe, dtype), gradient(truth)) < (0.2 if dtype == torch.bfloat16 else 0.03)
    before = tiny.snapshot(pipe.unet)
    losses = train(pipe, dtype=dtype)
    assert losses[-1] < losses[0]
    assert tiny.same_bits(pipe.unet, before)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_autocast(algorithm):
    pipe = pipeline(algorithm)
    truth = gradient(pipe)
    with torch.autocast("cpu", torch.bfloat16):
        seen = gradient(pipe)
        losses = train(pipe)
    assert error(seen, truth) < 0.2  # as on a base in bfloat16
    assert seen.dtype == torch.float32
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_beside_another_adapter_live_or_merged(algorithm):
    """A change is taken of the base, whatever else acts: gradients beside a live adapter are those on a merged one."""
    pipe = diffadapt.enable(tiny.sd(**UNET))
    pipe.adapters.add("other", "lora", rank=4, trainable=False)
    stir([p.delta.up for p in pipe.adapters._loaded["other"].placements], 0.1)
    pipe.adapters.add("a", algorithm, rank=4)
    stir(pipe.adapters.parameters("a"))
    live = gradient(pipe)
    pipe.adapters.merge(["other"])
    merged = gradient(pipe)
    assert error(merged, live) < 1e-4
    losses = train(pipe)
    assert losses[-1] < losses[0]
    pipe.adapters.set({"a": 1.0})  # the other is out of the weights again
    alone = diffadapt.enable(tiny.sd(**UNET))
    alone.adapters.add("a", algorithm, rank=4)
    alone.adapters.load_state_dict("a", pipe.adapters.state_dict("a"))
    assert error(gradient(pipe), gradient(alone)) < 1e-5
    assert error(live, gradient(alone)) > 1e-3


def test_strengths_by_block_multiply_gradients():
    """A LoRA at a strength is one of as much more alpha; where the strength is 0 nothing is learnt."""
    half = pipeline(strength=0.5)
    twin = diffadapt.enable(tiny.sd(**UNET))
    twin.adapters.add("a", "lora", rank=4, alpha=2)
    stir(twin.adapters.parameters("a"))
    assert error(gradient(half), gradient(twin)) < 1e-5
    pipe = pipeline(strength={"unet": {"mid": 2.0, "default": 0.0}})
    loss(pipe).backward()
    named = dict(pipe.adapters.as_module("a").adapter.named_parameters())
    learning = {name for name, p in named.items() if p.grad is not None and bool(p.grad.abs().max() > 0)}
    assert learning == {name for name in named if "mid_block" in name}
    pipe.adapters.set({"a": 1.0})
    loss(pipe).backward()
    assert all(p.grad is not None for p in pipe.adapters.parameters("a"))


def test_disabled_set_and_removed_in_the_middle():
    pipe = tiny.sd(**UNET)
    pipe.unet.mid_block.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in pipe.unet.named_parameters()}
    hooks = {name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in pipe.unet.named_modules()}
    base = tiny.run(pipe.unet)
    diffadapt.enable(pipe)
    pipe.adapters.add("a", "lora", rank=4)
    assert not any(p.requires_grad for p in pipe.unet.parameters())
    train(pipe)
    trained = tiny.run(pipe.unet)
    with pipe.adapters.disable():
        assert torch.equal(tiny.run(pipe.unet), base)
        assert not loss(pipe).requires_grad
    assert torch.equal(tiny.run(pipe.unet), trained)
    pipe.adapters.add("b", "lokr", rank=4)
    pipe.adapters.remove("a")
    assert not any(p.requires_grad for p in pipe.unet.parameters())
    pipe.adapters.remove("b")
    assert {name: p.requires_grad for name, p in pipe.unet.named_parameters()} == flags
    assert hooks == {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in pipe.unet.named_modules()}
    assert torch.equal(tiny.run(pipe.unet), base)


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "tlora"])
def test_a_copy_trains_by_itself(algorithm):
    pipe = pipeline(algorithm)
    train(pipe, 1)
    twin = copy.deepcopy(pipe)
    assert torch.equal(tiny.run(twin.unet), tiny.run(pipe.unet))
    held = [p.detach().clone() for p in pipe.adapters.parameters("a")]
    seen, losses = tiny.run(pipe.unet), train(twin)
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, before) for p, before in zip(pipe.adapters.parameters("a"), held, strict=True))
    assert torch.equal(tiny.run(pipe.unet), seen)
    assert not torch.equal(tiny.run(twin.unet), seen)
    assert train(pipe) == losses  # the same way, from the same place


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "boft", "dylora"])
def test_pictures_between_steps_see_the_newest_weights(algorithm, tmp_path):
    pipe = pipeline(algorithm)
    seen = [tiny.run(pipe.unet)]
    for _ in range(2):
        train(pipe, 1)
        seen.append(tiny.run(pipe.unet))
        path = pipe.adapters.save("a", tmp_path / "now.safetensors")
        fresh = diffadapt.enable(tiny.sd(**UNET))
        fresh.load_adapter(path, adapter_name="b")
        assert tiny.relative(seen[-1], tiny.run(fresh.unet), tiny.run(tiny.unet(**UNET))) < 2e-5
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
