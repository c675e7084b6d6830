"""The weight of every target in a combination: one number for all, or by component, block and module pattern."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from diffadapt.adapter import Adapter, Foreign, TargetKey
from diffadapt.combine.ground import Ground
from diffadapt.combine.methods.base import Method
from diffadapt.combine.walking import Name, deltas_of, label
from diffadapt.errors import CombineError, StackError
from diffadapt.inject.block_weights import block_strength
from diffadapt.inject.own_blocks import strength_for, vector_of
from diffadapt.inject.scaling import Strength, Targets, multipliers
from diffadapt.inject.schedule import Number, Schedule

WeightOf: TypeAlias = "Callable[[Name], float]"

_KINDS = {"sd1": "sd1", "sd2": "sd1", "sdxl": "sdxl", "kolors": "sdxl", "flux1": "flux"}
"""Family -> the kind of its block weights."""


def check_weights(method: Method, strengths: Sequence[Strength]) -> None:
    """Raise CombineError for weights that a method does not take."""
    numbers = [float(one) for one in strengths if isinstance(one, (int, float)) and not isinstance(one, bool)]
    if len(numbers) < len(strengths) and not method.by_target:
        raise CombineError(
            f"{method.name}: takes one weight for each adapter, not strengths by block; use method='sum', or 'svd' "
            "with a rank."
        )
    method.check(numbers if len(numbers) == len(strengths) else [1.0] * len(strengths))


def weight_of(adapter: Adapter, strength: Strength, ground: Ground) -> WeightOf:
    """What an adapter's change of a target is multiplied by. strength: in the grammar of `pipe.adapters.set`; without a
    base a misspelt block is not told from one that the adapter leaves alone.

    Raises CombineError for a strength that follows the denoising, which no single change of a weight can, and for one
    that is none; for one by block also where there is no telling the block of a target.
    """
    if isinstance(strength, (int, float)) and not isinstance(strength, bool):
        number = float(strength)
        return lambda name: number
    try:
        weights = _weights(adapter, strength, ground)
    except StackError as error:
        raise CombineError(f"{adapter.source}: {error}") from error
    found = {name: weight for name, weight in weights.items() if not isinstance(weight, Schedule)}
    scheduled = next((weight for weight in weights.values() if isinstance(weight, Schedule)), None)
    if scheduled is not None:
        raise CombineError(
            f"{adapter.source}: its strength follows the denoising ({scheduled}), and a file's weights stay what they "
            "are. Give it a number, or keep the mix as a recipe."
        )
    return found.__getitem__


def _weights(adapter: Adapter, strength: Strength, ground: Ground) -> dict[Name, Number]:
    """The strength of every target, by the path that the base has for it, or else the adapter."""
    names = [name for name, _ in deltas_of(adapter)]
    keys = [_key(adapter, name, ground) for name in names]
    vector = vector_of(strength)
    if vector is not None:
        strength = _by_block(adapter, vector, ground)
    parts = tuple(dict.fromkeys([*ground.parts, *(key.component for key in keys)]))

    def modules() -> dict[str, list[str]]:
        return {name: list(part.modules) for name, part in ground.parts.items()}

    found = multipliers(strength, Targets(keys), parts, modules if ground.given else None)
    return dict(zip(names, found, strict=True))


def _key(adapter: Adapter, name: Name, ground: Ground) -> TargetKey:
    place = ground.place(name)
    if place is None and isinstance(name, Foreign) and (name.flat or name.component is None):
        raise CombineError(
            f"{adapter.source}: {label(name)} is a module that no family knows"
            + (
                ", and the base has none of this name"
                if ground.given
                else "; give the pipeline: combine(..., base=pipe)"
            )
            + ". Its block cannot be told, so give the adapter one number."
        )
    return place or TargetKey(name.component or "", name.module)


def _by_block(adapter: Adapter, vector: str | Sequence[float], ground: Ground) -> Strength:
    """The strength that block weights mean for the base, or else for the adapter's family."""
    if ground.given:
        return strength_for(vector, {name: part.model for name, part in ground.parts.items()})
    if adapter.family is not None and adapter.family not in _KINDS:
        raise CombineError(
            f"{adapter.source}: what block weights mean for {adapter.family} only the model tells; give the pipeline: "
            "combine(..., base=pipe)."
        )
    return block_strength(vector, _KINDS[adapter.family] if adapter.family else None)


def noted(strength: Strength) -> object:
    """A strength as metadata say it."""
    return dict(strength) if isinstance(strength, Mapping) else strength
