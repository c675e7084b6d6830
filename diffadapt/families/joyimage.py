"""JoyImage Edit and Edit-Plus, whose modules are the same; Qwen3-VL-8B. Source: Diffusers' conversion script."""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names, between
from diffadapt.families.qwen import QWEN3_VL_8B

_CONFIG = {"hidden_size": 4096, "num_attention_heads": 32, "num_layers": 40, "theta": 10000}
# q, k and v stay fused in Diffusers.
_ATTENTION = tuple(f"{of}_attn_{leaf}" for of in ("img", "txt") for leaf in ("qkv", "proj", "q_norm", "k_norm"))

JOYIMAGE = Family(
    "joyimage",
    {
        "transformer": Names(
            native=between("double_blocks.{i}", "double_blocks.{i}.attn", {leaf: leaf for leaf in _ATTENTION}),
            model=Model("joyimage", "diffusers.JoyImageEditTransformer3DModel", _CONFIG),
        ),
        "text_encoder": QWEN3_VL_8B,
    },
    {"denoiser": "transformer", "transformer": "transformer", "text_encoder": "text_encoder"},
    base_models=("joyimage", "joy-image", "joy_image"),
    rare=True,
)
