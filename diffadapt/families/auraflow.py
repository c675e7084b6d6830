"""AuraFlow 0.1 to 0.3 (and Pony v7): four joint blocks, then single-stream ones; Pile-T5-XL for text.

Original names: the reference code's, where 1 is the text's and 2 the image's. Source: Diffusers' checkpoint converter.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between
from diffadapt.families.t5 import PILE_T5_XL


def _feed_forward(theirs: str, ours: str) -> dict[str, str]:
    return {
        f"{theirs}.c_fc1": f"{ours}.linear_1", f"{theirs}.c_fc2": f"{ours}.linear_2",
        f"{theirs}.c_proj": f"{ours}.out_projection",
    }  # fmt: skip


NATIVE = (
    *between("double_layers.{i}", "joint_transformer_blocks.{i}", {
        "attn.w2q": "attn.to_q", "attn.w2k": "attn.to_k", "attn.w2v": "attn.to_v", "attn.w2o": "attn.to_out.0",
        "attn.w1q": "attn.add_q_proj", "attn.w1k": "attn.add_k_proj", "attn.w1v": "attn.add_v_proj",
        "attn.w1o": "attn.to_add_out",
        **_feed_forward("mlpX", "ff"), **_feed_forward("mlpC", "ff_context"),
        "modX.1": "norm1.linear", "modC.1": "norm1_context.linear",
    }),
    *between("single_layers.{i}", "single_transformer_blocks.{i}", {
        "attn.w1q": "attn.to_q", "attn.w1k": "attn.to_k", "attn.w1v": "attn.to_v", "attn.w1o": "attn.to_out.0",
        **_feed_forward("mlp", "ff"), "modCX.1": "norm1.linear",
    }),
    *between("", "", {
        "init_x_linear": "pos_embed.proj", "cond_seq_linear": "context_embedder", "final_linear": "proj_out",
        "positional_encoding": "pos_embed.pos_embed",
        "t_embedder.mlp.0": "time_step_proj.linear_1", "t_embedder.mlp.2": "time_step_proj.linear_2",
    }),
    Rule("modF.1", ("norm_out.linear",), exchange=True),
)  # fmt: skip

AURAFLOW = Family(
    "auraflow",
    {
        "transformer": Names(
            native=NATIVE,
            model=Model("auraflow", "diffusers.AuraFlowTransformer2DModel"),
        ),
        "text_encoder": PILE_T5_XL,
    },
    {
        "denoiser": "transformer", "transformer": "transformer",
        "text_encoder": "text_encoder", "pile_t5xl": "text_encoder",
    },
    base_models=("auraflow", "aura_flow", "aura-flow"),
)  # fmt: skip
