"""The endings of keys in all spellings."""

from __future__ import annotations

import pytest

from diffadapt.dialects.roles import COMFY_SPELLING, KOHYA_SPELLING, PEFT_SPELLING, split_role

CASES = {
    "m.x.lora_down.weight": ("m.x", "lora_down", None),
    "m.x.lora_mid.weight": ("m.x", "lora_mid", None),
    "m.x.alpha": ("m.x", "alpha", None),
    "m.x.lora_A.weight": ("m.x", "lora_down", None),
    "m.x.lora_A.default.weight": ("m.x", "lora_down", "default"),
    "m.x.lora_B.my_style.weight": ("m.x", "lora_up", "my_style"),
    "m.x.lora_B.bias": ("m.x", "lora_up_bias", None),
    "m.x.lora_B.default.bias": ("m.x", "lora_up_bias", "default"),
    "m.x.lora_A": ("m.x", "lora_down", None),
    "m.x.lora_E": ("m.x", "lora_E", None),
    "m.x.lora_E.default": ("m.x", "lora_E", "default"),
    "m.x.lora_diag": ("m.x", "lora_diag", None),
    "m.x.lora.down.weight": ("m.x", "lora_down", None),
    "m.x.lora_linear_layer.up.weight": ("m.x", "lora_up", None),
    "m.x.lora_embedding_A": ("m.x", "lora_embedding_A", None),
    "m.x.lora_embedding_B.default": ("m.x", "lora_embedding_B", "default"),
    "m.x.dora_scale": ("m.x", "dora_scale", None),
    "m.x.lora_magnitude_vector": ("m.x", "dora_scale", None),
    "m.x.lora_magnitude_vector.weight": ("m.x", "dora_scale", None),
    "m.x.lora_magnitude_vector.default.weight": ("m.x", "dora_scale", "default"),
    "m.x.magnitude": ("m.x", "dora_scale", None),
    "m.x.hada_w1_a": ("m.x", "hada_w1_a", None),
    "m.x.hada_w1_a.default": ("m.x", "hada_w1_a", "default"),
    "m.x.lokr_t2": ("m.x", "lokr_t2", None),
    "m.x.oft_blocks": ("m.x", "oft_blocks", None),
    "m.x.oft_blocks.3": ("m.x", "oft_blocks.3", None),
    "m.x.oft_diag": ("m.x", "oft_diag", None),
    "m.x.oft_R.weight": ("m.x", "oft_R", None),
    "m.x.oft_R.default.weight": ("m.x", "oft_R", "default"),
    "m.x.oft_R.scaled_oft": ("m.x", "oft_R_scaled", None),
    "m.x.oft_r": ("m.x", "oft_r", None),
    "m.x.oft_embedding_R.weight": ("m.x", "oft_embedding_R", None),
    "m.x.boft_s": ("m.x", "boft_s", None),
    "m.x.a1.weight": ("m.x", "a1", None),
    "m.x.weight": ("m.x", "weight", None),
    "m.x.on_input": ("m.x", "on_input", None),
    "m.x.ia3_l.default": ("m.x", "ia3_l", "default"),
    "m.x.q_layer.weight": ("m.x", "q_layer", None),
    "m.x.lambda_layer": ("m.x", "lambda_layer", None),
    "m.x.diff_b": ("m.x", "diff_b", None),
    "m.x.set_weight": ("m.x", "set_weight", None),
    "m.x.bias_indices": ("m.x", "bias_indices", None),
    "m.x.hra_u": ("m.x", "hra_u", None),
    "m.x.glora_A.Xd": ("m.x", "glora_A.Xd", None),
    "m.x.psoft_R.vector_a": ("m.x", "psoft_R.vector_a", None),
    "base_model.vera_A": ("base_model", "vera_A", None),
    "adamss_A.0": ("", "adamss_A.0", None),
}


@pytest.mark.parametrize("key", list(CASES))
def test_endings(key):
    assert tuple(split_role(key)) == CASES[key]


@pytest.mark.parametrize("key", ["", ".", "...", "weight", "m.x", "m.lora_down", "alphabet", "m.lora_A.a b.weight.x"])
def test_what_is_no_ending(key):
    ending = split_role(key)
    assert ending is None or ending.module in ("m", "")


@pytest.mark.parametrize("spelling", [KOHYA_SPELLING, PEFT_SPELLING, COMFY_SPELLING], ids=["kohya", "peft", "comfy"])
def test_spellings_are_inverses(spelling):
    for role, ending in spelling.items():
        assert split_role(f"some.module.{ending}") == ("some.module", role, None)
    assert len(set(spelling.values())) == len(spelling)
