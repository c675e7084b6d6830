"""Wan, the Hunyuan models and LTX: spellings beside the original's, row orders, components of two-part models."""

from __future__ import annotations

import pytest
import torch

from diffadapt.families import family_named
from diffadapt.families.choose import Module, choose
from diffadapt.families.names import Names, Route
from diffadapt.reading import read_adapter
from tests.families.full_size import file_of, pairs
from tests.families.test_full_size import native_widths


def names_of(family: str, component: str = "transformer") -> Names:
    found = family_named(family)
    assert found is not None
    return found.components[component]


def route(family: str, name: str) -> Route:
    found = names_of(family).resolve(name)
    assert found is not None, name
    return found


HUNYUAN = ("hunyuan_video", "framepack", "hunyuan_video_15", "hunyuan_image_21", "hunyuan_image_refiner")
COMFY = {
    "double_blocks.7.img_mlp.0": "double_blocks.7.img_mlp.fc1",
    "double_blocks.7.txt_mlp.2": "double_blocks.7.txt_mlp.fc2",
    "double_blocks.7.img_mod.lin": "double_blocks.7.img_mod.linear",
    "double_blocks.7.txt_attn.norm.query_norm": "double_blocks.7.txt_attn_q_norm",
    "double_blocks.7.img_attn.proj": "double_blocks.7.img_attn_proj",
    "single_blocks.3.modulation.lin": "single_blocks.3.modulation.linear",
    "single_blocks.3.norm.key_norm": "single_blocks.3.k_norm",
    "txt_in.individual_token_refiner.blocks.1.self_attn.qkv": "txt_in.individual_token_refiner.blocks.1.self_attn_qkv",
    "txt_in.individual_token_refiner.blocks.1.mlp.0": "txt_in.individual_token_refiner.blocks.1.mlp.fc1",
    "txt_in.c_embedder.in_layer": "txt_in.c_embedder.linear_1",
    "txt_in.t_embedder.out_layer": "txt_in.t_embedder.mlp.2",
    "time_in.in_layer": "time_in.mlp.0", "guidance_in.out_layer": "guidance_in.mlp.2",
}  # fmt: skip


@pytest.mark.parametrize("family", HUNYUAN)
@pytest.mark.parametrize("comfy", COMFY)
def test_comfyui_spells_hunyuan_as_flux(family, comfy):
    absent = ("single_blocks", "guidance_in") if family == "hunyuan_video_15" else ()
    if comfy.startswith(absent):
        assert names_of(family).resolve(comfy) is None
    else:
        assert route(family, comfy) == route(family, COMFY[comfy])
        assert route(family, comfy.replace(".", "_")) == route(family, COMFY[comfy])


@pytest.mark.parametrize("family", HUNYUAN)
def test_only_the_last_modulation_is_exchanged(family):
    assert route(family, "final_layer.adaLN_modulation.1").exchange
    refiner = route(family, "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1")
    assert not refiner.exchange
    assert refiner.modules == ("context_embedder.token_refiner.refiner_blocks.0.norm_out.linear",)


@pytest.mark.parametrize(("family", "unit", "shares"), [
    ("hunyuan_video", "linear1", (1, 1, 1, 4)), ("hunyuan_image_21", "linear1", (1, 1, 1, 4)),
])  # fmt: skip
def test_the_single_blocks_hold_attention_and_mlp_in_one(family, unit, shares):
    found = route(family, f"single_blocks.0.{unit}")
    assert found.shares == shares
    assert found.modules[-1] == "single_transformer_blocks.0.proj_mlp"


def test_the_released_runtime_of_hunyuan_image_takes_fused_layers_apart():
    split = ("double_blocks.1.txt_attn_k", "single_blocks.2.linear1_v", "single_blocks.2.linear1_mlp")
    assert [route("hunyuan_image_21", name).modules for name in split] == [
        ("transformer_blocks.1.attn.add_k_proj",), ("single_transformer_blocks.2.attn.to_v",),
        ("single_transformer_blocks.2.proj_mlp",),
    ]  # fmt: skip
    assert route("hunyuan_image_21", "single_blocks.2.linear2.fc").modules == ("single_transformer_blocks.2.proj_out",)


def test_hunyuan_video_15_is_split_at_tencent_and_fused_in_comfyui():
    parts = ("to_q", "to_k", "to_v")
    fused = route("hunyuan_video_15", "double_blocks.53.img_attn.qkv")
    assert fused.modules == tuple(f"transformer_blocks.53.attn.{part}" for part in parts)
    assert route("hunyuan_video_15", "double_blocks.53.img_attn_v").modules == fused.modules[2:]


WAN = {
    "blocks.3.norm3": "blocks.3.norm2", "blocks.3.modulation": "blocks.3.scale_shift_table",
    "head.modulation": "scale_shift_table", "head.head": "proj_out",
    "blocks_3_self_attn_to_out_0": "blocks.3.attn1.to_out.0", "blocks_3_self_attn_q": "blocks.3.attn1.to_q",
    "blocks_3_ffn_net_0_proj": "blocks.3.ffn.net.0.proj", "blocks_3_ffn_0": "blocks.3.ffn.net.0.proj",
}  # fmt: skip


@pytest.mark.parametrize("name", WAN)
def test_wan_in_original_and_in_mixed_names(name):
    assert route("wan21_t2v_1_3b", name).modules == (WAN[name],)


def test_the_first_vace_block_alone_has_a_projection_before_it():
    assert route("wan21_vace_14b", "vace_blocks.0.before_proj").modules == ("vace_blocks.0.proj_in",)
    assert route("wan21_vace_14b", "vace_blocks.7.after_proj").modules == ("vace_blocks.7.proj_out",)


@pytest.mark.parametrize(("width", "mlp", "depth", "said", "family"), [
    (1536, 8960, 30, None, "wan21_t2v_1_3b"), (3072, 14336, 30, None, "wan22_ti2v_5b"),
    (5120, 13824, 40, None, "wan21_t2v_14b"), (5120, 13824, 40, "wan_2.2_14b", "wan22_t2v_a14b"),
    (5120, 13824, 40, "wan_2.1_vace", "wan21_vace_14b"),
])  # fmt: skip
def test_size_and_what_the_file_says_name_the_wan(width, mlp, depth, said, family):
    shapes = {f"blocks.{i}.self_attn.q": (width, width) for i in range(depth)}
    shapes |= {f"blocks.{i}.ffn.0": (mlp, width) for i in range(depth)}
    modules = [
        Module("denoiser", name, {"lora_down": down, "lora_up": up}) for name, (down, up) in pairs(shapes).items()
    ]
    assert choose(modules, said)[0].name == family


def test_a_wan_for_images_tells_its_kind_by_the_image_keys():
    block = {f"blocks.0.attn2.{part}": (5120, 5120) for part in ("to_k", "add_k_proj")}
    assert read_adapter(file_of(block, "transformer.")).family == "wan21_i2v_14b"


@pytest.mark.parametrize(("family", "depth"), [("ltx2", 2), ("ltx23", 8)])
@pytest.mark.parametrize(("prefix", "original"), [("diffusion_model.", True), ("", True), ("connectors.", False)])
def test_connectors_are_a_component_of_their_own(family, depth, prefix, original):
    """Lightricks' names lie among the transformer's, Diffusers' behind the component's name."""
    model = names_of(family, "connectors").model
    assert model is not None
    shapes = {"transformer_blocks.0.audio_ff.net.2": (2048, 8192)}
    connectors = {"video_connector.transformer_blocks.1.attn1.to_k", "audio_connector.transformer_blocks.1.ff.net.2"}
    for path in connectors:
        name = names_of(family, "connectors").native_name(path) if original else path
        assert name is not None
        shapes[name] = model.measured.modules[path.replace(".1.", ".{i}.")][0]
    adapter = read_adapter(file_of(shapes, prefix) if original else mixed(shapes, prefix))
    assert adapter.family == family, adapter.candidates
    assert {(key.component, key.module) for key in adapter.targets} == {
        ("transformer", "transformer_blocks.0.audio_ff.net.2"), *(("connectors", path) for path in connectors),
    }  # fmt: skip
    assert model.measured.depths["video_connector.transformer_blocks"] == depth


def mixed(shapes, prefix):
    """The transformer's modules behind its name, the others behind theirs."""
    own = {name: shape for name, shape in shapes.items() if name.startswith("transformer_blocks")}
    rest = {name: shape for name, shape in shapes.items() if name not in own}
    return file_of(own, "transformer.") | file_of(rest, prefix)


def test_the_text_projection_of_ltx2_is_a_connector():
    file = file_of({"text_embedding_projection.aggregate_embed": (3840, 188160)}, "")
    adapter = read_adapter(file | file_of({"transformer_blocks.0.audio_attn1.to_q": (2048, 2048)}, "diffusion_model."))
    assert {(key.component, key.module) for key in adapter.targets} == {
        ("connectors", "text_proj_in"), ("transformer", "transformer_blocks.0.audio_attn1.to_q"),
    }  # fmt: skip


def comfy_name(name: str) -> str:
    """A HunyuanVideo module as ComfyUI spells it."""
    for theirs, ours in (
        ("img_attn_", "img_attn."), ("txt_attn_", "txt_attn."), ("self_attn_", "self_attn."), ("mlp.fc1", "mlp.0"),
        ("mlp.fc2", "mlp.2"), ("mod.linear", "mod.lin"), ("modulation.linear", "modulation.lin"),
    ):  # fmt: skip
        name = name.replace(theirs, ours)
    return name


@pytest.mark.parametrize("family", ["hunyuan_video", "hunyuan_image_21"])
@pytest.mark.parametrize("prefix", [("diffusion_model.", False), ("lora_unet_", True)])
def test_a_hunyuan_file_in_comfyuis_names_is_no_flux(family, prefix):
    """Its blocks' names are Flux.1's; there are more of them."""
    found = family_named(family)
    assert found is not None
    blocks = {name: shape for name, shape in native_widths(found).items() if "_blocks." in name}
    adapter = read_adapter(file_of({comfy_name(n): s for n, s in blocks.items()}, prefix[0], flat=prefix[1]))
    assert adapter.family == family, adapter.candidates
    assert len(adapter.targets) == 20 * 14 + 40 * 6
    assert not adapter.foreign


def test_framepack_with_dots_put_in_by_guess():
    """musubi-tuner's converter makes a dot of every underscore it knows nothing better for."""
    shapes = {
        "single.transformer.blocks.39.proj.mlp": (12288, 3072),
        "transformer.blocks.19.ff.context.net.0.proj": (12288, 3072),
    }
    adapter = read_adapter(file_of(shapes, "diffusion_model."))
    assert {key.module for key in adapter.targets} == {
        "single_transformer_blocks.39.proj_mlp", "transformer_blocks.19.ff_context.net.0.proj",
    }  # fmt: skip
    assert {"hunyuan_video", "framepack"} <= {*adapter.candidates}


def test_hunyuan_videos_first_encoder_is_llama_and_clip_the_second():
    file = file_of({"single_blocks.0.linear1": (21504, 3072)}, "lora_unet_", flat=True)
    file |= file_of({"layers.3.self_attn.k_proj": (1024, 4096)}, "lora_te1_", flat=True)
    file |= file_of({"text_model.encoder.layers.3.self_attn.k_proj": (768, 768)}, "lora_te2_", flat=True)
    adapter = read_adapter(file)
    assert adapter.family == "hunyuan_video", adapter.candidates
    found = {key.component: key.module for key in adapter.targets if key.component != "transformer"}
    assert found == {
        "text_encoder": "layers.3.self_attn.k_proj", "text_encoder_2": "text_model.encoder.layers.3.self_attn.k_proj",
    }  # fmt: skip


@pytest.mark.parametrize(("prefix", "component"), [
    ("transformer_2.", "transformer_2"), ("transformer.", "transformer"), ("diffusion_model.", "transformer"),
])  # fmt: skip
def test_the_low_noise_transformer_of_wan_22_is_the_second(prefix, component):
    adapter = read_adapter(file_of({"blocks.0.attn1.to_q": (5120, 5120)}, prefix))
    assert {*adapter.components} == {component}


def test_a_distilled_wan_with_differences_of_norms_tables_and_biases():
    zero = torch.zeros(1)
    shapes = {
        "blocks.0.norm3.diff": (5120,), "blocks.0.norm3.diff_b": (5120,), "blocks.0.modulation.diff": (1, 6, 5120),
        "blocks.0.self_attn.norm_q.diff": (5120,), "blocks.0.self_attn.q.diff_b": (5120,),
        "head.modulation.diff": (1, 2, 5120), "head.head.diff": (64, 5120), "patch_embedding.diff_b": (5120,),
    }  # fmt: skip
    file = {f"diffusion_model.{key}": zero.expand(shape) for key, shape in shapes.items()}
    file |= file_of({"blocks.0.self_attn.q": (5120, 5120)}, "diffusion_model.")
    adapter = read_adapter(file)
    assert adapter.family == "wan21_t2v_14b"
    assert {key.module for key in adapter.targets} == {
        "blocks.0.norm2", "blocks.0.scale_shift_table", "blocks.0.attn1.norm_q", "blocks.0.attn1.to_q",
        "scale_shift_table", "proj_out", "patch_embedding",
    }  # fmt: skip
    assert not adapter.unmatched
    assert not adapter.foreign
