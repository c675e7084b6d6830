"""LTX-2, 2.3 and 2.5: video and sound, with connectors between the text encoder (Gemma 3) and the transformer.

Source: Diffusers' checkpoint converter and conversion script. 2.5 has the modules of 2.3 without some biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffadapt.families.base import Family
from diffadapt.families.gemma import GEMMA3_12B
from diffadapt.families.ltx import adaptive, norms
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between

_CLASS, _CONNECTORS = "diffusers.LTX2VideoTransformer3DModel", "diffusers.pipelines.ltx2.LTX2TextConnectors"
_BLOCK = "transformer_blocks.{i}"
_ATTENTIONS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")

NATIVE = (
    *between("", "", {"patchify_proj": "proj_in", "audio_patchify_proj": "audio_proj_in"}),
    *adaptive("adaln_single", "time_embed"),
    *adaptive("audio_adaln_single", "audio_time_embed"),
    *adaptive("av_ca_video_scale_shift_adaln_single", "av_cross_attn_video_scale_shift"),
    *adaptive("av_ca_audio_scale_shift_adaln_single", "av_cross_attn_audio_scale_shift"),
    *adaptive("av_ca_a2v_gate_adaln_single", "av_cross_attn_video_a2v_gate"),
    *adaptive("av_ca_v2a_gate_adaln_single", "av_cross_attn_audio_v2a_gate"),
    *norms(_BLOCK, *_ATTENTIONS),
    *between(_BLOCK, _BLOCK, {
        "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
        "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
    }),
)  # fmt: skip
PROMPT = (
    *adaptive("prompt_adaln_single", "prompt_adaln"),
    *adaptive("audio_prompt_adaln_single", "audio_prompt_adaln"),
)

_CONNECTOR = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")


def _connectors(gated: bool) -> tuple[Rule, ...]:
    """The original names of the connectors. gated: as in 2.3, which projects the text for each modality apart."""
    found: list[Rule] = []
    for modality in ("video", "audio"):
        theirs, ours = f"{modality}_embeddings_connector", f"{modality}_connector"
        leaves = (*_CONNECTOR, "attn1.to_gate_logits") if gated else _CONNECTOR
        their_block, our_block = f"{theirs}.transformer_1d_blocks.{{i}}", f"{ours}.transformer_blocks.{{i}}"
        found += between(their_block, our_block, {leaf: leaf for leaf in leaves})
        found += between(their_block, our_block, {f"attn1.{letter}_norm": f"attn1.norm_{letter}" for letter in "qk"})
        found += between(theirs, ours, {"learnable_registers": "learnable_registers"})
        if gated:
            found += between(
                "text_embedding_projection", "", {f"{modality}_aggregate_embed": f"{modality}_text_proj_in"}
            )
    if not gated:
        found += between("text_embedding_projection", "", {"aggregate_embed": "text_proj_in"})
    return tuple(found)


_LATER = {
    "gated_attn": True, "cross_attn_mod": True, "audio_gated_attn": True, "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False, "perturbed_attn": True,
}  # fmt: skip
_LATER_CONNECTORS = {
    "video_gated_attn": True, "audio_gated_attn": True, "per_modality_projections": True, "proj_bias": True,
    "video_connector_num_attention_heads": 32, "video_connector_num_layers": 8,
    "audio_connector_num_attention_heads": 32, "audio_connector_num_layers": 8,
    "audio_connector_attention_head_dim": 64,
}  # fmt: skip


def _family(
    name: str,
    config: Mapping[str, Any],
    connectors: Mapping[str, Any],
    native: tuple[Rule, ...],
    *base_models: str,
) -> Family:
    native_connectors = _connectors(gated=bool(connectors))
    # Where no prefix of the dialect says the component, its name is the first word of the module's.
    named = tuple(Rule(f"connectors.{target}", (target,)) for rule in native_connectors for target in rule.targets)
    connecting = Names(named, native_connectors, Model(f"{name}_connectors", _CONNECTORS, connectors))
    return Family(
        name,
        {
            "transformer": Names(native=native, model=Model(name, _CLASS, config)),
            "connectors": connecting,
            "text_encoder": GEMMA3_12B,
        },
        {
            "denoiser": "transformer", "transformer": "transformer", "connectors": "connectors",
            "text_encoder": "text_encoder", "gemma3_12b": "text_encoder",
        },
        # Lightricks' checkpoint and ComfyUI have the connectors among the transformer's modules.
        inside={"connectors": connecting},
        base_models=base_models,
        native=True,
    )  # fmt: skip


LTX2 = _family("ltx2", {}, {}, NATIVE, "ltx2", "ltx-2", "lightricks/ltx-2")
LTX23 = _family(
    "ltx23", _LATER, _LATER_CONNECTORS, (*NATIVE, *PROMPT),
    "ltx2.3", "ltx-2.3", "ltx2.5", "ltx-2.5", "lightricks/ltx-2.3", "lightricks/ltx-2.5",
)  # fmt: skip
