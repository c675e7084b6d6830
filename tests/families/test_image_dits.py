"""What single image families have of their own: parts kept inside others, grouped queries, several text encoders."""

from __future__ import annotations

import pytest
import torch

from diffadapt.adapter import TargetKey
from diffadapt.dialects import dialect_named
from diffadapt.families import family_named
from diffadapt.reading import read_adapter
from tests.families.full_size import file_of

LLAMA = "layers.3.self_attn.q_proj"


def lora(prefix, shapes, *, flat=False):
    return file_of(shapes, prefix, flat=flat)


def read(*files):
    adapter = read_adapter({key: tensor for file in files for key, tensor in file.items()})
    assert not adapter.foreign
    assert not adapter.unmatched
    return adapter


@pytest.mark.parametrize(("prefix", "flat"), [("diffusion_model.", False), ("lora_unet_", True), ("", False)])
@pytest.mark.parametrize("width", [2048, 32])
def test_animas_text_conditioner_comes_out_of_the_denoiser(prefix, flat, width):
    """Both hold `blocks.{i}.self_attn.q_proj`; also in models of another size."""
    blocks = {"blocks.20.self_attn.q_proj": (width, width), "blocks.20.self_attn.output_proj": (width, width)}
    inner = {f"llm_adapter.blocks.5.{leaf}": (width // 2, width // 2) for leaf in ("self_attn.q_proj", "mlp.2")}
    adapter = read(lora(prefix, blocks | inner, flat=flat))
    assert adapter.family == "anima"
    assert {(key.component, key.module) for key in adapter.targets} == {
        ("transformer", "transformer_blocks.20.attn1.to_q"), ("transformer", "transformer_blocks.20.attn1.to_out.0"),
        ("text_conditioner", "blocks.5.self_attn.q_proj"), ("text_conditioner", "blocks.5.mlp.2"),
    }  # fmt: skip


def test_animas_text_conditioner_by_its_own_name():
    conditioner = lora("text_conditioner.", {"blocks.5.cross_attn.o_proj": (1024, 1024), "out_proj": (1024, 1024)})
    adapter = read(conditioner, lora("transformer.", {"transformer_blocks.0.attn2.to_k": (2048, 1024)}))
    assert adapter.family == "anima"
    assert set(adapter.components) == {"transformer", "text_conditioner"}
    assert read(conditioner).components == ("text_conditioner",)


def test_anima_is_the_first_guess_for_cosmos_blocks_and_never_for_wider_ones():
    names = ("self_attn.q_proj", "self_attn.output_proj")
    small = read(lora("lora_unet_", {f"blocks.27.{n}": (2048, 2048) for n in names}, flat=True))
    assert small.candidates == ("anima", "cosmos2_2b", "cosmos25_2b")
    large = read(lora("lora_unet_", {f"blocks.35.{n}": (5120, 5120) for n in names}, flat=True))
    assert large.candidates == ("cosmos2_14b", "cosmos25_14b")


def test_what_tells_the_cosmos_models_apart():
    inputs = read(lora("diffusion_model.", {"x_embedder.proj.1": (2048, 68), "blocks.0.mlp.layer1": (8192, 2048)}))
    assert inputs.candidates == ("anima", "cosmos2_2b", "cosmos25_2b")
    video = read(lora("diffusion_model.", {"x_embedder.proj.1": (2048, 72), "blocks.0.mlp.layer1": (8192, 2048)}))
    assert video.candidates == ("cosmos2_2b", "cosmos25_2b")
    context = read(lora("transformer.", {"crossattn_proj.0": (1024, 100352), "proj_out": (64, 2048)}))
    assert context.candidates == ("cosmos25_2b",)


@pytest.mark.parametrize(("block", "width", "shares"), [
    ("transformer_blocks.3", 6144, (4, 1, 1)), ("text_fusion.refiner_blocks.1", 2560, (1, 1, 1)),
])  # fmt: skip
def test_krea_2_fused_by_diffusers_keeps_its_grouped_queries(block, width, shares):
    family = family_named("krea2")
    assert family is not None
    route = family.components["transformer"].resolve(f"{block}.attn.to_qkv")
    assert route is not None
    assert (route.modules, route.shares) == (tuple(f"{block}.attn.to_{part}" for part in "qkv"), shares)
    rows = sum(shares) * width // shares[0]
    adapter = read(lora("transformer.", {f"{block}.attn.to_qkv": (rows, width)}))
    assert adapter.candidates == ("krea2",)
    assert len(adapter.targets) == 3


@pytest.mark.parametrize(("prefixes", "flat"), [
    (("transformer.", "text_encoder.", "text_encoder_2.", "text_encoder_3.", "text_encoder_4."), False),
    (("lora_unet_", "lora_te1_", "lora_te2_", "lora_te3_", "lora_te4_"), True),
    (("diffusion_model.", *(f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g", "t5xxl", "llama"))),
     False),
])  # fmt: skip
def test_hidreams_four_text_encoders(prefixes, flat):
    parts = (
        {"single_stream_blocks.31.block.ff_i.experts.2.w3": (6912, 2560)},
        {"text_model.encoder.layers.3.self_attn.q_proj": (768, 768)},
        {"text_model.encoder.layers.3.self_attn.q_proj": (1280, 1280)},
        {"encoder.block.3.layer.1.DenseReluDense.wi_0": (10240, 4096)},
        {f"model.{LLAMA}": (4096, 4096)},
    )
    adapter = read(*(lora(prefix, part, flat=flat) for prefix, part in zip(prefixes, parts, strict=True)))
    assert adapter.family == "hidream"
    assert {(key.component, key.module) for key in adapter.targets} == {
        (component, name)
        for component, part in zip(
            ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4"), parts, strict=True
        )
        for name in part
    }


@pytest.mark.parametrize(("family", "module", "shape", "encoder", "width"), [
    ("qwen_image", "transformer_blocks.0.txt_mod.1", (18432, 3072), "qwen25_7b", 3584),
    ("zimage", "noise_refiner.0.attention.out", (3840, 3840), "qwen3_4b", 2560),
    ("anima", "blocks.0.mlp.layer1", (8192, 2048), "qwen3_06b", 1024),
    ("krea2", "blocks.0.attn.gate", (6144, 6144), "qwen3vl_4b", 2560),
    ("ideogram4", "layers.0.attention.o", (4608, 4608), "qwen3vl_8b", 4096),
    ("ernie", "layers.0.mlp.linear_fc2", (4096, 12288), "ministral3_3b", 3072),
])  # fmt: skip
def test_comfy_uis_own_name_of_the_text_encoder(family, module, shape, encoder, width):
    text = lora(f"text_encoders.{encoder}.transformer.model.", {"layers.0.mlp.gate_proj": (4 * width, width)})
    adapter = read(lora("diffusion_model.", {module: shape}), text)
    assert adapter.family == family
    assert sorted(adapter.components) == ["text_encoder", "transformer"]


def test_z_image_spellings():
    for name in ("attention.out", "attention.wo", "attention.to_out.0", "attention_to.out.0"):
        adapter = read(lora("lora_unet_", {f"layers.29.{name}": (3840, 3840)}, flat=True))
        assert [key.module for key in adapter.targets] == ["layers.29.attention.to_out.0"]
        assert adapter.family == "zimage"


def test_layers_of_one_name_are_told_apart_by_their_width():
    for width, family in ((3840, "zimage"), (4608, "ideogram4"), (3584, "bria_fibo2")):
        adapter = read(lora("transformer.", {"layers.0.attention.to_q": (width, width)}))
        assert adapter.candidates == (family,)


@pytest.mark.parametrize("equal", [True, False])
def test_fused_and_split_copies_of_one_change_act_once(equal):
    """Some Z-Image files hold q, k and v fused and apart; two different changes add up."""
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 3840, generator=generator), torch.randn(3 * 3840, 4, generator=generator)
    file = {"qkv.lora.down.weight": down, "qkv.lora.up.weight": up}
    for name, rows in zip("qkv", up.split(3840), strict=True):
        file |= {f"to_{name}.lora.down.weight": 2 * down, f"to_{name}.lora.up.weight": rows / (2 if equal else 1)}
    adapter = read_adapter({f"diffusion_model.layers.0.attention.{key}": tensor for key, tensor in file.items()})
    target = TargetKey("transformer", "layers.0.attention.to_k")
    expected = up[3840:7680] @ down * (1 if equal else 3)
    seen = adapter.targets[target].weight_delta(torch.zeros(3840, 3840))
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)
    assert bool(adapter.ignored) == equal


@pytest.mark.parametrize(
    ("dialect", "key"),
    [
        ("comfy", "diffusion_model.llm_adapter.blocks.0.mlp.0.lora_A.weight"),
        ("kohya", "lora_unet_llm_adapter_blocks_0_mlp_0.lora_down.weight"),
    ],
)
def test_the_conditioner_is_written_inside_the_denoiser(dialect, key):
    target = TargetKey("text_conditioner", "blocks.0.mlp.0")
    assert dialect_named(dialect).join(target, "lora_down", family_named("anima")) == key
