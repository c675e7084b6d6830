"""Why a file is thought to be for a family: which names it knows, which shapes agree, how deep its blocks go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

from diffadapt.explain.explanation import Candidate
from diffadapt.families import FAMILIES
from diffadapt.families.base import Family
from diffadapt.families.choose import Kind, Module, shape_verdict, slack, strangers
from diffadapt.families.names import skeleton_of

_RULED_OUT = 3


def weigh(
    modules: Sequence[Module], chosen: Sequence[str], told: str | None
) -> tuple[tuple[Candidate, ...], tuple[Candidate, ...]]:
    """The reasons of the chosen families, and of the nearest ones that were not chosen.

    modules: what the choice was made from. told: the base model that the metadata name.
    """
    kinds: dict[Kind, Module] = {}
    counts: Counter[Kind] = Counter()
    for module in modules:
        kind = (module.slot, skeleton_of(module.name)[0])
        kinds.setdefault(kind, module)
        counts[kind] += 1
    known: Counter[str] = Counter()
    for (slot, skeleton), count in counts.items():
        known.update(dict.fromkeys(_knowing(slot, skeleton), count))
    by_name = {family.name: family for family in FAMILIES}
    rivals = [by_name[name] for name in chosen if name in by_name]
    names = [module.name for module in modules]
    candidates = []
    for family in rivals:
        reasons = [f"knows {known[family.name]} of {len(modules)} module names", *_shapes(family, kinds)]
        if len(rivals) > 1:
            reasons += _depth(family, modules, names, rivals)
        if _named(family, told):
            reasons.append(f"the metadata say {told}")
        candidates.append(Candidate(family.name, tuple(reasons)))
    others = [name for name, _ in known.most_common() if name not in chosen]
    ruled_out = [
        Candidate(name, (f"knows {known[name]} of {len(modules)} module names", *_shapes(by_name[name], kinds)))
        for name in others[:_RULED_OUT]
    ]
    return tuple(candidates), tuple(ruled_out)


def agreement(told: str | None, chosen: Sequence[str]) -> bool | None:
    """Whether the told base model is of one of these families; None where no family is called so, or none is chosen."""
    if told is None or not chosen:
        return None
    lengths = {family.name: _named(family, told) for family in FAMILIES}
    # The longest name decides: "flux2" begins like "flux" too.
    longest = max(lengths.values(), default=0)
    return any(lengths.get(name) == longest for name in chosen) if longest else None


def _named(family: Family, told: str | None) -> int:
    """How many letters of the told base model name the family."""
    return max((len(name) for name in family.base_models if told and told.lower().startswith(name)), default=0)


@lru_cache(maxsize=65536)
def _knowing(slot: str | None, skeleton: str) -> tuple[str, ...]:
    """The families with modules of such names. Remembered: files of one family share their names."""
    return tuple(f.name for f in FAMILIES if any(names.knows(skeleton) for _, names in f.names_of(slot)))


def _shapes(family: Family, kinds: Mapping[Kind, Module]) -> list[str]:
    """What widths say, with the first that contradicts."""
    right, wrong = shape_verdict(family, kinds.values())
    if not right and not wrong:
        return ["no shape tells"]
    if not wrong:
        return [f"{right} shapes agree"]
    worst = next((module.name for module in kinds.values() if shape_verdict(family, [module])[1]), "")
    return [f"{right} shapes agree, {wrong} contradict (the first: {worst})"]


def _depth(family: Family, modules: Sequence[Module], names: Sequence[str], rivals: Sequence[Family]) -> list[str]:
    """How the blocks' numbers fit the full-size model."""
    reasons = []
    odd = strangers(family, names, rivals)
    if odd:
        reasons.append(f"{odd} modules lie in attention blocks that it does not have")
    beyond, deeper = slack(family, modules)
    if beyond:
        reasons.append(f"{beyond} blocks are beyond its depth")
    elif deeper:
        reasons.append("it has more blocks than the file")
    return reasons
