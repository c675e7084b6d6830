"""Original names and row orders, held against Diffusers' own checkpoint converters.

Every row of an original checkpoint carries its number; the converter must leave it in the module and at the place where
our routes put it. A swapped half, a wrong slice or a wrong name fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

import pytest
import torch
from diffusers.loaders import single_file_utils as converters
from torch import Tensor

from diffadapt.families import family_named
from diffadapt.families.names import Names, Rule
from tests.families.full_size import on_meta

Checkpoint = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """convert: the converter, which may take its argument apart. spelled: our name of an original tensor -> the
    checkpoint's. extra: keys that the converter wants and that no module has. component: of the family."""

    convert: Callable[[Checkpoint], Checkpoint]
    spelled: Callable[[str], str] = str
    extra: tuple[str, ...] = ()
    component: str = "transformer"
    skipped: frozenset[str] = field(default_factory=frozenset)


_SANA = Case(converters.convert_sana_transformer_to_diffusers, extra=("pos_embed", "y_embedder.y_embedding"))
CASES = {
    "lumina2": Case(converters.convert_lumina2_to_diffusers),
    # The single-file converter knows neither Sana 1.5's norms nor the Sprints.
    "sana_0_6b": _SANA,
}


def rows_of(names: Names) -> dict[str, tuple[int, ...]]:
    """Every tensor of the full-size model -> its shape with all but the rows shrunk to 1."""
    assert names.model is not None
    model = on_meta(names.model.layout)
    return {key: (tensor.shape[0], *(1,) * (tensor.ndim - 1)) for key, tensor in model.named_parameters()}


def foreign_names(rule: Rule) -> list[str]:
    """The names a rule stands for, up to more blocks than any model has."""
    found = [rule.foreign]
    for letter, count in (("{i}", 128), ("{j}", 128), ("{k}", 8)):
        if letter in rule.foreign:
            found = [name.replace(letter, str(n)) for name in found for n in range(count)]
    return found


def numbered(names: Names, case: Case) -> tuple[Checkpoint, Checkpoint]:
    """An original checkpoint with numbered rows, and what it must become."""
    shapes, original, expected = rows_of(names), Checkpoint(), Checkpoint()
    start = 0

    def fresh(shape: tuple[int, ...]) -> Tensor:
        nonlocal start
        start += shape[0]
        return torch.arange(start - shape[0], start).view(shape)

    for rule in names.native:
        for foreign in foreign_names(rule):
            route = names.resolve(foreign)
            if route is None or names.native_name(route.modules[0]) not in (None, foreign):
                continue  # another spelling than the one of the checkpoint
            for kind in (".weight", ".bias", ""):
                keys = [module + kind for module in route.modules]
                if not all(key in shapes for key in keys) or case.spelled(foreign + kind) in original:
                    continue
                sizes = [shapes[key][0] for key in keys]
                count = sum(sizes) // (route.part[1] if route.part else 1)
                rows = fresh((count, *shapes[keys[0]][1:]))
                original[case.spelled(foreign + kind)] = rows
                for key, size, stop in zip(keys, sizes, accumulate(sizes), strict=True):
                    if route.part is not None:
                        whole = expected.setdefault(key, torch.full(shapes[key], -1))
                        whole[route.part[0] * count : (route.part[0] + 1) * count] = rows
                    else:
                        part = rows[stop - size : stop]
                        expected[key] = part.roll(size // 2, 0) if route.exchange else part
    for key, shape in shapes.items():
        if key not in expected:
            original[case.spelled(key)] = expected[key] = fresh(shape)
    return original | {key: torch.zeros(1) for key in case.extra}, expected


@pytest.mark.parametrize("name", CASES)
def test_the_converter_puts_every_row_where_our_routes_do(name):
    case, family = CASES[name], family_named(name)
    assert family is not None
    original, expected = numbered(family.components[case.component], case)
    converted = case.convert(dict(original))
    wrong = [key for key, rows in expected.items() if key not in converted or not converted[key].equal(rows)]
    assert not set(wrong) - case.skipped
    assert len(expected) > 100
