"""Every model class of the families runs a whole forward as the trainer's own code does: PEFT's LoRA, LyCORIS' LoKr
and diag-OFT; live, merged, and back to the very bits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import diffadapt
from diffadapt.families import FAMILIES, family_named
from tests import tiny
from tests.zoo import LEFT_OUT, ZOO, Specimen
from tests.zoo.trainers import lycoris_file, peft_file, pipeline

# The sums are the trainer's in another order: float32 rounding, over some tens of layers (a live LoRA is mostly PEFT's
# to the bit). A wrong row, scale or module is off by whole per cents.
TOLERANCE = 2e-5


def written(specimen: Specimen, kind: str, path: Path) -> tuple[int, torch.Tensor]:
    return peft_file(specimen, path) if kind == "peft" else lycoris_file(specimen, kind, path)


@pytest.mark.parametrize("kind", ["peft", "lokr", "diag-oft"])
@pytest.mark.parametrize("name", ZOO)
def test_whole_forward_equals_the_trainers(name, kind, tmp_path):
    specimen = ZOO[name]
    count, truth = written(specimen, kind, tmp_path / "a.safetensors")
    model = specimen.build()
    base, before = specimen.run(model), tiny.snapshot(model)
    # An output that the adapter hardly moves would hide errors in rounding.
    assert (truth - base).norm() > 0.02 * base.norm()
    pipe = pipeline(specimen, model)
    report = pipe.load_adapter(tmp_path / "a.safetensors", adapter_name="a")
    assert report.complete
    assert len(report.applied) == count
    assert class_of(report.family, specimen.component) == specimen.cls.rpartition(".")[2]
    assert tiny.relative(specimen.run(model), truth, base) < TOLERANCE
    pipe.adapters.merge()
    assert tiny.relative(specimen.run(model), truth, base) < TOLERANCE
    pipe.adapters.unmerge()
    assert tiny.same_bits(model, before)
    pipe.adapters.remove("a")
    assert torch.equal(specimen.run(model), base)


def class_of(family: str | None, component: str) -> str:
    """The class of a family's component. Families of one class differ in sizes alone: any of them reads a tiny file."""
    found = family_named(family)
    names = found.components.get(component) if found else None
    return names.model.cls.rpartition(".")[2] if names and names.model else "none"


@pytest.mark.parametrize("name", ZOO)
def test_a_bare_model_is_what_a_pipeline_calls_it(name, tmp_path):
    specimen = ZOO[name]
    count, _ = peft_file(specimen, tmp_path / "a.safetensors")
    model = diffadapt.enable(specimen.build())
    assert len(model.load_adapter(tmp_path / "a.safetensors", strict=True).applied) == count
    assert list(model.adapters.components()) == [specimen.component]


def test_every_class_of_the_families_is_in_the_zoo():
    wanted = {
        names.model.cls.rpartition(".")[2]
        for family in FAMILIES
        for component, names in family.components.items()
        if names.model is not None and "text_encoder" not in component
    }
    assert wanted - {specimen.cls.rpartition(".")[2] for specimen in ZOO.values()} == set(LEFT_OUT)


def test_video_connectors_beside_the_transformer(tmp_path):
    """Diffusers saves both in one file, each behind its component's name."""
    parts = {ZOO[name].component: (ZOO[name], ZOO[name].build()) for name in ("ltx2", "ltx2_connectors")}
    file, truths = {}, {}
    for component, name in (("transformer", "ltx2"), ("connectors", "ltx2_connectors")):
        _, truths[component] = peft_file(ZOO[name], tmp_path / name)
        file |= load_file(tmp_path / name)
    pipe = diffadapt.enable(SimpleNamespace(components={name: model for name, (_, model) in parts.items()}))
    base = {name: specimen.run(model) for name, (specimen, model) in parts.items()}
    assert pipe.load_adapter(file, adapter_name="a").complete
    for name, (specimen, model) in parts.items():
        assert tiny.relative(specimen.run(model), truths[name], base[name]) < TOLERANCE
