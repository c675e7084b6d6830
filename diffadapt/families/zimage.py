"""Z-Image, Turbo, Edit and Omni (which adds SigLIP's modules); Qwen3-4B.

Nearly all trainers train Diffusers' class, with q, k and v apart, and name it so in Kohya's layout too. The original
names, which ComfyUI has as well, fuse them. Sources: Diffusers' checkpoint and LoRA converters, musubi-tuner's
`convert_z_image_lora_to_comfy.py`.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between, under
from diffadapt.families.qwen import QWEN3_4B

_LISTS = ("layers.{i}", "noise_refiner.{i}", "context_refiner.{i}", "siglip_refiner.{i}")
_TOP = {"x_embedder": "all_x_embedder.2-1"} | {
    f"final_layer.{leaf}": f"all_final_layer.2-1.{leaf}" for leaf in ("linear", "adaLN_modulation.1")
}
NATIVE = (
    *(Rule(f"{b}.attention.qkv", under(f"{b}.attention", ("to_q", "to_k", "to_v"))) for b in _LISTS),
    *(
        rule
        for block in _LISTS
        for rule in between(f"{block}.attention", f"{block}.attention", {
            "out": "to_out.0", "q_norm": "norm_q", "k_norm": "norm_k",
        })
    ),
    *between("", "", _TOP),
)  # fmt: skip
_ALSO = tuple(Rule(f"{b}.attention.wo", (f"{b}.attention.to_out.0",), written=False) for b in _LISTS)
"""A spelling of hand-made conversions."""

ZIMAGE = Family(
    "zimage",
    {
        "transformer": Names(
            _ALSO, NATIVE, Model("zimage", "diffusers.ZImageTransformer2DModel", {"siglip_feat_dim": 1152})
        ),
        "text_encoder": QWEN3_4B,
    },
    {
        "denoiser": "transformer", "transformer": "transformer",
        "text_encoder": "text_encoder", "qwen3_4b": "text_encoder",
    },
    base_models=("z-image", "z_image", "zimage", "tongyi-mai/z-image"),
)  # fmt: skip
