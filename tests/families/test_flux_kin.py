"""Flux.1, its descendants and SD3: what tells them apart, and what does not."""

from __future__ import annotations

import pytest
import torch

from diffadapt.families import family_named
from diffadapt.io.checkpoint import RawCheckpoint
from diffadapt.reading import read_adapter
from tests.families.full_size import file_of, weights_of
from tests.families.test_full_size import native_widths


@pytest.mark.parametrize("prefix", ["", "transformer.", "diffusion_model."])
@pytest.mark.parametrize("columns", [64, 128, 384, 196])
def test_a_control_lora_is_flux_1_whatever_its_input_columns(columns, prefix):
    """In the original names, with norm weights beside it. 196 columns are no release's."""
    widths = native_widths(family_named("flux1"))
    tensors = file_of({**widths, "img_in": (3072, columns)}, prefix)
    for i in range(19):
        tensors[f"{prefix}double_blocks.{i}.img_attn.norm.query_norm.scale"] = torch.ones(128)
    adapter = read_adapter(tensors)
    assert adapter.family == "flux1"
    assert not adapter.foreign


@pytest.mark.parametrize("columns", [128, 384, 196])
def test_the_same_in_diffusers_names(columns):
    widths = {**weights_of(family_named("flux1")), "x_embedder": (3072, columns)}
    assert read_adapter(file_of(widths, "transformer.")).family == "flux1"


def blocks_of(name, *leaves):
    """The Linears of the double blocks with these names."""
    widths = native_widths(family_named(name))
    return {k: v for k, v in widths.items() if k.startswith("double_blocks.") and k.endswith(leaves)}


def test_chroma_without_its_guidance_network_might_be_flux_1():
    attention = blocks_of("chroma", "qkv", "proj")
    adapter = read_adapter(file_of(attention, "lora_unet_", flat=True))
    assert adapter.family == "flux1"
    assert {"flux1", "chroma"} <= set(adapter.candidates)


@pytest.mark.parametrize(("told", "family"), [
    ("chroma", "chroma"), ("flux1", "flux1"), ("flux_kontext", "flux1"), ("flux.1", "flux1"),
    ("flux_2_klein_4b", "flux2_klein_4b"), ("flux2_klein_4b", "flux2_klein_4b"),
    ("black-forest-labs/FLUX.2-klein-base-4B", "flux2_klein_4b"), ("flux-1-dev/lora", "flux1"),
    ("Ovis-Image-7B", "ovis_image"), ("LongCat-Image", "longcat_image"),
])  # fmt: skip
def test_metadata_name_one_of_those_that_attention_leaves(told, family):
    """Flux.1, Chroma, klein 4B, Ovis and LongCat have the same attention."""
    tensors = file_of(blocks_of("flux2_klein_4b", "qkv", "proj"), "lora_unet_", flat=True)
    assert read_adapter(RawCheckpoint(tensors, {"ss_base_model_version": told})).family == family


@pytest.mark.parametrize(("told", "family"), [
    ("flux_2_dev", "flux2"), ("flux2", "flux2"), ("flux2_klein_9b", "flux2_klein_9b"), ("flux1", "flux2"),
])  # fmt: skip
def test_widths_win_over_metadata(told, family):
    tensors = file_of(blocks_of(family, "qkv", "proj"), "lora_unet_", flat=True)
    assert read_adapter(RawCheckpoint(tensors, {"ss_base_model_version": told})).family == family


def test_one_block_of_klein_is_told_by_its_feed_forward():
    widths = {k: v for k, v in blocks_of("flux2_klein_4b", "img_mlp.0", "txt_mlp.2").items() if "blocks.0." in k}
    assert read_adapter(file_of(widths, "diffusion_model.")).candidates == ("flux2_klein_4b",)


def test_onetrainer_s_parts_by_number():
    widths = {f"double_blocks.0.img_attn.qkv.{n}": (3072, 3072) for n in range(3)}
    widths |= {f"single_blocks.0.linear1.{n}": (3072 if n < 3 else 12288, 3072) for n in range(4)}
    adapter = read_adapter(file_of(widths, "transformer."))
    assert adapter.family == "flux1"
    assert {key.module for key in adapter.targets} == {
        *(f"transformer_blocks.0.attn.to_{x}" for x in "qkv"),
        *(f"single_transformer_blocks.0.attn.to_{x}" for x in "qkv"), "single_transformer_blocks.0.proj_mlp",
    }  # fmt: skip


def test_flux_2_s_attention_rows_of_its_fused_linear():
    adapter = read_adapter(file_of({"single_blocks.0.linear1_qkv": (9216, 3072)}, "diffusion_model."))
    assert "flux2_klein_4b" in adapter.candidates
    klein = family_named("flux2_klein_4b").components["transformer"]
    route = klein.resolve("single_blocks_0_linear1_qkv")
    assert (route.modules, route.part) == (("single_transformer_blocks.0.attn.to_qkv_mlp_proj",), (0, 3))


@pytest.mark.parametrize(("prefix", "modules", "components"), [
    ("lora_te1_", {"text_model_encoder_layers_0_mlp_fc1": (3072, 768)}, ("text_encoder",)),
    ("lora_te2_", {"text_model_encoder_layers_0_mlp_fc1": (5120, 1280)}, ("text_encoder_2",)),
    ("lora_te3_", {"encoder_block_0_layer_1_DenseReluDense_wi_0": (10240, 4096)}, ("text_encoder_3",)),
])  # fmt: skip
def test_sd_3_has_three_text_encoders(prefix, modules, components):
    tensors = file_of({"joint_blocks_0_x_block_attn_qkv": (4608, 1536)}, "lora_unet_", flat=True)
    adapter = read_adapter(tensors | file_of(modules, prefix, flat=True))
    assert adapter.candidates == ("sd3_medium", "sd35_medium")
    assert adapter.components == ("transformer", *components)
    assert not adapter.foreign


@pytest.mark.parametrize(("name", "last"), [("sd3_medium", 23), ("sd35_medium", 23), ("sd35_large", 37)])
def test_the_last_block_s_text_modulation_is_exchanged_there_only(name, last):
    names = family_named(name).components["transformer"]
    exchanged = [names.resolve(f"joint_blocks_{i}_context_block_adaLN_modulation_1").exchange for i in range(last + 1)]
    assert exchanged == [False] * last + [True]


@pytest.mark.parametrize("blocks", [(0,), (3, 7), (7, 12, 16), range(5, 12)])
def test_some_blocks_of_flux_1_are_no_smaller_model(blocks):
    """Trainers of few blocks are commoner than adapters for the smaller models with the same blocks."""
    widths = {f"double_blocks.{i}.img_mlp.0": (12288, 3072) for i in blocks}
    widths |= {f"single_blocks.{i}.linear2": (3072, 15360) for i in blocks}
    assert read_adapter(file_of(widths, "diffusion_model.")).family == "flux1"


def test_all_blocks_of_longcat_are_longcat_s():
    widths = {k: v for k, v in native_widths(family_named("longcat_image")).items() if "blocks." in k}
    adapter = read_adapter(file_of(widths, "diffusion_model."))
    assert adapter.family == "longcat_image"
    assert "flux1" in adapter.candidates


GEOMETRY = {
    "single_layers_0_attn_w1q": (3072, 3072), "blocks_0_attn1_Wqkv": (4224, 1408),
    "distilled_guidance_layer_layers_0_in_layer": (5120, 5120), "double_stream_modulation_img_lin": (18432, 3072),
    "semantic_txt_in": (3072, 2048),
}  # fmt: skip
"""One module of AuraFlow, HunyuanDiT, Chroma, Flux.2 klein 4B and Ovis-Image."""
T5, QWEN = "encoder.block.0.layer.0.SelfAttention.q", "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(("denoiser", "prefix", "module", "shape", "component"), [
    ("single_layers_0_attn_w1q", "lora_te_", T5, (2048, 2048), "text_encoder"),
    ("blocks_0_attn1_Wqkv", "lora_te1_", "encoder.layer.0.attention.self.query", (1024, 1024), "text_encoder"),
    ("blocks_0_attn1_Wqkv", "text_encoders.mt5xl.transformer.", T5, (2048, 2048), "text_encoder_2"),
    ("distilled_guidance_layer_layers_0_in_layer", "lora_te3_", T5, (4096, 4096), "text_encoder"),
    ("double_stream_modulation_img_lin", "text_encoders.qwen3_4b.transformer.", QWEN, (4096, 2560), "text_encoder"),
    ("semantic_txt_in", "text_encoders.qwen3_2b.transformer.", QWEN, (2048, 2048), "text_encoder"),
])  # fmt: skip
def test_text_encoders_by_what_trainers_call_them(denoiser, prefix, module, shape, component):
    tensors = file_of({denoiser: GEOMETRY[denoiser]}, "lora_unet_", flat=True)
    adapter = read_adapter(tensors | file_of({module: shape}, prefix, flat=prefix.startswith("lora_")))
    assert not adapter.foreign, adapter.candidates
    assert set(adapter.components) == {"transformer", component}
