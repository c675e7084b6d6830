"""Full-size models that are UNets to Diffusers and to trainers' prefixes: Stable Cascade, Kandinsky, DreamLite."""

from __future__ import annotations

import pytest
import torch

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
    *(("kandinsky22", "unet", *prefix) for prefix in UNET),
    *(("kandinsky3", "unet", *prefix) for prefix in UNET),
    *(("kandinsky22", "prior", prefix, False) for prefix in ("prior.", "")),
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


@pytest.mark.parametrize(
    ("name", "cousins"), [("sana_1_6b", {"sana_4_8b"}), ("sana_4_8b", {"sana_1_6b"}), ("sana_0_6b", set())]
)
def test_a_lora_of_sanas_depthwise_convolutions_does_not_hide_the_size(name, cousins):
    """OneTrainer's spans all channels. Whose depth alone differs, the blocks tell apart, and stay candidates."""
    family = family_named(name)
    assert family is not None
    file = file_of(weights_of(family), "transformer.")
    layers = dict(on_meta(name).named_modules())
    for path in [path for path in layers if path.endswith("ff.conv_depth")]:
        channels = layers[path].in_channels
        file |= {
            f"transformer.{path}.lora_A.weight": torch.zeros(1).expand(2, channels, 3, 3),
            f"transformer.{path}.lora_B.weight": torch.zeros(1, 2, 1, 1),
        }
    adapter = read_adapter(file)
    assert adapter.family == name
    assert set(adapter.candidates) == {name, *cousins}


def test_kolors_encoder():
    """Its attention's projections are one Linear here too."""
    name = "encoder.layers.3.self_attention.query_key_value"
    adapter = read_adapter(file_of({name: (4608, 4096)}, "text_encoder."))
    assert adapter.family == "kolors"
    assert [(key.component, key.module) for key in adapter.targets] == [("text_encoder", name)]


def processors(block: str, names: tuple[str, ...], width: int) -> dict[str, torch.Tensor]:
    """What Diffusers' scripts save of an attention: LoRA in its processor."""
    down, up = torch.zeros(1).expand(2, width), torch.zeros(1).expand(width, 2)
    return {
        f"{block}.processor.{name}_lora.{side}.weight": tensor
        for name in names
        for side, tensor in (("down", down), ("up", up))
    }


def test_kandinskys_training_scripts():
    names = ("to_q", "to_k", "to_v", "to_out")
    decoder = read_adapter(processors("down_blocks.1.attentions.0", (*names, "add_k_proj", "add_v_proj"), 768))
    assert decoder.candidates == ("kandinsky22",)
    assert {key.component for key in decoder.targets} == {"unet"}
    assert len(decoder.targets) == 6
    file: dict[str, torch.Tensor] = {}
    for number in range(20):
        file |= processors(f"transformer_blocks.{number}.attn1", names, 2048)
    prior = read_adapter(file)
    assert prior.family == "kandinsky22", prior.candidates
    assert {key.component for key in prior.targets} == {"prior"}
    assert len(prior.targets) == 80
