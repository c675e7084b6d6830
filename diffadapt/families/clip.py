"""Names of CLIP text encoders: Hugging Face's with and without `text_model.`, and OpenCLIP's.

The canonical name has the `text_model.` level, which `CLIPTextModel` of transformers >= 5.6 itself no longer has.
"""

from __future__ import annotations

from diffadapt.families.names import Names, Rule, same

_LEVEL = "text_model."
LAYER = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
    "mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2",
)  # fmt: skip
ENCODER = (
    *(f"encoder.layers.{{i}}.{leaf}" for leaf in LAYER),
    "embeddings.token_embedding", "embeddings.position_embedding", "final_layer_norm",
)  # fmt: skip

_BLOCK, _OURS = "transformer.resblocks.{i}", "text_model.encoder.layers.{i}"
OPEN_CLIP = (
    Rule(f"{_BLOCK}.attn.in_proj", tuple(f"{_OURS}.self_attn.{part}_proj" for part in "qkv"), (1, 1, 1)),
    Rule(f"{_BLOCK}.attn.out_proj", (f"{_OURS}.self_attn.out_proj",)),
    Rule(f"{_BLOCK}.mlp.c_fc", (f"{_OURS}.mlp.fc1",)),
    Rule(f"{_BLOCK}.mlp.c_proj", (f"{_OURS}.mlp.fc2",)),
    Rule(f"{_BLOCK}.ln_1", (f"{_OURS}.layer_norm1",)),
    Rule(f"{_BLOCK}.ln_2", (f"{_OURS}.layer_norm2",)),
    Rule("token_embedding", ("text_model.embeddings.token_embedding",)),
    Rule("ln_final", ("text_model.final_layer_norm",)),
)

CLIP = Names(
    [
        *same([*(_LEVEL + leaf for leaf in ENCODER), "text_projection"]),
        *(Rule(leaf, (_LEVEL + leaf,), written=False) for leaf in ENCODER),
    ],
    OPEN_CLIP,
)
WIDTH_LEAVES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1")
"""The modules whose input is as wide as the encoder."""
