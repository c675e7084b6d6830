"""Runs of the denoiser that have adapters to themselves, one after another, and one output made of theirs all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeAlias

from torch import Tensor, nn

from diffadapt.errors import StackError
from diffadapt.inject.stack import PipelineAdapters

Forward: TypeAlias = "Callable[..., Any]"

Blend: TypeAlias = "Callable[[list[Any], Mapping[str, Any]], Any]"
"""One output made of the outputs of all runs, which had these keyword arguments."""


@contextmanager
def one_by_one(
    pipeline: Any, stack: PipelineAdapters, names: Sequence[str], runs: Sequence[str | None], blend: Blend
) -> Iterator[None]:
    """For a while, let what runs at every step run once for each of `runs`, and give what `blend` makes of it.

    names: the adapters that run apart. runs: in each of them that adapter acts alone of these, at None not one; what
    else is active acts in all. Raises StackError for what no run can have to itself.
    """

    def blended(forward: Forward) -> Forward:
        @wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            outputs = []
            for name in runs:
                with stack.muted(*(other for other in names if other != name)):
                    outputs.append(forward(*args, **kwargs))
            return blend(outputs, kwargs)

        return run

    with ExitStack() as last:
        for model in _models(pipeline, stack, names):
            last.enter_context(_forward(model, blended))
        yield


def leaves(outputs: Sequence[Any], mix: Callable[[Sequence[Tensor]], Tensor]) -> Any:
    """One output of several of one kind: `mix` of tensors of real numbers, for each in containers; else the first."""
    one = outputs[0]
    if isinstance(one, Tensor):
        return mix(outputs) if len(outputs) > 1 and one.is_floating_point() else one
    if isinstance(one, Mapping):
        return type(one)(**{key: leaves([output[key] for output in outputs], mix) for key in one})
    if isinstance(one, (tuple, list)):
        return type(one)(leaves(parts, mix) for parts in zip(*outputs, strict=True))
    return one


def stack_of(pipeline: Any) -> PipelineAdapters:
    """The adapters of a pipeline or model. Raises StackError if it was not enabled."""
    stack = vars(pipeline).get("adapters")
    if not isinstance(stack, PipelineAdapters):
        raise StackError("This pipeline has no adapters; call diffadapt.enable(pipe) and load some.")
    return stack


def _models(pipeline: Any, stack: PipelineAdapters, names: Sequence[str]) -> list[nn.Module]:
    """The models that run at every step and on which any of the adapters acts, as the pipeline calls them."""
    found: dict[str, nn.Module] = {}
    for name in names:
        if name not in stack.active:
            raise StackError(f"Adapter {name!r} is not in force; give it a strength.")
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
