"""HunyuanDiT 1.0 to 1.2: a Chinese BERT and mT5-XL for text.

Original names: Tencent's, which its own trainer and sd-scripts' fork write. Source: Diffusers' conversion script. The
norms `norm2` and `norm3` of a block change places between the two namings; one name cannot mean both, and here it is
Diffusers'. Only trained norms of files in the original names would tell, and none are known.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between, under
from diffadapt.families.t5 import MT5_XL

NATIVE = (
    Rule("blocks.{i}.attn1.Wqkv", under("blocks.{i}.attn1", ("to_q", "to_k", "to_v"))),
    Rule("blocks.{i}.attn2.kv_proj", under("blocks.{i}.attn2", ("to_k", "to_v"))),
    *between("blocks.{i}", "blocks.{i}", {
        "attn1.out_proj": "attn1.to_out.0", "attn2.q_proj": "attn2.to_q", "attn2.out_proj": "attn2.to_out.0",
        **{f"attn{n}.{x}_norm": f"attn{n}.norm_{x}" for n in (1, 2) for x in "qk"},
        "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2",
        "default_modulation.1": "norm1.linear", "norm1": "norm1.norm",
    }),
    *between("", "", {
        "x_embedder.proj": "pos_embed.proj", "mlp_t5.0": "text_embedder.linear_1", "mlp_t5.2": "text_embedder.linear_2",
        "t_embedder.mlp.0": "time_extra_emb.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_extra_emb.timestep_embedder.linear_2",
        "extra_embedder.0": "time_extra_emb.extra_embedder.linear_1",
        "extra_embedder.2": "time_extra_emb.extra_embedder.linear_2",
        "style_embedder": "time_extra_emb.style_embedder",
        **{f"pooler.{x}_proj": f"time_extra_emb.pooler.{x}_proj" for x in "qkvc"},
        "pooler.positional_embedding": "time_extra_emb.pooler.positional_embedding",
        "final_layer.linear": "proj_out",
    }),
    Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), exchange=True),
)  # fmt: skip

_V11 = {
    "num_attention_heads": 16, "attention_head_dim": 88, "hidden_size": 1408, "num_layers": 40, "in_channels": 4,
    "patch_size": 2, "mlp_ratio": 4.3637, "sample_size": 128,
}  # fmt: skip
BERT = Names(
    model=Model(
        "bert_hunyuandit", "transformers.BertModel",
        {
            "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
            "vocab_size": 47020,
        },
    )
)  # fmt: skip

HUNYUANDIT = Family(
    "hunyuandit",
    {
        "transformer": Names(
            native=NATIVE,
            model=Model(
                "hunyuandit", "diffusers.HunyuanDiT2DModel", _V11,
                # Version 1.2 has neither style nor image size among the embedder's inputs.
                also={"time_extra_emb.extra_embedder.linear_1": ((5632, 1024),)},
            ),
        ),
        "text_encoder": BERT, "text_encoder_2": MT5_XL,
    },
    {
        "denoiser": "transformer", "transformer": "transformer",
        "text_encoder": "text_encoder", "hydit_clip": "text_encoder",
        "text_encoder_2": "text_encoder_2", "mt5xl": "text_encoder_2",
    },
    base_models=("hunyuandit", "hunyuan_dit", "hunyuan-dit", "hydit"),
    native=True,
)  # fmt: skip
