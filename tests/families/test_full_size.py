"""A file for every module of a full-size model, under every prefix trainers use, finds its family and all modules."""

from __future__ import annotations

from functools import cache

import pytest
from torch import nn

from diffadapt.algorithms.layer import Layer
from diffadapt.families import Family, family_named
from diffadapt.reading import read_adapter
from tests.families import models
from tests.families.full_size import WITH_DENOISER, file_of, on_meta, weights_of

PREFIXES = [
    ("transformer.", False), ("diffusion_model.", False), ("", False), ("base_model.model.", False),
    ("lora_unet_", True), ("lora_transformer_", True), ("lycoris_", True),
]  # fmt: skip
NAMED = {family.name: family for family in WITH_DENOISER}

ALIKE = {
    "cosmos2_2b": "Anima's transformer is this one, trained further",
    "wan22_t2v_a14b": "the modules of wan21_t2v_14b in the same sizes",
}
"""Families that no file of names and shapes tells from one before them in the order, and why."""
ALIKE_IN_ORIGINAL_NAMES = {
    **ALIKE,
    "wan22_i2v_a14b": "only the patches have other inputs than wan21_t2v_14b's, and their name is the same in both",
}


def is_family(adapter, name: str, alike: dict[str, str]) -> bool:
    """Whether the file was read as the family's; not being it must be foreseen, and the family a candidate."""
    if name in alike:
        assert name in adapter.candidates
        return adapter.family == name
    assert adapter.family == name, adapter.candidates
    return True


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", NAMED)
def test_diffusers_names(name, prefix):
    widths = weights_of(NAMED[name])
    adapter = read_adapter(file_of(widths, prefix[0], flat=prefix[1]), check_finite=False)
    if is_family(adapter, name, ALIKE):
        assert {key.module for key in adapter.targets} == widths.keys()
    assert not adapter.unmatched
    assert not adapter.foreign


def native_widths(family: Family) -> dict[str, tuple[int, ...]]:
    """The same weights under the original code's names, fused where that code fuses."""
    return dict(_native_widths(family.name))


@cache
def _native_widths(name: str) -> dict[str, tuple[int, ...]]:
    """Found once for all prefixes."""
    family = family_named(name)
    names = family.components["transformer"]
    left = weights_of(family)
    found: dict[str, tuple[int, ...]] = {}
    numbers = [str(i) for i in range(128)]
    for rule in names.native:
        for i in numbers if "{i}" in rule.foreign else [""]:
            for j in numbers[:16] if "{j}" in rule.foreign else [""]:
                foreign = rule.foreign.replace("{i}", i).replace("{j}", j)
                route = names.resolve(foreign)
                if route is None or not all(path in left for path in route.modules):
                    continue
                rows = sum(left[path][0] for path in route.modules) // (route.part[1] if route.part else 1)
                found[foreign] = (rows, *left[route.modules[0]][1:])
    return found


@pytest.mark.parametrize("prefix", PREFIXES[1:5])
@pytest.mark.parametrize("name", [n for n, f in NAMED.items() if f.components["transformer"].native])
def test_original_names(name, prefix):
    widths = native_widths(NAMED[name])
    adapter = read_adapter(file_of(widths, prefix[0], flat=prefix[1]), check_finite=False)
    assert not adapter.unmatched
    assert not adapter.foreign
    expected = {path for foreign in widths for path in NAMED[name].components["transformer"].resolve(foreign).modules}
    if is_family(adapter, name, ALIKE_IN_ORIGINAL_NAMES):
        assert {key.module for key in adapter.targets} == expected


MANIFESTS = {
    "flux1-aitoolkit-lora": ("flux1", 418), "flux1-diffusers-lora": ("flux1", 494),
    "flux1-kohya-lora": ("flux1", 494), "flux1-kohya-lora-te1": ("flux1", 566),
    "flux1-kohya-lora-inputs-te1-te3": ("flux1", 742), "flux1-kohya-oft": ("flux1", 494),
    "flux1-onetrainer-lora-comfy": ("flux1", 744), "flux1-peft-base-model-lora": ("flux1", 381),
    "flux1-simpletuner-lycoris-lokr": ("flux1", 342), "flux1-xlabs-lora": ("flux1", 24),
    "flux2-klein4b-musubi-lora": ("flux2_klein_4b", 100), "flux2-klein4b-aitoolkit-lokr": ("flux2_klein_4b", 100),
    "flux2-klein4b-onetrainer-dora-original": ("flux2_klein_4b", 100),
    "flux2-klein4b-onetrainer-oft-comfy": ("flux2_klein_4b", 100),
    "sd35m-kohya-lora-embedders": ("sd35_medium", 393),
    "wan21-1.3b-aitoolkit-lokr-old": ("wan21_t2v_1_3b", 300), "wan21-i2v-musubi-lora": ("wan21_i2v_14b", 480),
    "hunyuanvideo-musubi-lora": ("hunyuan_video", 440), "hunyuanimage-kohya-lora": ("hunyuan_image_21", 520),
    # In Diffusers' names FramePack has HunyuanVideo's blocks.
    "framepack-musubi-lora": ("hunyuan_video", 440),
    "lumina2-kohya-lora-te": ("lumina2", 422),
    "zimage-musubi-lora": ("zimage", 210), "zimage-musubi-comfy-lora": ("zimage", 210),
    "zimage-aitoolkit-lokr": ("zimage", 240), "ideogram4-musubi-lora": ("ideogram4", 238),
}  # fmt: skip


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_fits_its_full_size_model(name):
    """Every key of a trainer's file is applied, and every shape is the model's."""
    family, count = MANIFESTS[name]
    adapter = read_adapter(models.shaped_file(models.manifest(name)), check_finite=False)
    assert adapter.family == family, adapter.candidates
    assert len(adapter.targets) == count
    assert not adapter.unmatched
    assert not adapter.foreign
    components = NAMED[family].components
    for component in adapter.components:
        model = components[component].model
        if model is not None:
            part = dict(adapter.targets.items())
            only = {key: delta for key, delta in part.items() if key.component == component}
            fits(only, on_meta(model.layout))


def fits(targets, model: nn.Module) -> None:
    """Every delta belongs to a module of the model and has its shape."""
    modules = dict(model.named_modules())
    for key, delta in targets.items():
        layer = Layer.of(modules[key.module])
        assert layer is not None
        delta.check(layer)
