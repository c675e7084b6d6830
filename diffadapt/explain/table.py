"""The modules of an adapter by component and block: how many, which ranks and alphas, how many numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from diffadapt.adapter import Adapter
from diffadapt.algorithms.base import Delta
from diffadapt.explain.explanation import Row, Span

_FEW = 4
"""Containers of so few blocks (a UNet's) have a row for each; deeper ones (a transformer's) one for all."""
_NUMBER = re.compile(r"[._](\d+)(?=[._]|$)")
_TOP = "(top level)"
_Place = tuple[str | None, str, int | None]


@dataclass
class _Count:
    """A row while it is counted."""

    modules: int = 0
    parameters: int = 0
    ranks: list[int] = field(default_factory=list)
    alphas: list[float] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    unread: bool = False


Entry = tuple[str | None, str, Delta, tuple[str, ...]]
"""Component, module, delta, and the file's keys of it."""


def entries(adapter: Adapter) -> Iterator[Entry]:
    """Every delta of an adapter, with its place."""
    for target, delta in adapter.targets.items():
        yield target.component, target.module, delta, adapter.keys.get(target, ())
    for foreign, delta in adapter.foreign.items():
        yield foreign.component, foreign.module, delta, adapter.foreign_keys.get(foreign, ())


def tabulate(
    adapter: Adapter, sizes: Mapping[str, int], norms: Mapping[int, float] | None = None, alphas_read: bool = True
) -> tuple[Row, ...]:
    """The table of an adapter.

    sizes: the numbers in the tensor of each key. norms: by the `id` of a delta. alphas_read: False where alphas of the
    file are stand-ins; those that a config gives are known all the same.
    """
    counts: dict[tuple[_Place, str], _Count] = {}
    seen: set[str] = set()
    for component, module, delta, keys in entries(adapter):
        count = counts.setdefault(((component, *_block(module)), delta.algorithm), _Count())
        count.modules += 1
        # Several targets may have come out of one fused module: its numbers count once.
        count.parameters += sum(sizes.get(key, 0) for key in keys if key not in seen and not _is_alpha(key))
        seen.update(keys)
        if norms is not None and id(delta) in norms:
            count.norms.append(norms[id(delta)])
        rank = delta.rank
        if rank is None:
            continue
        count.ranks.append(rank)
        alpha = alpha_of(delta)
        if not alphas_read and any(map(_is_alpha, keys)):
            count.unread = True
        elif alpha is not None:
            count.alphas.append(alpha)
            if rank:
                count.scales.append(alpha / rank)
    return tuple(_rows(counts))


def alpha_of(delta: Delta) -> float | None:
    """The alpha of a delta, or of the one inside it."""
    alpha = getattr(getattr(delta, "inner", delta), "alpha", None)
    return alpha if isinstance(alpha, float) else None


def _is_alpha(key: str) -> bool:
    return key.endswith("alpha")


def _block(module: str) -> tuple[str, int | None]:
    """The container of the module's block and the block's number in it; names may be dotted or flat."""
    if module.startswith(("mid_block.", "mid_block_", "middle_block")):
        return "mid_block", None
    found = _NUMBER.search(module)
    return (module[: found.start()], int(found[1])) if found else (_TOP, None)


def _rows(counts: Mapping[tuple[_Place, str], _Count]) -> Iterator[Row]:
    """A row each where a container has few blocks, else one for all of them."""
    numbers: dict[tuple[str | None, str], set[int]] = {}
    for (component, container, number), _ in counts:
        if number is not None:
            numbers.setdefault((component, container), set()).add(number)
    joined: dict[tuple[str | None, str, str], list[_Count]] = {}
    order = {component: place for place, component in enumerate(dict.fromkeys(place[0] for place, _ in counts))}
    for (component, container, number), algorithm in sorted(
        counts, key=lambda key: (order[key[0][0]], key[0][1], -1 if key[0][2] is None else key[0][2], key[1])
    ):
        alike = numbers.get((component, container), set())
        label = container if number is None else f"{container}.{number}"
        if number is not None and len(alike) > _FEW:
            label = f"{container} {_listed(alike)}"
        joined.setdefault((component, label, algorithm), []).append(counts[(component, container, number), algorithm])
    for (component, label, algorithm), parts in joined.items():
        yield _row(component, label, algorithm, parts)


def _row(component: str | None, label: str, algorithm: str, parts: list[_Count]) -> Row:
    ranks = _span(rank for part in parts for rank in part.ranks)
    unread = any(part.unread for part in parts)
    return Row(
        component,
        label,
        algorithm,
        modules=sum(part.modules for part in parts),
        parameters=sum(part.parameters for part in parts),
        rank=None if ranks is None else (int(ranks[0]), int(ranks[1])),
        alpha=None if unread else _span(alpha for part in parts for alpha in part.alphas),
        scale=None if unread else _span(scale for part in parts for scale in part.scales),
        norm=_span(norm for part in parts for norm in part.norms),
    )


def _listed(numbers: set[int]) -> str:
    """ "0-18", or "3-9 (5 of them)" where some between are missing."""
    low, high = min(numbers), max(numbers)
    return f"{low}-{high}" if len(numbers) == high - low + 1 else f"{low}-{high} ({len(numbers)} of them)"


def _span(values: Iterable[float]) -> Span | None:
    found = list(values)
    return (min(found), max(found)) if found else None
