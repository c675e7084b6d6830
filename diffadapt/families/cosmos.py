"""Cosmos-Predict2 and 2.5, 2B and 14B: text and image to image and world. Also Anima's transformer, see there.

Source: Diffusers' checkpoint converter. The names of Cosmos 1.0 are others; nobody trains it.
"""

from __future__ import annotations

from collections.abc import Mapping

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between
from diffadapt.families.qwen import QWEN25_VL_7B
from diffadapt.families.t5 import T5_11B

_ATTENTION = {
    "q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "output_proj": "to_out.0",
    "q_norm": "norm_q", "k_norm": "norm_k",
}  # fmt: skip
_TOP = {
    "final_layer.adaln_modulation.1": "norm_out.linear_1", "final_layer.adaln_modulation.2": "norm_out.linear_2",
    "final_layer.linear": "proj_out", "x_embedder.proj.1": "patch_embed.proj", "t_embedding_norm": "time_embed.norm",
    "t_embedder.1.linear_1": "time_embed.t_embedder.linear_1",
    "t_embedder.1.linear_2": "time_embed.t_embedder.linear_2",
}  # fmt: skip
NATIVE = (
    *between("blocks.{i}", "transformer_blocks.{i}", {
        **{f"self_attn.{theirs}": f"attn1.{ours}" for theirs, ours in _ATTENTION.items()},
        **{f"cross_attn.{theirs}": f"attn2.{ours}" for theirs, ours in _ATTENTION.items()},
        **{
            f"adaln_modulation_{of}.{n}": f"{norm}.linear_{n}"
            for of, norm in (("self_attn", "norm1"), ("cross_attn", "norm2"), ("mlp", "norm3"))
            for n in (1, 2)
        },
        "mlp.layer1": "ff.net.0.proj", "mlp.layer2": "ff.net.2",
    }),
    *between("", "", _TOP),
)  # fmt: skip
_CONTEXT = (Rule("crossattn_proj.0", ("crossattn_proj.0",)),)
"""Of Predict2.5 alone, whose text encoder's layers are joined."""

CLASS = "diffusers.CosmosTransformer3DModel"
PREDICT2_2B = {
    "in_channels": 16, "num_attention_heads": 16, "attention_head_dim": 128, "num_layers": 28,
    "text_embed_dim": 1024, "adaln_lora_dim": 256, "rope_scale": (1.0, 4.0, 4.0), "concat_padding_mask": True,
    "extra_pos_embed_type": None,
}  # fmt: skip
_14B = {"num_attention_heads": 40, "num_layers": 36}
_25 = {
    "in_channels": 17, "rope_scale": (1.0, 3.0, 3.0), "use_crossattn_projection": True,
    "crossattn_proj_in_channels": 100352, "encoder_hidden_states_channels": 1024,
}  # fmt: skip
_SLOTS = {"denoiser": "transformer", "transformer": "transformer", "text_encoder": "text_encoder"}


def _family(name: str, config: Mapping[str, object], encoder: Names) -> Family:
    config = {**PREDICT2_2B, **config}
    width = int(str(config["num_attention_heads"])) * 128
    # Image and video variants.
    also = {"patch_embed.proj": ((width, 68), (width, 72))}
    native = (*NATIVE, *_CONTEXT) if "use_crossattn_projection" in config else NATIVE
    transformer = Names(native=native, model=Model(name, CLASS, config, also))
    components = {"transformer": transformer, "text_encoder": encoder}
    slots = {**_SLOTS, "t5xxl": "text_encoder"} if encoder is T5_11B else _SLOTS
    return Family(name, components, slots, base_models=("cosmos",), native=True, rare=True)


COSMOS2_2B = _family("cosmos2_2b", {}, T5_11B)
COSMOS2_14B = _family("cosmos2_14b", _14B, T5_11B)
COSMOS25_2B = _family("cosmos25_2b", _25, QWEN25_VL_7B)
COSMOS25_14B = _family("cosmos25_14b", {**_25, **_14B}, QWEN25_VL_7B)
