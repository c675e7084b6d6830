"""Gradient checkpointing changes no gradient: what a forward draws at random is drawn again when it is repeated."""

from __future__ import annotations

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

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"dropout": 0.3, "rank_dropout": 0.3, "module_dropout": 0.3}),
    "lokr": ("lokr", {"dropout": 0.3, "rank_dropout": 0.3, "scale_rank_dropout": True}),
    "oft": ("oft", {"module_dropout": 0.5}),
    "dora": ("dora", {"dropout": 0.3}),
    "dylora": ("dylora", {"unit": 1}),
    "tlora": ("tlora", {"dropout": 0.2}),
}


def moved(owner: Any) -> None:
    """Take the adapter away from its beginning, where half of the gradients are zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in owner.adapters.parameters("a"):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def gradients(owner: Any, run: Any, goal: Tensor) -> list[Tensor]:
    torch.manual_seed(11)
    parameters = owner.adapters.parameters("a")
    return list(torch.autograd.grad((run() - goal).square().mean(), parameters, materialize_grads=True))


def compared(owner: Any, model: Any, run: Any) -> None:
    """The same gradients with checkpoints as without, and others under another seed where something is drawn."""
    moved(owner)
    goal = torch.randn(run().shape, generator=torch.Generator().manual_seed(2))
    model.train()  # Diffusers checkpoints then only
    plain = gradients(owner, run, goal)
    model.enable_gradient_checkpointing()
    checkpointed = gradients(owner, run, goal)
    assert any(float(gradient.abs().max()) > 0.0 for gradient in plain)
    for one, other in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_of_a_unet_with_several_timesteps(name):
    algorithm, options = CASES[name]
    pipe = diffadapt.enable(tiny.sd(**UNET))
    pipe.adapters.add("a", algorithm, rank=4, **options)
    sample, _, text = tiny.inputs(batch=3)
    timesteps = torch.tensor([20, 500, 950])
    compared(pipe, pipe.unet, lambda: pipe.unet(sample, timesteps, text).sample)


@pytest.mark.parametrize("name", CASES)
def test_of_a_transformer(name):
    algorithm, options = CASES[name]
    model = diffadapt.enable(tiny.flux())
    model.adapters.add("a", algorithm, rank=4, **options)
    generator = torch.Generator().manual_seed(0)
    shapes = {"hidden_states": (2, 4, 4), "encoder_hidden_states": (2, 5, 32), "pooled_projections": (2, 32)}
    arguments = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    arguments |= {"timestep": torch.tensor([0.9, 0.1]), "img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(5, 3)}
    compared(model, model, lambda: model(**arguments).sample)


def test_every_sample_has_the_ranks_of_its_timestep():
    """A batch of T-LoRA's timesteps is what its samples are alone."""
    pipe = diffadapt.enable(tiny.sd(**UNET))
    pipe.adapters.add("a", "tlora", rank=4, targets="attn")
    moved(pipe)
    sample, _, text = tiny.inputs(batch=3)
    timesteps = torch.tensor([20, 500, 950])
    whole = pipe.unet(sample, timesteps, text).sample
    alone = [pipe.unet(sample[i : i + 1], timesteps[i : i + 1], text[i : i + 1]).sample for i in range(3)]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-4, atol=1e-5)
    shared = pipe.unet(sample, timesteps[:1], text).sample
    assert (shared[2] - whole[2]).abs().max() > 1e-3
