"""Key names of files that people reported as failing elsewhere: each is read whole, on its family."""

from __future__ import annotations

import pytest
import torch

from diffadapt.errors import AlgorithmError
from diffadapt.reading import read_adapter


def pairs(names: dict[str, tuple[int, int]], down: str, up: str, alpha: str | None = None) -> dict[str, torch.Tensor]:
    """name -> (inputs, outputs) as low-rank pairs of rank 2."""
    file = {}
    for name, (inputs, outputs) in names.items():
        file |= {f"{name}.{down}": torch.ones(2, inputs), f"{name}.{up}": torch.ones(outputs, 2)}
        if alpha:
            file[f"{name}.{alpha}"] = torch.tensor(1.0)
    return file


KOHYA, PEFT = ("lora_down.weight", "lora_up.weight", "alpha"), ("lora_A.default.weight", "lora_B.default.weight")
CASES = {
    # SimpleTuner's first Flux files: an underscore behind every name.
    "trailing underscore": (
        pairs({"lora_unet_transformer_blocks_18_ff_net_0_proj_": (3072, 12288),
               "lora_unet_transformer_blocks_1_attn_add_k_proj_": (3072, 3072)}, *KOHYA), "flux1", 2,
    ),
    # A flat component name without `lora_` before it.
    "no lora_": (
        pairs({"transformer_single_transformer_blocks_0_attn_to_k": (3072, 3072),
               "transformer_transformer_blocks_3_ff_net_2": (12288, 3072)}, *KOHYA), "flux1", 2,
    ),
    # DiffSynth-Studio's names of its own Flux, with the adapter's name.
    "diffsynth": (
        pairs({"blocks.0.attn.a_to_qkv": (3072, 9216), "blocks.0.attn.b_to_out": (3072, 3072),
               "blocks.18.ff_a.0": (3072, 12288), "single_blocks.37.to_qkv_mlp": (3072, 21504),
               "single_blocks.0.proj_out": (15360, 3072)}, *PEFT), "flux1", 10,
    ),
    # Z-Image: two underscores, `lora.down`, and a dot before the last number in the alphas only.
    "mixed dots": (
        {
            **pairs({"lora_unet__context_refiner_0_attention_to_q": (3840, 3840),
                     "lora_unet__context_refiner_0_attention_to_out_0": (3840, 3840)},
                    "lora.down.weight", "lora.up.weight"),
            "lora_unet__context_refiner_0_attention_to_out.0.alpha": torch.tensor(1.0),
            "lora_unet__context_refiner_0_attention_to_q.alpha": torch.tensor(1.0),
        }, "zimage", 2,
    ),
    # XLabs with single blocks.
    "xlabs": (
        {
            **pairs({"single_blocks.1.processor.qkv_lora": (3072, 9216), "double_blocks.0.processor.proj_lora1":
                     (3072, 3072)}, "down.weight", "up.weight"),
        }, "flux1", 4,
    ),
    # SimpleTuner trained fused projections of Krea 2, also where keys and values are fewer.
    "fused gqa": (
        {
            "lycoris_text_fusion_layerwise_blocks_0_attn_to_qkv.lokr_w1": torch.ones(4, 4),
            "lycoris_text_fusion_layerwise_blocks_0_attn_to_qkv.lokr_w2": torch.ones(1920, 640),
            "lycoris_text_fusion_layerwise_blocks_0_attn_to_qkv.dora_scale": torch.ones(7680, 1),
            "lycoris_text_fusion_layerwise_blocks_0_attn_to_qkv.alpha": torch.tensor(1.0),
        }, "krea2", 3,
    ),
    # Anima, trained norms beside LoRA.
    "norm differences": (
        {
            **pairs({"diffusion_model.blocks.0.self_attn.q_proj": (2048, 2048)}, "lora_A.weight", "lora_B.weight"),
            "diffusion_model.blocks.0.self_attn.q_norm.diff": torch.ones(128),
            "diffusion_model.blocks.0.self_attn.k_norm.diff": torch.ones(128),
        }, "anima", 3,
    ),
    # ai-toolkit's DoRA on Krea 2: a one-dimensional magnitude, no alpha.
    "magnitude": (
        {
            **pairs({f"diffusion_model.blocks.0.attn.{name}": (6144, rows) for name, rows in
                     (("wq", 6144), ("wk", 1536), ("wv", 1536), ("gate", 6144))}, "lora_A.weight", "lora_B.weight"),
            **{f"diffusion_model.blocks.0.attn.{name}.magnitude": torch.ones(rows) for name, rows in
               (("wq", 6144), ("wk", 1536), ("wv", 1536), ("gate", 6144))},
        }, "krea2", 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_reported_file_is_read_whole(case):
    file, family, count = CASES[case]
    adapter = read_adapter(file)
    assert adapter.family == family, adapter.candidates
    assert len(adapter.targets) == count
    assert not adapter.unmatched
    assert not adapter.foreign
    assert not adapter.ignored


def test_control_loras_in_comfyui_s_generic_roles():
    """`reshape_weight` says what the pair says; `set_weight` and `diff_b` stand beside pairs."""
    block = "diffusion_model.double_blocks.0.img_attn"
    file = {
        **pairs({"diffusion_model.img_in": (128, 3072)}, "lora_A.weight", "lora_B.weight"),
        **pairs({f"{block}.proj": (3072, 3072)}, "lora_A.weight", "lora_B.weight"),
        "diffusion_model.img_in.reshape_weight": torch.tensor([3072, 128]),
        f"{block}.norm.key_norm.set_weight": torch.ones(128), f"{block}.proj.diff_b": torch.ones(3072),
    }  # fmt: skip
    adapter = read_adapter(file)
    assert (adapter.family, len(adapter.targets), adapter.unmatched) == ("flux1", 3, ())
    file["diffusion_model.img_in.reshape_weight"] = torch.tensor([3072, 64])
    with pytest.raises(AlgorithmError, match=r"img_in: reshape_weight says \[3072, 64\], its pair makes \(3072, 128\)"):
        read_adapter(file)


def test_onetrainer_s_older_layout():
    """The parts of a fused module are modules of their own, by number."""
    names = {f"transformer.double_blocks.0.img_attn.qkv.{n}": (3072, 3072) for n in range(3)}
    adapter = read_adapter(pairs({**names, "transformer.img_in.proj": (64, 3072)}, *KOHYA))
    assert {key.module for key in adapter.targets} == {
        "x_embedder", *(f"transformer_blocks.0.attn.to_{part}" for part in "qkv"),
    }  # fmt: skip
