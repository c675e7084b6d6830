"""Which family a file is for."""

from __future__ import annotations

import pytest
import torch

from diffadapt.reading import read_adapter
from tests.families import models


def lora(prefix, *modules, inputs=8, outputs=8):
    tensors = {}
    for module in modules:
        tensors[f"{prefix}{module}.lora_down.weight"] = torch.ones(2, inputs)
        tensors[f"{prefix}{module}.lora_up.weight"] = torch.ones(outputs, 2)
    return tensors


@pytest.mark.parametrize("family", list(models.UNETS))
def test_widths_of_the_real_models(family):
    tensors = {}
    for name, module in models.layers(models.unet(family)).items():
        if name.endswith(("attn2.to_k", "attn2.to_q")):
            tensors |= lora("lora_unet_", name.replace(".", "_"), inputs=module.in_features)
    candidates = read_adapter(tensors).candidates
    assert candidates == (("sdxl", "kolors") if family == "sdxl" else (family,))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_blocks_decide_without_cross_attention(family):
    names = [n for n in models.layers(models.unet(family)) if n.endswith("attn1.to_q")]
    candidates = read_adapter(lora("lora_unet_", *(n.replace(".", "_") for n in names))).candidates
    assert candidates[0] == family
    assert set(candidates) == {"sd1", "sdxl", "sd2", "sdxl_refiner", "kolors"}


def test_metadata_decide_only_what_shapes_do_not():
    from diffadapt.io.checkpoint import RawCheckpoint

    tensors = lora("lora_unet_", "mid_block_attentions_0_transformer_blocks_0_attn1_to_q")
    header = {"ss_base_model_version": "SD_v2"}
    assert read_adapter(RawCheckpoint(tensors, header)).family == "sd2"
    tensors |= lora("lora_unet_", "mid_block_attentions_0_transformer_blocks_0_attn2_to_k", inputs=2048)
    assert read_adapter(RawCheckpoint(tensors, header)).family == "sdxl"


def test_kolors_by_its_added_embedding():
    assert read_adapter(lora("lora_unet_", "add_embedding_linear_1", inputs=5632)).candidates == ("kolors",)
    assert read_adapter(lora("lora_unet_", "add_embedding_linear_1", inputs=2816)).candidates == ("sdxl",)


@pytest.mark.parametrize(("width", "family", "component"), [
    (768, "sd1", "text_encoder"), (1024, "sd2", "text_encoder"), (1280, "sdxl_refiner", "text_encoder_2"),
])  # fmt: skip
def test_one_text_encoder_by_its_width(width, family, component):
    adapter = read_adapter(lora("lora_te_", "text_model_encoder_layers_0_self_attn_q_proj", inputs=width))
    assert (adapter.family, adapter.components) == (family, (component,))


@pytest.mark.parametrize(("width", "component"), [(768, "text_encoder"), (1280, "text_encoder_2")])
def test_unnamed_text_encoder_beside_a_named_one(width, component):
    tensors = lora("lora_te1_", "encoder_layers_0_mlp_fc1", inputs=768)
    tensors |= lora("lora_te2_", "text_model_encoder_layers_0_mlp_fc1", inputs=1280)
    tensors |= lora("lycoris_", "text_model_encoder_layers_1_mlp_fc1", inputs=width)
    adapter = read_adapter(tensors)
    assert (component, "text_model.encoder.layers.1.mlp.fc1") in adapter.targets
    assert len(adapter.targets) == 3


def test_a_tiny_unet_keeps_all_candidates():
    adapter = read_adapter(lora("lora_unet_", "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", inputs=32))
    assert set(adapter.candidates) == {"sd1", "sdxl", "sd2", "sdxl_refiner", "kolors", "dreamlite"}
    assert not adapter.foreign


def test_controlnet_is_told_by_its_own_modules():
    own = lora("", "controlnet_down_blocks.0", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", inputs=768)
    assert read_adapter(own).components == ("controlnet",)
    named = lora("controlnet.", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", inputs=2048)
    adapter = read_adapter(named)
    assert (adapter.components, adapter.family) == (("controlnet",), "sdxl")


def test_unknown_modules_of_a_known_component_are_foreign():
    adapter = read_adapter(lora("lora_unet_", "mid_block_attentions_0_proj_in", "mid_block_novelty_5_thing"))
    (foreign,) = adapter.foreign
    assert foreign == ("unet", "mid_block_novelty_5_thing", True)
    assert adapter.foreign_keys[foreign][0].startswith("lora_unet_mid_block_novelty")


def test_text_encoders_name_no_family_beside_a_strange_denoiser():
    tensors = lora("lora_te1_", "text_model_encoder_layers_0_mlp_fc1", inputs=768)
    tensors |= lora("lora_unet_", "some_strange_blocks_0_attn_qkv", inputs=3072)
    adapter = read_adapter(tensors)
    assert adapter.candidates == ()
    assert {foreign.component for foreign in adapter.foreign} == {None, "text_encoder"}


def test_one_common_name_makes_no_family():
    names = ["norm", "mine.a", "mine.b", "mine.c", "mine.d"]
    file = {f"{name}.lora_A.weight": torch.ones(2, 8) for name in names}
    file |= {f"{name}.lora_B.weight": torch.ones(8, 2) for name in names}
    assert read_adapter(file).candidates == ()
