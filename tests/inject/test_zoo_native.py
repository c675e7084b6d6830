"""LoRAs in the original code's names, in Kohya's spelling, on every Linear that has one: fused, exchanged, joined."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from diffadapt.families import FAMILIES, Family
from diffadapt.families.names import Rule, fill
from tests import tiny
from tests.inject.test_zoo import TOLERANCE
from tests.zoo import ZOO, Specimen
from tests.zoo.trainers import pipeline, trainable


def families(specimen: Specimen) -> Iterator[Family]:
    """The families of a class that have names of the original code."""
    for family in FAMILIES:
        names = family.components.get(specimen.component)
        if names and names.native and names.model and names.model.cls == f"diffusers.{specimen.cls}":
            yield family


def instances(rule: Rule) -> Iterator[tuple[str, list[str]]]:
    """The rule's foreign name and targets in the first blocks."""
    counters = sorted(set(re.findall(r"\{(\w+)\}", " ".join((rule.foreign, *rule.targets)))))
    for numbers in itertools.product("0123", repeat=len(counters)):
        values = dict(zip(counters, numbers, strict=True))
        if rule.at is None or values["i"] == str(rule.at):
            yield fill(rule.foreign, values), [fill(target, values) for target in rule.targets]


def by_hand(rule: Rule, change: Tensor, parts: list[nn.Linear]) -> list[Tensor]:
    """The change of each target: the foreign rows one after the other, by what this tiny model has of each."""
    if rule.exchange:
        change = change.roll(change.shape[0] // 2, 0)
    if rule.part is None:
        return list(change.split([part.out_features for part in parts]))
    index, count = rule.part
    whole = change.new_zeros(count, *change.shape)
    whole[index] = change
    return [whole.flatten(0, 1)]


def file_and_changes(
    family: Family, specimen: Specimen, model: nn.Module
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A Kohya file, and what it does to each weight."""
    names, linears = family.components[specimen.component], trainable(model)
    file: dict[str, Tensor] = {}
    changes: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(4)
    for rule in (rule for rule in names.native if rule.grid is None):
        for foreign, targets in instances(rule):
            route = names.resolve(foreign)
            parts = [linears.get(target) for target in targets]
            spelt_otherwise = rule.part is None and any(target in changes for target in targets)
            if route is None or list(route.modules) != targets or spelt_otherwise:
                continue
            if not all(isinstance(part, nn.Linear) for part in parts):
                continue
            rows = sum(part.out_features for part in parts) // (rule.part[1] if rule.part else 1)
            down = torch.randn(2, parts[0].in_features, generator=generator) * parts[0].in_features ** -0.5
            up = torch.randn(rows, 2, generator=generator) * 0.3
            key = "lora_unet_" + foreign.replace(".", "_")
            if key + ".alpha" in file:
                continue
            file |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
            for target, change in zip(targets, by_hand(rule, 0.5 * up @ down, parts), strict=True):
                changes[target] = changes.get(target, 0) + change
    return file, changes


CASES = {name: list(families(specimen)) for name, specimen in ZOO.items()}
CASES = {name: found for name, found in CASES.items() if found}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_native_kohya_file_equals_the_change_by_hand(name):
    specimen = ZOO[name]
    for family in CASES[name]:
        model, dense = specimen.build(), specimen.build()
        base = specimen.run(model)
        file, changes = file_and_changes(family, specimen, model)
        assert len(changes) >= 4
        for target, change in changes.items():
            dense.get_submodule(target).weight += change
        truth = specimen.run(dense)
        pipe = pipeline(specimen, model)
        report = pipe.load_adapter(file, adapter_name="a")
        assert report.complete
        assert {key.module for key in report.applied} == changes.keys()
        assert tiny.relative(specimen.run(model), truth, base) < TOLERANCE
        pipe.adapters.merge()
        assert tiny.relative(specimen.run(model), truth, base) < TOLERANCE
        now = model.state_dict()
        assert all(torch.allclose(now[key], value, atol=1e-6) for key, value in dense.state_dict().items())
        pipe.adapters.clear()
        assert torch.equal(specimen.run(model), base)
