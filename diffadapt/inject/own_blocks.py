"""Strength by block for models that no shared layout is for: one number for the text encoders, then one for each block
of the denoiser, in its order.

    strength_for("1,0,0,1,1,1,1,1", models)   a UNet of seven blocks
    strength_for("MIDDLE:0.8", models)        a preset, all its numbers times 0.8

Presets: ALL, NONE, and FIRST, MIDDLE, LAST: a third of the blocks each, and the text encoders. What belongs to no block
keeps strength 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from diffadapt.errors import StackError
from diffadapt.inject.block_weights import BASE, LAYOUTS, PRESETS, USUAL, block_strength, kind_of, number
from diffadapt.inject.scaling import DEFAULT, Strength

_DENOISERS = ("unet", "transformer", "prior", "decoder")


class Layout(NamedTuple):
    """What block weights mean for a pipeline. kind: of the shared layouts, or None for the model's own blocks. names:
    what each number is for. presets: name -> numbers."""

    kind: str | None
    component: str
    names: tuple[str, ...]
    presets: Mapping[str, tuple[float, ...]]


def layout_of(models: Mapping[str, Any]) -> Layout | None:
    """The layout of a pipeline's models by component; None where no denoiser has blocks."""
    component = next((name for name in _DENOISERS if name in models), None)
    if component is None:
        return None
    kind = kind_of(models)
    if kind is not None:
        return Layout(kind, component, LAYOUTS[USUAL[kind]][1], PRESETS[kind])
    names = _blocks(models[component])
    return Layout(None, component, (BASE, *names), _presets(len(names))) if names else None


def strength_for(spec: str | Sequence[float], models: Mapping[str, Any]) -> Strength:
    """The strength that block weights mean for these models: in the shared layout where there is one for them, else by
    their own blocks. Raises StackError; see `block_strength`."""
    layout = layout_of(models)
    if layout is None or layout.kind is not None:
        return block_strength(spec, None if layout is None else layout.kind)
    values = _values(spec, layout)
    blocks = dict(zip(layout.names, values, strict=True))
    base, names = blocks.pop(BASE), layout.names[1:]
    # A second denoiser (Wan's low-noise expert is `transformer_2`) has the numbers of the first.
    twins = [name for name, model in models.items() if name.startswith(layout.component) and _blocks(model) == names]
    rules = {_rule(name): value for name, value in blocks.items()}
    return {DEFAULT: base, **{name: {DEFAULT: 1.0, **rules} for name in twins}}


def _rule(block: str) -> str:
    """A block in the grammar of `scaling`: the model's own list, not one of the same name within a part of it."""
    return block if block.startswith(("down.", "mid", "up.")) else f"^{block}"


def vector_of(strength: Strength) -> str | list[float] | None:
    """A strength that is written as block weights; None for any other."""
    if isinstance(strength, str) or not isinstance(strength, Sequence):
        return strength if isinstance(strength, str) else None
    numbers = [value for value in strength if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return numbers if len(numbers) == len(strength) else None


def _values(spec: str | Sequence[float], layout: Layout) -> list[float]:
    shown = spec if isinstance(spec, str) else ",".join(map(str, spec))
    parts = [part.strip() for part in spec.split(",")] if isinstance(spec, str) else list(spec)
    if isinstance(spec, str):
        name, _, factor = (part.strip() for part in spec.partition(":"))
        if name.upper() in layout.presets:
            return [value * number(factor or "1", shown) for value in layout.presets[name.upper()]]
    if len(parts) != len(layout.names):
        raise StackError(
            f"The block weights {shown!r} are {len(parts)}; this model takes {len(layout.names)} "
            f"({layout.names[0]}, {layout.names[1]} to {layout.names[-1]}) or one of {', '.join(layout.presets)}."
        )
    return [number(part, shown) for part in parts]


def _presets(count: int) -> dict[str, tuple[float, ...]]:
    """The presets for so many blocks."""
    first, last = round(count / 3), count - round(count / 3)

    def only(low: int, high: int) -> tuple[float, ...]:
        return (1.0, *(float(low <= i < high) for i in range(count)))

    return {
        "ALL": (1.0,) * (count + 1), "NONE": (0.0,) * (count + 1),
        "FIRST": only(0, first), "MIDDLE": only(first, last), "LAST": only(last, count),
    }  # fmt: skip


def _blocks(model: Any) -> tuple[str, ...]:
    """The blocks of a model as strengths name them: a UNet's on the way down, in the middle and up; of others every
    member of its lists of blocks, as they follow each other."""
    model = getattr(model, "_orig_mod", model)
    down, up = getattr(model, "down_blocks", None), getattr(model, "up_blocks", None)
    if isinstance(down, nn.ModuleList) and isinstance(up, nn.ModuleList):
        middle = ("mid",) if getattr(model, "mid_block", None) is not None else ()
        return (*(f"down.{i}" for i in range(len(down))), *middle, *(f"up.{i}" for i in range(len(up))))
    found: list[str] = []
    for name, part in model.named_children():
        if isinstance(part, nn.ModuleList) and ("block" in name or name == "layers"):
            found += [f"{name}.{i}" for i in range(len(part))]
    return tuple(found)
