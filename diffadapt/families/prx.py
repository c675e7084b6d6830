"""PRX (T5Gemma, which nobody trains) and PRX-Pixel (Qwen3-VL-Embedding-2B). Source: Diffusers' conversion script."""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names, between
from diffadapt.families.qwen import QWEN3_VL_2B

# Rows stay fused in Diffusers, q|k|v and k|v.
NATIVE = between("blocks.{i}", "blocks.{i}.attention", {
    "img_qkv_proj": "img_qkv_proj", "txt_kv_proj": "txt_kv_proj", "attn_out": "to_out.0",
    "qk_norm.query_norm": "norm_q", "qk_norm.key_norm": "norm_k", "k_norm": "norm_added_k",
})  # fmt: skip

_CLASS = "diffusers.PRXTransformer2DModel"
_PIXEL = {
    "in_channels": 3, "patch_size": 16, "context_in_dim": 2048, "hidden_size": 3584, "num_heads": 28, "depth": 24,
    "axes_dim": (64, 64), "bottleneck_size": 768, "resolution_embeds": True,
}  # fmt: skip
_SLOTS = {"denoiser": "transformer", "transformer": "transformer"}
_DC_AE = {"img_in": ((1792, 32),), "final_layer.linear": ((32, 1792),)}
"""PRX on the DC-AE instead of Flux' autoencoder."""

PRX_PIXEL = Family(
    "prx_pixel",
    {
        "transformer": Names(native=NATIVE, model=Model("prx_pixel", _CLASS, _PIXEL)),
        "text_encoder": QWEN3_VL_2B,
    },
    {**_SLOTS, "text_encoder": "text_encoder"},
    base_models=("prx_pixel", "prx-pixel", "prxpixel"),
    rare=True,
)
PRX = Family(
    "prx",
    {"transformer": Names(native=NATIVE, model=Model("prx", _CLASS, also=_DC_AE))},
    _SLOTS,
    base_models=("prx",),
    rare=True,
)
