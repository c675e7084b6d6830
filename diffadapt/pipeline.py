"""`diffadapt.enable(pipe)`: a pipeline that loads any adapter."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any, TypeVar

from torch import Tensor, nn

from diffadapt.adapter import Adapter
from diffadapt.errors import StackError
from diffadapt.inject.learner import Dropouts, Learner
from diffadapt.inject.placement import LINEAR
from diffadapt.inject.scaling import Strength
from diffadapt.inject.stack import PipelineAdapters
from diffadapt.reading import read_adapter
from diffadapt.report import LoadReport

Owner = TypeVar("Owner")


def enable(pipeline: Owner, *, take_over: bool = False) -> Owner:
    """Give a pipeline (or a bare model) `load_adapter` and `adapters`. Idempotent; returns the same object.

    take_over: Diffusers' own LoRA methods on this pipeline (`load_lora_weights`, `set_adapters`, `fuse_lora`, ...) go
    through diffadapt too, so that an existing script gains every format without an edit.
    Raises StackError for something that is neither a DiffusionPipeline nor a torch module.
    """
    if not isinstance(pipeline, nn.Module) and not hasattr(pipeline, "components"):
        raise StackError(f"enable() takes a DiffusionPipeline or a model, not a {type(pipeline).__name__}.")
    own = vars(pipeline)
    if not isinstance(own.get("adapters"), PipelineAdapters):
        own["adapters"] = PipelineAdapters(pipeline)
        own["load_adapter"] = MethodType(load_adapter, pipeline)
    if take_over:
        from diffadapt.take_over import take_over as take

        take(pipeline)
    return pipeline


def load_adapter(
    pipeline: Any,
    source: str | os.PathLike[str] | Mapping[str, Tensor] | Adapter,
    *,
    adapter_name: str | None = None,
    weight: Strength = 1.0,
    strength: str = LINEAR,
    strict: bool = False,
    trainable: bool = False,
    alpha: float | None = None,
    into: Mapping[str, str] | None = None,
    dropout: float = 0.0,
    rank_dropout: float = 0.0,
    module_dropout: float = 0.0,
    **reading: Any,
) -> LoadReport:
    """Load an adapter and put it in force at strength `weight`, beside those that are active already.

    source: a file (`.safetensors`, `.pt`, `.bin`, `.ckpt`), a PEFT or Diffusers LoRA folder, a Hub id, a state dict or
        an `Adapter`. reading: `weight_name`, `subfolder`, `revision`, `token`, `cache_dir`, `local_files_only`, ..., as
        in Diffusers.
    adapter_name: default: the source's name. alpha: overrides the file's, for files that lost theirs.
    weight: as in `pipe.adapters.set`: a number, one by block, a preset or a vector of block weights, a schedule.
    strength: how the effect follows `weight`. "linear": W + weight * delta, for every algorithm; or a trainer's own
        rule: "stage" (LyCORIS' OFT and BOFT) and "geodesic" (the scaled generator, still a rotation) for rotations,
        "lycoris" and "peft" for DoRA. What has no such rule in the file stays linear.
    into: other components than the file's, {"transformer": "transformer_2"}: pipelines with two denoisers.
    strict: raise where a key finds no module. trainable: gradients flow into the adapter's tensors
        (`pipe.adapters.parameters(name)`), whatever trained it before; the dropouts are those of `pipe.adapters.add`.
    Raises DiffAdaptError of the fitting kind; the pipeline is then exactly as before.
    """
    stack: PipelineAdapters = pipeline.adapters
    dropouts = Dropouts(dropout, rank_dropout, module_dropout)
    with _no_collection():
        adapter = read_adapter(source, alpha=alpha, pipeline=pipeline, **reading)
        if into:
            adapter = adapter.moved(into)
        name = adapter_name or free_name(adapter.name, stack)
        learner = Learner(dropouts) if trainable else None
        return stack.load(adapter, name, weight, rule=strength, strict=strict, learner=learner)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection for a while. A load makes ten thousand objects that stay, and every full collection that
    they set off looks at all objects of the program, for a fifth of a second."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def free_name(source: str, stack: PipelineAdapters) -> str:
    """A name for an adapter after its source: the file's stem, made an identifier, numbered where it is taken."""
    stem = source.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    name = "".join(c if c.isalnum() or c in "_-" else "_" for c in stem) or "adapter"
    taken, number = name, 2
    while taken in stack:
        taken, number = f"{name}_{number}", number + 1
    return taken
