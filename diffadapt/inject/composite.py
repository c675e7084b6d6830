"""Composite guidance: the denoiser runs once for every adapter, and the predictions are averaged.

What a weighted sum blurs (two characters, a style and an object) each adapter draws alone here, at the price of as many
runs. Guidance is linear in the predictions, so the mean of the denoiser's outputs, with and without the prompt, is the
mean of the guided predictions.

Source: LoRA Composite of "Multi-LoRA Composition for Image Generation" (arXiv:2402.16843), by its description.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from diffadapt.errors import StackError
from diffadapt.inject.one_by_one import leaves, one_by_one, stack_of
from diffadapt.inject.scaling import Strength

Owner = TypeVar("Owner")


@contextmanager
def composite(pipeline: Owner, adapters: Sequence[str] | Mapping[str, Strength]) -> Iterator[Owner]:
    """For a while, average the predictions that the denoiser makes with each of these adapters alone.

        with diffadapt.composite(pipe, ["ink", "clay"]):
            image = pipe("a cat").images[0]

    adapters: names, at the strengths they have; or name -> strength for as long as this lasts. Other adapters that are
    active act in every run (those of a distillation, say). Text encoders run once, with all of them. For UNets,
    transformers and whatever else runs at every step; ControlNets too, where an adapter acts on one.

    Raises StackError for names that are not loaded, not in force, or merged into what is to run, and for adapters that
    change parameters outside of layers, which no run has to itself.
    """
    stack = stack_of(pipeline)
    if isinstance(adapters, str) or not adapters or len(set(adapters)) != len(adapters):
        raise StackError(f"composite() takes different adapters, by name, not {adapters!r}.")
    names, before = tuple(adapters), dict(stack.strengths)
    for name in names:
        stack.report(name)  # says which names there are
    with ExitStack() as last:
        if isinstance(adapters, Mapping):
            last.callback(stack.set, before)
            stack.set({**before, **adapters})
        last.enter_context(one_by_one(pipeline, stack, names, names, lambda outputs, _: leaves(outputs, _mean)))
        yield pipeline


def _mean(outputs: Sequence[Tensor]) -> Tensor:
    """In float32, rounded once."""
    return torch.stack([output.float() for output in outputs]).mean(dim=0).to(outputs[0].dtype)
