"""Full-size models that are UNets to Diffusers and to trainers' prefixes: Stable Cascade's stages, DreamLite."""

from __future__ import annotations

import pytest

from diffadapt.algorithms.layer import Layer
from diffadapt.errors import AlgorithmError
from diffadapt.families import family_named
from diffadapt.reading import read_adapter
from tests.families import models
from tests.families.full_size import file_of, on_meta, weights_of

PRIOR = [("prior.", False), ("diffusion_model.", False), ("", False), ("base_model.model.", False),
         ("lora_unet_", True), ("lora_prior_unet_", True), ("lycoris_", True)]  # fmt: skip
UNET = [("unet.", False), ("", False), ("base_model.model.", False), ("lora_unet_", True), ("lycoris_", True)]
CASES = [
    *(("stable_cascade", "prior", *prefix) for prefix in PRIOR),
    *(("stable_cascade_lite", "prior", *prefix) for prefix in PRIOR),
    # No prefix means the decoder: nobody trains it, and a bare file is told by its shapes.
    ("stable_cascade", "decoder", "", False),
    ("stable_cascade_lite", "decoder", "lycoris_", True),
    *(("dreamlite", "unet", *prefix) for prefix in UNET),
]


@pytest.mark.parametrize(("name", "component", "prefix", "flat"), CASES)
def test_every_linear_and_undivided_convolution_is_found(name, component, prefix, flat):
    family = family_named(name)
    assert family is not None
    widths = weights_of(family, component)
    adapter = read_adapter(file_of(widths, prefix, flat=flat))
    assert adapter.family == name, adapter.candidates
    assert {(key.component, key.module) for key in adapter.targets} == {(component, path) for path in widths}
    assert not adapter.unmatched
    assert not adapter.foreign


def test_the_fused_projection_of_cascades_attention_and_its_cut_parts():
    block = "down_blocks.1.2.attention"
    file = file_of(
        {f"{block}.attn.in_proj": (6144, 2048), f"{block}.attn.out_proj": (2048, 2048)}, "lora_unet_", flat=True
    )
    adapter = read_adapter(file)
    assert adapter.family == "stable_cascade"
    assert {key.module for key in adapter.targets} == {
        f"{block}.{leaf}" for leaf in ("to_q", "to_k", "to_v", "to_out.0")
    }
    cut = read_adapter(file_of({f"{block}.attn.to_k": (2048, 2048)}, "lora_prior_unet_", flat=True))
    assert [key.module for key in cut.targets] == [f"{block}.to_k"]


def test_onetrainers_cascade_file_fits_but_for_the_depthwise_convolutions():
    """Their LoRA reads all channels, so it is no change of a weight with one channel a group."""
    file = models.shaped_file(models.manifest("cascade-onetrainer-lora-legacy"))
    adapter = read_adapter(file, check_finite=False)
    assert adapter.candidates == ("stable_cascade",)
    assert adapter.components == ("prior",)
    assert len(adapter.targets) == 711
    assert not adapter.unmatched
    modules = dict(on_meta("stable_cascade_prior").named_modules())
    refused = set()
    for key, delta in adapter.targets.items():
        layer = Layer.of(modules[key.module])
        assert layer is not None
        try:
            delta.check(layer)
        except AlgorithmError:
            refused.add(key.module)
    assert refused == {path for path in modules if path.endswith(".depthwise")}


def test_a_file_for_dreamlites_attention_alone_is_told_from_the_other_unets():
    family = family_named("dreamlite")
    assert family is not None
    attention = ("to_q", "to_k", "to_v", "to_out.0")
    widths = {path: shape for path, shape in weights_of(family, "unet").items() if path.endswith(attention)}
    adapter = read_adapter(file_of(widths, "base_model.model."))
    assert adapter.candidates == ("dreamlite",)
    assert {key.module for key in adapter.targets} == widths.keys()
