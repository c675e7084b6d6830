"""Which families a file may be for: by the names of its modules, then their widths, then which blocks it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from math import prod
from typing import NamedTuple

from torch import Tensor

from diffadapt.families import FAMILIES
from diffadapt.families.base import Family
from diffadapt.families.model import Layout
from diffadapt.families.names import Names, Route, renumbered, skeleton_of
from diffadapt.families.shapes import ROTATION, input_width, output_rows


class Module(NamedTuple):
    """One module of a file: what its prefix says, its name as the file has it, its tensors by canonical role."""

    slot: str | None
    name: str
    tensors: Mapping[str, Tensor]


_DENOISERS = frozenset({"denoiser", "unet", "transformer", "prior"})
_COMPARED = 12
"""Families among which depths are compared: more are left by files too small to tell anything."""
_ENOUGH = 0.25
"""The share of a file's modules that a family must know: a lone `norm` or `embed` is anybody's."""
Kind = tuple[str | None, str]
"""Slot and skeleton: modules of one kind differ in their counters only."""


def choose(
    modules: Sequence[Module],
    base_model: str | None,
    families: Sequence[Family] = FAMILIES,
    classes: Collection[str] = (),
    known: str | None = None,
) -> tuple[Family, ...]:
    """The families whose names fit the most modules, best first; none where no name fits.

    base_model: what the file's metadata say, lower case. It decides the order only where shapes do not, because
    metadata survive conversions that make them wrong. classes: the model classes of the pipeline at hand, where there
    is one: among families that keys cannot separate, the pipeline's own. known: the name of the family where it is
    known already: the first, if names and shapes allow it at all.
    """
    kinds: dict[Kind, Module] = {}
    counts: Counter[Kind] = Counter()
    for module in modules:
        kind = (module.slot, skeleton_of(module.name)[0])
        kinds.setdefault(kind, module)
        counts[kind] += 1
    # Text encoders are shared by many families: they name none where the denoiser is a stranger.
    denoiser = [kind for kind in kinds if kind[0] in _DENOISERS]
    near = _near(kinds) if families is FAMILIES else families
    able = [f for f in near if not denoiser or any(_knows(f, kind) for kind in denoiser)]
    covered = {family: sum(n for kind, n in counts.items() if _knows(family, kind)) for family in able}
    most = max(covered.values(), default=0)
    if most < len(modules) * _ENOUGH:
        return ()
    found = [family for family in able if most and covered[family] == most]
    verdicts = {family: shape_verdict(family, kinds.values()) for family in found}
    agreeing = [family for family in found if verdicts[family][0] > 0 and verdicts[family][1] == 0]
    found = agreeing or found
    # A family that every shape contradicts stays only where all others are contradicted too, as by a tiny model's file.
    possible = [f for f in found if verdicts[f][1] == 0 or verdicts[f][0] > 0 or _kinship(f, classes)]
    found = possible or found
    if len(found) > 1:
        names = [module.name for module in modules]
        order = {
            family: (
                -_kinship(family, classes),
                # Without any agreement (a tiny model's file) the number of contradictions says nothing.
                verdicts[family][1] if verdicts[family][0] else len(kinds),
                -_named(family, base_model),
                family.rare and not verdicts[family][0],
                strangers(family, names, found),
            )
            for family in found
        }
        found.sort(key=lambda family: order[family])
        equals = [family for family in found if order[family] == order[found[0]]]
        if 1 < len(equals) <= _COMPARED:
            found[: len(equals)] = sorted(equals, key=lambda family: slack(family, modules))
    return tuple(sorted(found, key=lambda family: family.name != known))


def certain(family: Family, modules: Sequence[Module]) -> frozenset[str]:
    """The components of which the file holds a module that no other component has.

    A ControlNet's own blocks occur nowhere else; the rest of its names are the UNet's.
    """
    kinds = {(module.slot, skeleton_of(module.name)[0]) for module in modules}
    knowing = [[part for part, names in family.names_of(slot) if names.knows(kind)] for slot, kind in kinds]
    return frozenset(parts[0] for parts in knowing if len(parts) == 1)


def component_of(family: Family, module: Module, certain: Collection[str] = ()) -> tuple[str, Names] | None:
    """The component that a module belongs to, and its names; None where the family has neither.

    Where the file does not say, the names tell; where two components share names, the shapes do or what the file
    certainly holds (see `certain`); where two text encoders do, the width.
    """
    options = _knowing(family, module)
    if len(options) > 1:
        width = input_width(module.tensors)
        fitting = [o for o in options if width is not None and (o[0], width) in _hidden(family)] or options
        held = [o for o in fitting if o[0] in certain]
        options = held if len(held) == 1 else fitting
    return options[0] if options else None


def _knowing(family: Family, module: Module) -> list[tuple[str, Names]]:
    """The components that have a module of this name; of several, those whose full-size shapes are the file's."""
    options = [(part, names) for part, names in family.names_of(module.slot) if names.resolve(module.name)]
    if len(options) < 2:
        return options
    return [(part, names) for part, names in options if _is_sized(names, module)] or options


def _is_sized(names: Names, module: Module) -> bool:
    """Whether the module's tensors have the full-size shapes of its targets."""
    route = names.resolve(module.name)
    return bool(route and names.model and _fits(names.model.measured, route, module.tensors))


def shape_verdict(family: Family, modules: Collection[Module]) -> tuple[int, int]:
    """How many of the shapes that the family is known by agree, and how many contradict."""
    right = wrong = 0
    for module in modules:
        # Of components that the file does not tell apart, one that fits is the one that is meant.
        verdicts: list[bool | None] = []
        for component, names in family.names_of(module.slot):
            route = names.resolve(module.name)
            path = route.modules[0] if route else ""
            if route:
                verdicts.append(_fits(names.model.measured, route, module.tensors) if names.model else None)
            for width in family.widths:
                if width.component == component and path.endswith(width.leaves):
                    seen = input_width(module.tensors)
                    if seen is not None and module.slot is not None:
                        right += seen == width.inputs
                        wrong += seen != width.inputs
                    elif seen == width.inputs:
                        right += 1
        right += True in verdicts
        wrong += bool(verdicts) and all(verdict is False for verdict in verdicts)
    return right, wrong


def strangers(family: Family, names: Collection[str], rivals: Sequence[Family]) -> int:
    """How many modules lie in attention blocks that the full-size model does not have, or too deep in them."""
    if len({id(rival.attention) for rival in rivals}) == 1 or not family.attention:
        return 0
    unet = family.components["unet"]
    count = 0
    for name in names:
        route = unet.resolve(name)
        if route is not None and ".attentions." in route.modules[0]:
            container, _, rest = route.modules[0].partition(".attentions.")
            words = rest.split(".")
            depth = int(words[2]) if len(words) > 2 and words[1] == "transformer_blocks" else 0
            count += depth >= family.attention.get(container, 0)
    return count


def _fits(layout: Layout, route: Route, tensors: Mapping[str, Tensor]) -> bool | None:
    """Whether tensors have the widths of the full-size modules they belong to; None where their shapes do not tell."""
    shapes = [layout.modules.get(renumbered(pattern), ()) for pattern in route.patterns]
    if not all(shapes):
        return None
    if all(len(shape) > 2 and shape[1] == 1 for shape in shapes[0]):
        return None  # what trainers make of a depthwise convolution has any shape
    width, rows = input_width(tensors), output_rows(tensors)
    inputs = {prod(shape[1 : None if ROTATION in tensors else 2]) if shape[1:] else shape[0] for shape in shapes[0]}
    outputs = {shape[0] for shape in shapes[0]} if len(shapes) == 1 else {sum(found[0][0] for found in shapes)}
    if route.part is not None:
        outputs = {size // route.part[1] for size in outputs}
    if width is None and rows is None:
        return None
    return (width is None or width in inputs) and (rows is None or rows in outputs)


def slack(family: Family, modules: Sequence[Module]) -> tuple[int, bool]:
    """How badly the numbers of a file's blocks fit the full-size model: blocks it does not have; whether it has more.

    Trainers train all blocks as a rule, so among models that differ in depth alone one whose last blocks are the file's
    is the likeliest. Where none is, the file is for some blocks of the commonest model, not of the smallest.
    """
    last: dict[tuple[str, str], int] = {}
    depths: dict[tuple[str, str], int] = {}
    for module in modules:
        # Of components that names and shapes leave open, the first is meant (see `component_of`).
        for component, names in _knowing(family, module)[:1]:
            route = names.resolve(module.name)
            if route is None or names.model is None:
                continue
            for pattern, path in zip(route.patterns, route.modules, strict=True):
                container, _, rest = pattern.partition(".{")
                depth = names.model.measured.depths.get(container)
                number = path.split(".")[container.count(".") + 1] if rest else ""
                if depth is not None and number.isdecimal():
                    key = (component, container)
                    last[key], depths[key] = max(last.get(key, 0), int(number) + 1), depth
    beyond = sum(max(0, last[key] - depths[key]) for key in last)
    return beyond, any(last[key] < depths[key] for key in last)


@cache
def _by_skeleton() -> dict[str, list[Family]]:
    index: dict[str, list[Family]] = {}
    for family in FAMILIES:
        for skeleton in dict.fromkeys(s for names in family.components.values() for s in names.skeletons):
            index.setdefault(skeleton, []).append(family)
    return index


def _near(kinds: Collection[Kind]) -> list[Family]:
    """The families that know any of the names, in their order."""
    index = _by_skeleton()
    found = {family.name for _, skeleton in kinds for family in index.get(skeleton, ())}
    return [family for family in FAMILIES if family.name in found]


def _kinship(family: Family, classes: Collection[str]) -> int:
    """How well the family goes with a pipeline of these model classes: 2 for its own denoiser, 1 for an encoder only,
    which many families share (T5 is Flux' second and SD3's third)."""
    models = {part: names.model for part, names in family.components.items() if names.model is not None}
    seen = [part for part, model in models.items() if model.cls.rpartition(".")[2] in classes]
    return 2 if any("text_encoder" not in part for part in seen) else min(len(seen), 1)


def _knows(family: Family, kind: Kind) -> bool:
    return any(names.knows(kind[1]) for _, names in family.names_of(kind[0]))


def _named(family: Family, base_model: str | None) -> int:
    """How many letters of what metadata call the base model name the family: "flux2" is not "flux1" for "flux"."""
    told = (base_model or "", (base_model or "").rpartition("/")[2])  # a repository's name follows its owner's
    return max((len(name) for name in family.base_models if any(text.startswith(name) for text in told)), default=0)


def _hidden(family: Family) -> set[tuple[str, int]]:
    return {(width.component, width.inputs) for width in family.widths}
