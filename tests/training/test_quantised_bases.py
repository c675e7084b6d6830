"""Adapters are trained on bases that the real libraries have quantised, as QLoRA does: the packed bits stay, and the
gradients are those on the same weights dequantised."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import diffadapt
from tests import quantised, tiny
from tests.quantised import packed_parts, same

FORMATS = (
    "torchao int8", "quanto int8", "gguf Q8_0", "gguf Q4_0", "bitsandbytes nf4", "bitsandbytes 8 bit",
)  # fmt: skip
ALGORITHMS = ("lora", "lokr", "oft", "dora")


def tolerance(name: str) -> float:
    """Of all gradients together, against their size: what the format's own arithmetic leaves of them."""
    if name in quantised.ROUNDED_INPUTS:
        return 0.05
    return 0.03 if name.startswith("bitsandbytes") else 1e-4  # on CPUs with AVX512-BF16 its 4-bit kernel is bfloat16


def step(model: torch.nn.Module, goal: Tensor) -> Tensor:
    loss = (model(*tiny.inputs()).sample - goal).square().mean()
    loss.backward()
    return loss.detach()


def add(model: torch.nn.Module, algorithm: str) -> list[torch.nn.Parameter]:
    """An adapter away from its beginning, where half of the gradients are zero."""
    model.adapters.add("a", algorithm, rank=4)
    generator = torch.Generator().manual_seed(3)
    parameters = model.adapters.parameters("a")
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return parameters


@pytest.mark.parametrize("name", FORMATS)
def test_training_on_a_quantised_base(name, tmp_path):
    model = quantised.unet(name, tmp_path)
    plain = quantised.dequantised(model)  # before the first forward: bitsandbytes reorders the bytes there
    goal = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    tiny.run(model)
    before = packed_parts(model)
    for one in (model, plain):
        diffadapt.enable(one)
    for algorithm in ALGORITHMS:
        parameters, twins = add(model, algorithm), add(plain, algorithm)
        optimizer = torch.optim.Adam(parameters, lr=2e-3)
        losses = [step(model, goal)]
        step(plain, goal)
        seen, truth = (torch.cat([p.grad.flatten() for p in all_]) for all_ in (parameters, twins))
        assert seen.isfinite().all()
        assert float((seen - truth).norm() / truth.norm()) < tolerance(name), algorithm
        for _ in range(4):
            optimizer.step()
            optimizer.zero_grad()
            losses.append(step(model, goal))
        assert losses[-1] < losses[0], algorithm
        for one in (model, plain):
            one.adapters.remove("a")
        assert same(packed_parts(model), before)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_diffusers_layerwise_casting_has_no_backward(algorithm, tmp_path):
    """Its hook puts the weights back into float8 before the backward needs them: without any adapter, too. A run is as
    it was; what trains on float8 are torchao's and quanto's weights."""
    model = quantised.unet("layerwise float8", tmp_path)
    sample, timestep, text = tiny.inputs()
    error = "expected scalar type Float but found Float8_e4m3fn"
    with pytest.raises(RuntimeError, match=error):
        model(sample.requires_grad_(), timestep, text).sample.sum().backward()
    diffadapt.enable(model)
    before, base = packed_parts(model), tiny.run(model)
    parameters = add(model, algorithm)
    with pytest.raises(RuntimeError, match=error):
        step(model, torch.zeros(1, 4, 8, 8))
    assert all(p.grad is None or p.grad.isfinite().all() for p in parameters)
    model.adapters.remove("a")
    assert same(packed_parts(model), before)
    assert torch.equal(tiny.run(model), base)
