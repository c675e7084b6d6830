"""Composite guidance: the denoiser runs once for every adapter, and the predictions are averaged.

What a weighted sum blurs (two characters, a style and an object) each adapter draws alone here, at the price of as many
runs. Guidance is linear in the predictions, so the mean of the denoiser's outputs, with and without the prompt, is the
mean of the guided predictions.

Source: LoRA Composite of "Multi-LoRA Composition for Image Generation" (arXiv:2402.16843), by its description.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from diffadapt.errors import StackError
from diffadapt.inject.scaling import Strength
from diffadapt.inject.stack import PipelineAdapters

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
    stack = _stack(pipeline)
    if isinstance(adapters, str) or not adapters or len(set(adapters)) != len(adapters):
        raise StackError(f"composite() takes different adapters, by name, not {adapters!r}.")
    names, before = tuple(adapters), dict(stack.strengths)
    for name in names:
        stack.report(name)  # says which names there are
    with ExitStack() as last:
        if isinstance(adapters, Mapping):
            last.callback(stack.set, before)
            stack.set({**before, **adapters})
        for model in _models(pipeline, stack, names):
            last.enter_context(_forward(model, lambda forward: _averaged(stack, names, forward)))
        yield pipeline


def _stack(pipeline: Any) -> PipelineAdapters:
    stack = vars(pipeline).get("adapters")
    if not isinstance(stack, PipelineAdapters):
        raise StackError("This pipeline has no adapters; call diffadapt.enable(pipe) and load some.")
    return stack


def _models(pipeline: Any, stack: PipelineAdapters, names: Sequence[str]) -> list[nn.Module]:
    """The models that run at every step and on which any of the adapters acts, as the pipeline calls them."""
    found: dict[str, nn.Module] = {}
    for name in names:
        if name not in stack.active:
            raise StackError(f"Adapter {name!r} is not in force; give composite() a strength for it.")
        parts = {key.component for key in stack.values(name) if "encoder" not in key.component}
        if taken := [part for part in parts if name in stack.merged_parts.get(part, ())]:
            raise StackError(
                f"Adapter {name!r} is merged into {', '.join(taken)}, so no run can leave it out: unmerge()."
            )
        if outside := stack.outside_of_layers(name):
            raise StackError(f"Adapter {name!r} changes {outside[0]}, which no layer computes with alone; it stays in.")
        found |= {p: pipeline if isinstance(pipeline, nn.Module) else getattr(pipeline, p) for p in parts}
    if not found:
        raise StackError(f"{', '.join(names)}: none acts on a model that runs at every step.")
    return list({id(model): model for model in found.values()}.values())


Forward = Callable[..., Any]


@contextmanager
def _forward(model: nn.Module, changed: Callable[[Forward], Forward]) -> Iterator[None]:
    """For a while, another forward on a model: below its hooks, above those of the modules in it."""
    own = vars(model).get("forward")
    model.forward = changed(model.forward)
    try:
        yield
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own


def _averaged(stack: PipelineAdapters, names: Sequence[str], forward: Forward) -> Forward:
    @wraps(forward)
    def averaged(*args: Any, **kwargs: Any) -> Any:
        outputs = []
        for name in names:
            with stack.muted(*(other for other in names if other != name)):
                outputs.append(forward(*args, **kwargs))
        return _mean(outputs)

    return averaged


def _mean(outputs: Sequence[Any]) -> Any:
    """The mean of outputs of one kind: tensors (in float32, rounded once), and containers of them."""
    one = outputs[0]
    if isinstance(one, Tensor):
        if len(outputs) == 1 or not one.is_floating_point():
            return one
        total = torch.stack([output.float() for output in outputs])
        return total.mean(dim=0).to(one.dtype)
    if isinstance(one, Mapping):
        means = {key: _mean([output[key] for output in outputs]) for key in one}
        return type(one)(**means)
    if isinstance(one, (tuple, list)):
        return type(one)(_mean(parts) for parts in zip(*outputs, strict=True))
    return one
