"""`combine`: several adapters of any algorithms, ranks, dialects and layers, as one adapter."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffadapt.adapter import Adapter, Embedding, Foreign, Metadata, TargetKey
from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.lora import LoRA
from diffadapt.algorithms.norm import Norm
from diffadapt.algorithms.total import Sum
from diffadapt.combine.ground import Ground
from diffadapt.combine.methods import method_named
from diffadapt.combine.methods.base import Method
from diffadapt.combine.part import Part, shape_of
from diffadapt.combine.walking import Name, deltas_of, label
from diffadapt.combine.weighing import check_weights, noted, weight_of
from diffadapt.errors import AlgorithmError, CombineError
from diffadapt.inject.scaling import Strength

Weighted = Sequence[tuple[Adapter, Strength]]
Deltas = list[tuple[str, Delta, float]]
"""(adapter's name, delta, weight), of the adapters that have a target."""


def combine(
    adapters: Mapping[Adapter, Strength] | Iterable[tuple[Adapter, Strength]],
    method: str = "sum",
    *,
    rank: int | None = None,
    base: Any = None,
    name: str = "mix",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Adapter:
    """One adapter that does what several do at the given weights.

    adapters: adapter -> weight, or pairs of both (an adapter may then come twice); weights may be negative. "sum",
    "cat" and "svd" also take strengths by component, block and module pattern, as `pipe.adapters.set` does.
    method: "sum" (exact), "cat", "svd", or one of `METHODS`, which say their formulas. rank: of the result on every
    layer; None: exact. base: a pipeline (or model) with the base weights, wanted only where a change depends on them
    (rotations, DoRA, ...). dtype: of the result's tensors. options: the method's own, such as `density`.

    The result can be loaded, combined again and saved. `metadata.raw["diffadapt.combine"]` says how it was made;
    `losses` how much of the change the rank cost, by target. Raises CombineError where the adapters do not go together,
    where the base is wanted and missing, or where an option is wrong.
    """
    pairs: Weighted = [*(adapters.items() if isinstance(adapters, Mapping) else adapters)]
    chosen = method_named(method, options)
    if not pairs:
        raise CombineError("there is nothing to combine; give at least one adapter.")
    if rank is not None and rank < 1:
        raise CombineError(f"the rank is {rank}; expected at least 1.")
    check_weights(chosen, [weight for _, weight in pairs])
    candidates = _families(pairs)
    ground = Ground(base, candidates)
    by_target = _by_target(pairs, ground)
    chosen = chosen.over(_layers(by_target, chosen, ground))
    made: dict[Name, Delta] = {}
    losses: dict[TargetKey, float] = {}
    for target, deltas in by_target.items():
        delta, lost = _target(target, deltas, chosen, rank, ground)
        made[target] = delta.map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t)
        if lost and isinstance(target, TargetKey):
            losses[target] = lost
    dialects = {adapter.dialect for adapter, _ in pairs}
    return Adapter(
        name=name,
        dialect=dialects.pop() if len(dialects) == 1 else "kohya",
        targets={key: delta for key, delta in made.items() if isinstance(key, TargetKey)},
        foreign={key: delta for key, delta in made.items() if isinstance(key, Foreign)},
        embeddings=_embeddings(pairs),
        candidates=candidates,
        metadata=_metadata(pairs, method, rank, options, losses),
        losses=losses,
    )


def _families(pairs: Weighted) -> tuple[str, ...]:
    """The families that all adapters may be for, in the order of the first that says any."""
    said = [adapter.candidates for adapter, _ in pairs if adapter.candidates]
    common = [family for family in (said[0] if said else ()) if all(family in other for other in said)]
    if said and not common:
        named = "; ".join(f"{adapter.source} for {adapter.family}" for adapter, _ in pairs if adapter.candidates)
        raise CombineError(f"the adapters are for different models: {named}.")
    return tuple(common)


def _by_target(pairs: Weighted, ground: Ground) -> dict[Name, Deltas]:
    """target -> (adapter's name, delta, weight), of the adapters that have it."""
    found: dict[Name, Deltas] = {}
    for adapter, strength in pairs:
        weight = weight_of(adapter, strength, ground)
        for key, delta in deltas_of(adapter):
            if delta.live_only is not None:
                raise CombineError(
                    f"{adapter.source}: {delta.algorithm} cannot be combined, because {delta.live_only}."
                )
            found.setdefault(key, []).append((adapter.source, delta, weight(key)))
    return found


def _target(target: Name, deltas: Deltas, method: Method, rank: int | None, ground: Ground) -> tuple[Delta, float]:
    """The combined delta of one target, and what its rank cost."""
    if len(deltas) == 1 and deltas[0][2] == 1.0 and rank is None and method.keeps_one:
        return deltas[0][1], 0.0
    with _at(target):
        if all(isinstance(delta, Norm) for _, delta, _ in deltas):
            return _norm(deltas, method), 0.0
        parts = _parts(target, deltas, method, ground)
        made, lost = method.weight(parts, rank) if parts else (None, 0.0)
        return _with_bias(made, _bias(target, deltas, method, ground)), lost


@contextmanager
def _at(target: Name) -> Iterator[None]:
    """Names the target in what is raised."""
    try:
        yield
    except (AlgorithmError, CombineError) as error:
        raise CombineError(f"{label(target)}: {error}") from error


def _parts(target: Name, deltas: Deltas, method: Method, ground: Ground) -> list[Part]:
    """What the deltas of one target do to its weight."""
    changing = [found for found in deltas if not isinstance(found[1], Full) or found[1].changes_weight]
    if not changing:
        return []
    known, usual = ground.shape(target), ground.usual_shapes(target)
    if known is None and not method.needs_shape:
        shape = usual[0] if usual else ()
    else:
        shape = shape_of([delta for _, delta, _ in changing], known, usual)
    parts = [
        Part(owner, delta, weight, shape, partial(ground.weight, target, owner, delta))
        for owner, delta, weight in changing
    ]
    return [_of_weight(part) for part in parts]


def _layers(by_target: Mapping[Name, Deltas], method: Method, ground: Ground) -> Iterator[list[Part]]:
    """The parts of every weight, made one after the other."""
    for target, deltas in by_target.items():
        with _at(target):
            parts = [] if all(isinstance(d, Norm) for _, d, _ in deltas) else _parts(target, deltas, method, ground)
            if parts:
                yield parts


def _of_weight(part: Part) -> Part:
    """The part without what it does to the bias, which is combined on its own."""
    delta = part.delta
    if isinstance(delta, LoRA) and delta.bias is not None:
        return dataclasses.replace(part, delta=dataclasses.replace(delta, bias=None))
    if isinstance(delta, Full) and (delta.diff_b is not None or delta.new_bias is not None):
        return dataclasses.replace(part, delta=dataclasses.replace(delta, diff_b=None, new_bias=None))
    if isinstance(delta, Sum):
        kept = [p for p in delta.parts if not isinstance(p, Full) or p.changes_weight]
        return dataclasses.replace(part, delta=kept[0] if len(kept) == 1 else Sum(tuple(kept)))
    return part


def _norm(deltas: Deltas, method: Method) -> Norm:
    """The combined difference of a normalisation layer."""

    def vector(field: str) -> Tensor | None:
        found = [(weight, getattr(delta, field)) for _, delta, weight in deltas if getattr(delta, field) is not None]
        return method.vector([(weight, change.float()) for weight, change in found]) if found else None

    return Norm(vector("diff"), vector("diff_b"))


def _bias(target: Name, deltas: Deltas, method: Method, ground: Ground) -> Tensor | None:
    """The combined change of the bias, or None."""
    changes: list[tuple[float, Tensor]] = []
    for owner, delta, weight in deltas:
        if isinstance(delta, Full) and delta.new_bias is not None and not ground.given:
            raise CombineError(f"the {delta.algorithm} of {owner} replaces the bias; give the pipeline: base=pipe.")
        base = ground.bias(target) if ground.given else None
        change = delta.bias_change(base, partial(ground.weight, target, owner, delta))
        if change is not None:
            changes.append((weight, change))
    return method.vector(changes) if changes else None


def _with_bias(delta: Delta | None, bias: Tensor | None) -> Delta:
    if delta is None:
        return Full(diff_b=bias)
    if bias is None:
        return delta
    if isinstance(delta, LoRA):
        return dataclasses.replace(delta, bias=bias / delta.scale if delta.scale else bias)
    if isinstance(delta, Full):
        return dataclasses.replace(delta, diff_b=bias)
    return Sum((delta, Full(diff_b=bias)))


def _embeddings(pairs: Weighted) -> dict[str, Embedding]:
    """The textual-inversion vectors of all. Raises CombineError where two mean different things by one word."""
    found: dict[str, Embedding] = {}
    for adapter, _ in pairs:
        if adapter.prefixes:
            raise CombineError(f"{adapter.source}: a prefix is no change of weights: load it beside the combination.")
        for token, embedding in adapter.embeddings.items():
            other = found.setdefault(token, embedding)
            same = other.vectors.keys() == embedding.vectors.keys() and all(
                torch.equal(vector, embedding.vectors[part]) for part, vector in other.vectors.items()
            )
            if not same:
                raise CombineError(f"{adapter.source}: another adapter means something else by the word {token!r}.")
    return found


def _metadata(
    pairs: Weighted, method: str, rank: int | None, options: Mapping[str, Any], losses: Mapping[TargetKey, float]
) -> Metadata:
    words = dict.fromkeys(word for adapter, _ in pairs for word in adapter.metadata.trigger_words)
    made: dict[str, Any] = {
        "method": method, "rank": rank, "options": dict(options),
        "adapters": [[adapter.source, noted(weight)] for adapter, weight in pairs],
    }  # fmt: skip
    if losses:
        made["relative_error"] = {"mean": sum(losses.values()) / len(losses), "largest": max(losses.values())}
    bases = {adapter.metadata.base_model for adapter, _ in pairs}
    return Metadata(
        base_model=bases.pop() if len(bases) == 1 else None,
        trigger_words=tuple(words),
        raw={"diffadapt.combine": json.dumps(made, default=str)},
    )
