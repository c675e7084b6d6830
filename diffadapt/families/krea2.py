"""Krea 2: single-stream with grouped queries, Qwen3-VL-4B. Sources: Diffusers' checkpoint and LoRA converters."""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names, between
from diffadapt.families.qwen import QWEN3_VL_4B

_BLOCKS = {
    "blocks.{i}": "transformer_blocks.{i}",
    "txtfusion.layerwise_blocks.{i}": "text_fusion.layerwise_blocks.{i}",
    "txtfusion.refiner_blocks.{i}": "text_fusion.refiner_blocks.{i}",
}
_LEAVES = {
    "attn.wq": "attn.to_q", "attn.wk": "attn.to_k", "attn.wv": "attn.to_v", "attn.wo": "attn.to_out.0",
    "attn.gate": "attn.to_gate", "attn.qknorm.qnorm": "attn.norm_q", "attn.qknorm.knorm": "attn.norm_k",
    "mlp.gate": "ff.gate", "mlp.up": "ff.up", "mlp.down": "ff.down", "prenorm": "norm1", "postnorm": "norm2",
}  # fmt: skip
_TOP = {
    "first": "img_in", "last.linear": "final_layer.linear", "last.norm": "final_layer.norm",
    "last.modulation.lin": "final_layer.scale_shift_table",
    "tmlp.0": "time_embed.linear_1", "tmlp.2": "time_embed.linear_2", "tproj.1": "time_mod_proj",
    "txtmlp.0": "txt_in.norm", "txtmlp.1": "txt_in.linear_1", "txtmlp.3": "txt_in.linear_2",
    "txtfusion.projector": "text_fusion.projector",
}  # fmt: skip
# The blocks' own `mod.lin` has no rule: it is one row of 6 x width where Diffusers has a table of six rows.
NATIVE = (
    *(rule for theirs, ours in _BLOCKS.items() for rule in between(theirs, ours, _LEAVES)),
    *between("", "", _TOP),
)

KREA2 = Family(
    "krea2",
    {
        "transformer": Names(native=NATIVE, model=Model("krea2", "diffusers.Krea2Transformer2DModel")),
        "text_encoder": QWEN3_VL_4B,
    },
    {
        "denoiser": "transformer", "transformer": "transformer",
        "text_encoder": "text_encoder", "qwen3vl_4b": "text_encoder",
    },
    base_models=("krea2", "krea-2", "krea_2", "krea/krea-2"),
    native=True,
)  # fmt: skip
