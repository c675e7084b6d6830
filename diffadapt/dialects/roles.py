"""The endings of keys: which tensor of a module a key is, in every spelling, and how each dialect spells it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from diffadapt.errors import DialectError

# Endings that mean the same under another name. The canonical spellings, with and without `.weight`, are added below.
_SPELLINGS = {
    "lora_A.weight": "lora_down", "lora_B.weight": "lora_up", "lora_B.bias": "lora_up_bias",
    "lora_up.bias": "lora_up_bias", "lora_A": "lora_down", "lora_B": "lora_up",
    "lora.down.weight": "lora_down", "lora.up.weight": "lora_up", "lora.up.bias": "lora_up_bias",
    "lora_linear_layer.down.weight": "lora_down", "lora_linear_layer.up.weight": "lora_up",
    "lora_magnitude_vector": "dora_scale", "lora_magnitude_vector.weight": "dora_scale",
    "magnitude": "dora_scale", "magnitude.weight": "dora_scale",
    "oft_R.scaled_oft": "oft_R_scaled", "token_adapter.trainable_tokens_delta": "trainable_tokens_delta",
    "ln_tuning_layers.weight": "set_weight", "ln_tuning_layers.bias": "set_bias",
}  # fmt: skip
_CANONICAL = (
    "lora_down", "lora_up", "lora_mid", "lora_embedding_A", "lora_embedding_B", "lora_E", "lora_diag", "alpha",
    "dora_scale", "rescale", "diff", "diff_b", "w_norm", "b_norm", "set_weight", "reshape_weight", "on_input",
    "bias_indices", "bias_values", "bias_size", "a1", "a2", "b1", "b2",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t1", "lokr_t2",
    "oft_blocks", "oft_diag", "oft_R", "oft_r", "oft_s", "oft_embedding_R", "boft_R", "boft_s",
    "q_layer", "p_layer", "lambda_layer", "ia3_l", "hra_u",
)  # fmt: skip
_ENDINGS = {
    **{role: role for role in _CANONICAL}, **{f"{role}.weight": role for role in _CANONICAL}, **_SPELLINGS,
}  # fmt: skip
# Tensors that PEFT keeps per adapter: a live model's state dict has the adapter's name behind them.
_NAMED = {
    spelling.removesuffix(".weight"): role
    for spelling, role in _ENDINGS.items()
    if spelling.startswith(
        ("lora_A", "lora_B", "lora_E", "lora_e", "lora_m", "lora_d", "hada_", "lokr_", "oft_", "boft_")
    )
    or spelling in ("ia3_l", "hra_u")
}
_NAMED_BIAS = {"lora_B": "lora_up_bias"}
# PEFT methods with several tensors: the role is everything from this word on, without `.weight`.
_METHODS = (
    "glora_", "vera_", "pvera_", "fourierft_", "waveft_", "miss_", "bone_", "road_", "delora_", "c3a_", "hira_",
    "gralora_", "randlora_", "shira_", "vblora_", "adamss_", "psoft_", "frod_", "peanut_", "tinylora_", "unilora_",
    "osf_", "supertuning_", "deft_", "beft_", "trainable_tokens_",
)  # fmt: skip
_LONGEST = 3
_REPLACED_NORMS = frozenset({"norm_q", "norm_k", "norm_added_q", "norm_added_k", "query_norm", "key_norm"})


class Ending(NamedTuple):
    """What precedes the ending, the canonical role, and the PEFT adapter's name in it, if any."""

    module: str
    role: str
    adapter: str | None = None


def split_role(key: str) -> Ending | None:
    """Take the role off the end of a key, the longest ending first; None where no ending is known."""
    dots = _last_dots(key)
    for dot in reversed(dots):
        role = _ENDINGS.get(key[dot + 1 :])
        if role is not None:
            return Ending(key[:dot], role)
    return _named(key, dots) or _part(key, dots) or _method(key) or _attribute(key, dots)


def _last_dots(key: str) -> list[int]:
    """The places of the last dots, from the end."""
    dots: list[int] = []
    end = len(key)
    while len(dots) < _LONGEST and (end := key.rfind(".", 0, end)) >= 0:
        dots.append(end)
    return dots


def _named(key: str, dots: list[int]) -> Ending | None:
    """`lora_A.<adapter>.weight`, `lora_magnitude_vector.<adapter>.weight`, `lora_embedding_A.<adapter>`."""
    if len(dots) == _LONGEST and (last := key[dots[0] + 1 :]) in ("weight", "bias"):
        table = _NAMED if last == "weight" else _NAMED_BIAS
        role = table.get(key[dots[2] + 1 : dots[1]])
        if role is not None:
            return Ending(key[: dots[2]], role, key[dots[1] + 1 : dots[0]])
    if len(dots) > 1 and (role := _NAMED.get(key[dots[1] + 1 : dots[0]])) is not None:
        name = key[dots[0] + 1 :]
        if name.isidentifier():
            return Ending(key[: dots[1]], role, name)
    return None


def _part(key: str, dots: list[int]) -> Ending | None:
    """`oft_blocks.0`: sd-scripts' parts of a fused weight."""
    if len(dots) > 1 and key[dots[1] + 1 : dots[0]] == "oft_blocks" and key[dots[0] + 1 :].isdecimal():
        return Ending(key[: dots[1]], key[dots[1] + 1 :])
    return None


def _method(key: str) -> Ending | None:
    """Tensors of PEFT's further methods; the module may be empty (one bank for the whole model)."""
    words = key.split(".")
    for place, word in enumerate(words):
        if word.startswith(_METHODS):
            role = ".".join(part for part in words[place:] if part != "default").removesuffix(".weight")
            return Ending(".".join(words[:place]), role, "default" if "default" in words[place:] else None)
    return None


def _attribute(key: str, dots: list[int]) -> Ending | None:
    """`.weight` and `.bias` straight after a module: IA3 of LyCORIS, and whole tensors in PEFT files.

    The norms of queries and keys are trained whole and replaced (Flux' Control LoRAs; BFL calls their weight `scale`).
    """
    if len(dots) > 1 and key[dots[1] + 1 : dots[0]] in _REPLACED_NORMS and key[dots[0] + 1 :] in ("weight", "scale"):
        return Ending(key[: dots[0]], "set_weight")
    if dots and key[dots[0] + 1 :] in ("weight", "bias"):
        return Ending(key[: dots[0]], key[dots[0] + 1 :])
    return None


KOHYA_SPELLING: Mapping[str, str] = {
    **{role: role for role in _CANONICAL},
    **{role: f"{role}.weight" for role in ("lora_down", "lora_up", "lora_mid", "a1", "a2", "b1", "b2")},
    **{role: f"{role}.weight" for role in ("oft_R", "q_layer", "p_layer")},
    "lora_up_bias": "lora_up.bias", "oft_R_scaled": "oft_R.scaled_oft", "weight": "weight",
}  # fmt: skip
"""Canonical role -> ending, of Kohya, LyCORIS, OneTrainer."""

PEFT_SPELLING: Mapping[str, str] = {
    **{role: role for role in _CANONICAL if role != "alpha"},
    "lora_down": "lora_A.weight", "lora_up": "lora_B.weight", "lora_up_bias": "lora_B.bias",
    "dora_scale": "lora_magnitude_vector", "oft_R": "oft_R.weight",
}  # fmt: skip
"""Canonical role -> ending, of PEFT and Diffusers. There is no alpha: it goes into the config."""

# Tensors of PEFT's further methods that are a Linear's there.
_LINEARS = re.compile(r"(supertuning_lora_[AB]|gralora_[AB]_general|psoft_R|peanut_([AB]|(en|de)coders\.\d+))")


def peft_ending(role: str) -> str | None:
    """The ending of a role in PEFT's own files, those of its further methods included; None where it has none."""
    if role.startswith(_METHODS) or role == "set_bias":  # whole tensors are spelled by the file's method
        return f"{role}.weight" if _LINEARS.fullmatch(role) else role
    return PEFT_SPELLING.get(role)


COMFY_SPELLING: Mapping[str, str] = {
    **KOHYA_SPELLING, "lora_down": "lora_A.weight", "lora_up": "lora_B.weight", "lora_up_bias": "lora_B.bias",
}  # fmt: skip
"""Canonical role -> ending, of dotted files with alpha (OneTrainer's COMFY)."""


def unnamed(dialect: str, role: str, module: str) -> DialectError:
    """The error of a dialect that cannot name a tensor, and what can be done."""
    way = "only the layout it came in has one: keep the file, or convert with --algorithm lora"
    if role in KOHYA_SPELLING:
        way = "try kohya"
    return DialectError(f"{dialect}: has no name for the tensor '{role}' of {module}; {way}.")
