"""`fuse_qkv_projections()` of every class that has it, before and after adapters are loaded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffadapt.families.names import FUSED_PROJECTIONS
from tests import tiny
from tests.inject.test_zoo import TOLERANCE, written
from tests.zoo import ZOO
from tests.zoo.trainers import pipeline

FUSING = [
    "flux1", "chroma", "flux2", "flux3", "longcat_image", "qwen_image_21", "sd3_medium", "auraflow", "hunyuandit",
    "pixart_sigma", "krea2", "ideogram4", "wan", "wan21_i2v", "wan21_vace", "wan22_animate", "ltx",
]  # fmt: skip
BROKEN = {
    "sd35_medium": "fused, its second attention of the image alone reads projections that it does not have",
    "dreamlite": "fused, it splits the keys of its one shared head as if every query head had its own",
}
"""Diffusers' own model computes nothing once fused, adapters or not."""
RAISING = ["prx", "prx_pixel", "kandinsky5", "kandinsky6", "kandinsky22", "ltx2"]
"""Diffusers' own method raises, adapters or not."""


def linears(model: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize("kind", ["peft", "lokr", "diag-oft"])
@pytest.mark.parametrize("name", FUSING)
def test_fused_projections_act_as_their_parts(name, kind, tmp_path):
    specimen, path = ZOO[name], tmp_path / "a.safetensors"
    _, truth = written(specimen, kind, path)
    model = specimen.build()
    base, before = specimen.run(model), tiny.snapshot(model)
    pipe = pipeline(specimen, model)

    def right() -> bool:
        return tiny.relative(specimen.run(model), truth, base) < TOLERANCE

    pipe.load_adapter(path, adapter_name="a")
    model.fuse_qkv_projections()
    assert right()
    pipe.adapters.merge()
    assert right()
    pipe.adapters.unmerge()
    assert right()
    pipe.adapters.remove("a")
    assert torch.equal(specimen.run(model), base)
    assert pipe.load_adapter(path, adapter_name="b").complete  # loaded on a model that is fused already
    assert right()
    pipe.adapters.merge()
    model.unfuse_qkv_projections()
    assert right()
    pipe.adapters.clear()
    # Some classes keep the fused Linears when told to unfuse: what the model came with is what it was.
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert torch.equal(specimen.run(model), base)


@pytest.mark.parametrize("name", ZOO)
def test_which_classes_fuse(name):
    """Another version of Diffusers may fuse more, and under other names: what it makes must be known here."""
    specimen = ZOO[name]
    model = specimen.build()
    if not hasattr(model, "fuse_qkv_projections"):
        return
    before = linears(model)
    try:
        model.fuse_qkv_projections()
    except (AttributeError, RuntimeError, ValueError):
        assert name in RAISING
        return
    new = linears(model).keys() - before.keys()
    assert before.keys() <= linears(model).keys()  # none is deleted or renamed
    assert {path.rpartition(".")[2] for path in new} <= FUSED_PROJECTIONS.keys()
    if name in BROKEN:
        with pytest.raises((AttributeError, RuntimeError)):
            specimen.run(model)
    else:
        # The method of the others finds no attention that it knows how to fuse, and does nothing.
        assert bool(new) == (name in FUSING or name == "pixart_alpha")


def test_a_class_that_raises_half_way(tmp_path):
    """LTX-2's attention across sound and image cannot be fused, and the rest is by then."""
    specimen, path = ZOO["ltx2"], tmp_path / "a.safetensors"
    _, truth = written(specimen, "peft", path)
    model = specimen.build()
    base = specimen.run(model)
    pipeline(specimen, model).load_adapter(path, adapter_name="a")
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        model.fuse_qkv_projections()
    assert any(path.endswith("to_qkv") for path in linears(model))
    assert tiny.relative(specimen.run(model), truth, base) < TOLERANCE
