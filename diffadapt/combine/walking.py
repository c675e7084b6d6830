"""What every function over a whole adapter shares: where its deltas act, which stay as they are, and a new adapter of
their successors."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffadapt.adapter import Adapter, Foreign, Metadata, TargetKey
from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.lora import LoRA
from diffadapt.algorithms.total import Sum
from diffadapt.combine.ground import Ground
from diffadapt.combine.part import Part, shape_of
from diffadapt.errors import AlgorithmError, CombineError, MergeError
from diffadapt.families.sizes import is_loose_parameter

Name = TargetKey | Foreign

_NUMBER = re.compile(r"[._](\d+)(?=[._]|$)")
_EMBEDDINGS = frozenset(
    {"token_embedding", "position_embedding", "shared", "embed_tokens", "relative_attention_bias", "wte", "wpe",
     "patch_embedding_table", "word_embeddings", "position_embeddings", "token_type_embeddings"}
)  # fmt: skip
_SHOWN = 8


def deltas_of(adapter: Adapter) -> Iterator[tuple[Name, Delta]]:
    """Every delta of an adapter, with where it acts."""
    yield from adapter.targets.items()
    yield from adapter.foreign.items()


def label(name: Name) -> str:
    """How messages call a target: "unet down_blocks.0...."."""
    return f"{name.component or 'model'} {name.module}"


def block_of(module: str) -> str:
    """The block of a module: "down_blocks.1", "single_transformer_blocks.12", "mid_block"; "(top level)" for none."""
    if module.startswith(("mid_block.", "mid_block_", "middle_block")):
        return "mid_block"
    found = _NUMBER.search(module)
    return f"{module[: found.start()]}.{found[1]}" if found else "(top level)"


def is_embedding(module: str) -> bool:
    """Whether a module with a matrix is a table of vectors, as far as its name tells."""
    return module.rpartition(".")[2] in _EMBEDDINGS


def is_table(name: Name, families: Iterable[str]) -> bool:
    """Whether a target is a parameter that belongs to no layer (a modulation table, a gate, a padding token)."""
    if name.module.endswith("_table"):
        return True
    return not isinstance(name, Foreign) and is_loose_parameter(families, name.component, name.module)


def part_of(name: Name, delta: Delta, owner: str, ground: Ground) -> Part:
    """The delta with the shape of its weight. Raises CombineError where that is not to be known, or where the delta is
    none of a single weight."""
    if delta.live_only is not None:
        raise CombineError(f"{delta.algorithm} has no one weight change, because {delta.live_only}.")
    shape = shape_of([delta], ground.shape(name), ground.usual_shapes(name))
    return Part(owner, delta, 1.0, shape, partial(ground.weight, name, owner, delta))


def stays(name: Name, delta: Delta, families: Iterable[str]) -> bool:
    """Whether a delta is none that a LoRA could stand for: of a bias alone, a norm, a table, an embedding's rows."""
    if isinstance(delta, Full) and not delta.changes_weight:
        return True
    if isinstance(delta, LoRA):
        return False
    shape = delta.shape_alone
    if isinstance(delta, Full) and delta.new_weight is not None:
        shape = tuple(delta.new_weight.shape)
    if shape is not None and len(shape) < 2:
        return True
    table = isinstance(delta, Full) and is_table(name, families)
    return delta.low_rank() is None and (is_embedding(name.module) or table)


def with_bias(made: Delta, delta: Delta, name: Name, owner: str, ground: Ground) -> Delta:
    """The new weight change with what the old delta did to the bias."""
    olds = delta.parts if isinstance(delta, Sum) else (delta,)
    kept: list[Delta] = []
    vector: Tensor | None = None
    for old in olds:
        if isinstance(old, Full):
            if old.diff_b is not None or old.new_bias is not None:
                kept.append(Full(diff_b=old.diff_b, new_bias=old.new_bias))
            continue
        change = old.bias_change(ground.bias(name), partial(ground.weight, name, owner, old))
        if change is not None:
            vector = change if vector is None else vector + change
    if vector is not None:
        if isinstance(made, LoRA) and made.scale:
            made = dataclasses.replace(made, bias=vector / made.scale)
        else:
            kept.append(Full(diff_b=vector))
    return Sum((made, *kept)) if kept else made


def rebuilt(
    adapter: Adapter,
    make: Callable[[Part], tuple[Delta, float]],
    note: Mapping[str, Any],
    base: Any,
    dtype: torch.dtype | None,
) -> Adapter:
    """The adapter with a new delta for each that does not stay as it is.

    make: the new delta of the weight, and its relative Frobenius error. note: what was done, for the metadata. dtype:
    of new tensors; None: that of the old ones. Raises CombineError with every target that could not be made.
    """
    ground = Ground(base, adapter.candidates)
    made: dict[Name, Delta] = {}
    lost: dict[Name, float] = {}
    failed: dict[str, str] = {}
    for name, delta in deltas_of(adapter):
        if stays(name, delta, adapter.candidates):
            made[name] = delta
            continue
        try:
            new, lost[name] = make(part_of(name, delta, adapter.source, ground))
            if new is not delta:
                new = with_bias(new, delta, name, adapter.source, ground)
            made[name] = _cast(new, delta, dtype)
        except (AlgorithmError, CombineError, MergeError) as error:
            failed[label(name)] = str(error)
    _refuse(adapter.source, failed)
    return dataclasses.replace(
        adapter,
        targets={name: delta for name, delta in made.items() if isinstance(name, TargetKey)},
        foreign={name: delta for name, delta in made.items() if isinstance(name, Foreign)},
        keys={}, foreign_keys={}, path=None, origin=None,
        metadata=_metadata(adapter, note, made, lost),
        losses={name: error for name, error in lost.items() if error and isinstance(name, TargetKey)},
    )  # fmt: skip


def _cast(new: Delta, old: Delta, dtype: torch.dtype | None) -> Delta:
    """The new delta in a type: the given one, or the old delta's own."""
    if new is old and dtype is None:
        return new
    own = next((t.dtype for t in old.tensors().values() if t.is_floating_point() and t.ndim > 1), torch.float32)
    wanted = dtype if dtype is not None else own
    return new.map_tensors(lambda t: t.to(wanted) if t.is_floating_point() else t)


def _refuse(source: str, failed: Mapping[str, str]) -> None:
    """Raise the error for targets that could not be made, each with its reason."""
    if not failed:
        return
    shown = "; ".join(f"{where}: {why}" for where, why in [*failed.items()][:_SHOWN])
    more = f"; and {len(failed) - _SHOWN} more" if len(failed) > _SHOWN else ""
    raise CombineError(f"{source}: {len(failed)} of its changes cannot be made: {shown}{more}")


def _metadata(
    adapter: Adapter, note: Mapping[str, Any], made: Mapping[Name, Delta], lost: Mapping[Name, float]
) -> Metadata:
    """What is still true of the new tensors: a trainer's own header would change how they are read."""
    told: dict[str, Any] = {**note, "from": adapter.source}
    if lost:
        told["relative_error"] = {"mean": sum(lost.values()) / len(lost), "largest": max(lost.values())}
    ranks = {delta.rank for delta in made.values() if delta.rank is not None}
    old = adapter.metadata
    return Metadata(
        trainer=old.trainer, base_model=old.base_model, trigger_words=old.trigger_words, ranks=tuple(sorted(ranks)),
        raw={"diffadapt.made": json.dumps(told, default=str)},
    )  # fmt: skip
