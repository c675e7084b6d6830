"""Recognition, splitting and joining, for every dialect of the registry."""

from __future__ import annotations

import pytest
import torch

from diffadapt.adapter import TargetKey
from diffadapt.dialects import DIALECTS, Facts, dialect_named, recognise
from diffadapt.errors import DialectError
from diffadapt.families import FAMILIES, family_named
from diffadapt.reading import read_adapter
from tests.families import models

UNET = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
CLIP = "text_model.encoder.layers.0.self_attn.q_proj"
EXAMPLES = {
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": ("kohya", "unet", UNET),
    f"lora_unet_{UNET.replace('.', '_')}.hada_w1_a": ("kohya", "unet", UNET),
    f"lora_unet__{UNET.replace('.', '_')}.alpha": ("kohya", "unet", UNET),
    f"lora_te1_{CLIP.replace('.', '_')}.lora_up.weight": ("kohya", "text_encoder", CLIP),
    f"lora_te2_{CLIP.replace('.', '_')}.lora_up.weight": ("kohya", "text_encoder_2", CLIP),
    "oft_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.oft_blocks": ("kohya_oft", "unet", UNET),
    f"lycoris_{UNET.replace('.', '_')}.lokr_w1": ("lycoris", "unet", UNET),
    f"lycoris_{UNET}.lokr_w1": ("lycoris", "unet", UNET),
    f"{UNET.replace('attn2.to_k', 'attn2.processor.to_k_lora.down.weight')}": ("attention_processors", "unet", UNET),
    f"unet.{UNET.replace('attn2.to_k', 'attn2.processor.to_k_lora.up.weight')}": ("attention_processors", "unet", UNET),
    "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight":
        ("attention_processors", "text_encoder", CLIP),
    f"unet.{UNET}.lora.down.weight": ("diffusers", "unet", UNET),
    f"unet.base_model.model.{UNET}.lora_A.weight": ("diffusers", "unet", UNET),
    "text_encoder.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight":
        ("diffusers", "text_encoder", CLIP),
    f"text_encoder_2.{CLIP}.lora_A.weight": ("diffusers", "text_encoder_2", CLIP),
    f"controlnet.{UNET}.lora_A.weight": ("diffusers", "controlnet", UNET),
    f"base_model.model.{UNET}.lora_A.weight": ("peft", "unet", UNET),
    f"base_model.model.base_model.model.{UNET}.lora_A.default.weight": ("peft", "unet", UNET),
    f"base_model.model.unet.{UNET}.lora_A.weight": ("peft", "unet", UNET),
    f"diffusion_model.{UNET}.lora_A.weight": ("comfy", "unet", UNET),
    "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.lora_A.weight": ("comfy", "unet", UNET),
    f"text_encoders.clip_l.transformer.{CLIP}.lora_A.weight": ("comfy", "text_encoder", CLIP),
    f"text_encoders.clip_g.transformer.{CLIP}.lora_A.weight": ("comfy", "text_encoder_2", CLIP),
    f"{UNET}.lora_A.weight": ("bare", "unet", UNET),
}  # fmt: skip


@pytest.mark.parametrize("key", list(EXAMPLES))
def test_recognised_and_resolved(key):
    dialect, component, module = EXAMPLES[key]
    found, recognition = recognise([key])
    assert found.name == dialect
    assert repr(key) in recognition.evidence
    parts = found.split(key)
    sdxl = family_named("sdxl")
    routes = {part: names.resolve(parts.module) for part, names in sdxl.names_of(parts.slot)}
    assert routes[component].modules == (module,)


@pytest.mark.parametrize("dialect", [d for d in DIALECTS if d.name != "xlabs"], ids=lambda d: d.name)
@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name in models.UNETS], ids=lambda f: f.name)
def test_join_is_the_inverse_of_split(dialect, family):
    modules = [TargetKey("unet", name) for name in models.layers(models.unet(family.name))]
    joined = 0
    for target in modules:
        for role in ("lora_down", "lora_up", "alpha", "dora_scale", "oft_blocks", "lokr_w2_a"):
            try:
                key = dialect.join(target, role, family)
            except DialectError:
                continue
            reader = dialect if dialect.prefixes else recognise([key])[0]  # OneTrainer's are read as Kohya's
            parts = reader.split(key)
            assert parts is not None, key
            assert parts.role == role
            routes = [names.resolve(parts.module) for part, names in family.names_of(parts.slot) if part == "unet"]
            assert routes[0].modules == (target.module,)
            joined += 1
    assert joined >= 100


def test_kohya_writes_original_names_for_sdxl_only():
    kohya, target = dialect_named("kohya"), TargetKey("unet", UNET)
    assert kohya.join(target, "alpha", family_named("sdxl")).startswith("lora_unet_input_blocks_4_1_")
    assert kohya.join(target, "alpha", family_named("sd1")).startswith("lora_unet_down_blocks_1_")
    text = TargetKey("text_encoder", CLIP)
    assert kohya.join(text, "alpha", family_named("sd1")).startswith("lora_te_text_model_")
    assert kohya.join(text, "alpha", family_named("sdxl")).startswith("lora_te1_text_model_")


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_nothing_claims_strange_keys(dialect):
    for keys in ([], [""], ["."], ["a"], ["a.b.c"], ["x" * 10000], ["\ud800.weight"], ["lora"]):
        assert dialect.recognise(keys) is None
        for key in keys:
            dialect.split(key)


WRITERS = [
    ("kohya", {}, {"lora_down", "lora_up", "alpha"}, "kohya"),
    ("kohya", {"ss_network_module": "lycoris.kohya"}, {"hada_w1_a"}, "lycoris"),
    ("kohya", {"ot_branch": "master"}, {"lora_down"}, "onetrainer"),
    ("kohya_oft", {}, {"oft_blocks"}, "kohya_oft"),
    ("lycoris", {}, {"lokr_w1"}, "lycoris"),
    ("comfy", {}, {"lora_down", "lora_up"}, "ai_toolkit"),
    ("comfy", {}, {"lora_down", "lora_up", "alpha"}, "kohya"),
    ("comfy", {}, {"oft_R"}, "onetrainer"),
    ("diffusers", {}, {"lora_down"}, "diffusers"),
    ("diffusers", {}, {"oft_R"}, "onetrainer"),
    ("diffusers", {"lora_adapter_metadata": '{"unet.r": 4}'}, {"oft_R"}, "diffusers"),
    ("peft", {}, {"oft_R"}, "peft"),
    ("bare", {}, {"lora_down"}, "diffusers"),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "metadata", "roles", "writer"), WRITERS)
def test_writer(dialect, metadata, roles, writer):
    contexts = dialect_named(dialect).contexts(Facts(frozenset(roles), metadata))
    assert contexts("unet", UNET).writer == writer


def test_ia3_of_lycoris_keeps_its_weight():
    key = "lora_unet_mid_block_attentions_0_proj_in"
    adapter = read_adapter({f"{key}.weight": torch.ones(8), f"{key}.on_input": torch.tensor(False)})
    assert dict(adapter.algorithms) == {"ia3": 1}


def test_peft_replacements():
    pair = {f"base_model.model.conv_in.lora_{x}.weight": torch.ones(4, 4) for x in "AB"}
    adapter = read_adapter({**pair, "base_model.model.conv_out.weight": torch.ones(4, 4, 3, 3),
                            "base_model.model.conv_in.base_layer.bias": torch.ones(4)})  # fmt: skip
    assert not adapter.unmatched
    weight = torch.zeros(4, 4, 3, 3)
    assert bool((adapter.targets["unet", "conv_out"].weight_delta(weight) == 1).all())


def test_unknown_dialect():
    with pytest.raises(DialectError, match="choose one of kohya_oft"):
        dialect_named("klingon")


@pytest.mark.parametrize(
    ("key", "slot", "module", "role"),
    [
        ("double_blocks.3.processor.qkv_lora1.down.weight", "denoiser", "double_blocks.3.img_attn.qkv", "lora_down"),
        ("double_blocks.3.processor.proj_lora2.up.weight", "denoiser", "double_blocks.3.txt_attn.proj", "lora_up"),
        (
            "diffusion_model.single_blocks.7.processor.qkv_lora.up.weight",
            "denoiser", "single_blocks.7.linear1_qkv", "lora_up",
        ),
        ("lora_unet__blocks_0_ffn_0.alpha", "denoiser", "blocks_0_ffn_0", "alpha"),
        ("lora_prior_unet_down_blocks_0_1_x.alpha", "prior", "down_blocks_0_1_x", "alpha"),
        ("lycoris_transformer_transformer_blocks_0_attn_to_q.alpha", None, "transformer_blocks_0_attn_to_q", "alpha"),
        ("lycoris_transformer_blocks_0_attn_to_q.alpha", None, "transformer_blocks_0_attn_to_q", "alpha"),
        ("text_encoders.qwen25_7b.transformer.model.layers.0.x.alpha", "qwen25_7b", "model.layers.0.x", "alpha"),
        ("text_encoders.t5xxl.encoder.block.0.x.lora_B.weight", "t5xxl", "encoder.block.0.x", "lora_up"),
        ("net.blocks.0.mlp.layer1.lora_A.weight", None, "blocks.0.mlp.layer1", "lora_down"),
        ("transformer.core.transformer_blocks.0.x.lora_A.weight", "transformer", "transformer_blocks.0.x", "lora_down"),
        ("conditional_transformer.layers.0.x.lora_A.weight", "transformer", "layers.0.x", "lora_down"),
        ("transformer_2.blocks.0.x.lora_A.weight", "transformer_2", "blocks.0.x", "lora_down"),
        ("transformer.blocks.0.x.lora_A.default.weight", "transformer", "blocks.0.x", "lora_down"),
        ("transformer.blocks.0.x.magnitude", "transformer", "blocks.0.x", "dora_scale"),
    ],
)  # fmt: skip
def test_prefixes_of_transformer_trainers(key, slot, module, role):
    dialect, _ = recognise([key])
    assert dialect.split(key) == (slot, module, role, dialect.split(key).flat)
