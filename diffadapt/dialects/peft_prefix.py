"""PEFT's PREFIX_TUNING folders: one tensor, `prompt_embeddings`, whose shape only adapter_config.json explains.

It is (virtual tokens, num_layers * 2 * token_dim): of each token, per layer, keys and then values. Where queries share
keys, `num_attention_heads` and `token_dim` are those of the keys: PEFT writes them so into its config when it trains. A
prefix that was trained behind a projection is saved projected, so it has the same layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffadapt.adapter import Adapter, Prefix
from diffadapt.errors import DialectError

KEY = "prompt_embeddings"
COMPONENT = "text_encoder"
"""Where a prefix goes that says no more: PEFT's folders name no part of a pipeline."""

_NUMBERS = ("num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim")


def is_prefix(config: Mapping[str, Any] | None) -> bool:
    """Whether a PEFT config is of a prefix tuning."""
    return str((config or {}).get("peft_type") or "").rpartition(".")[2].upper() == "PREFIX_TUNING"


def take_prefix(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Prefix]:
    """The prefix of a folder, by component; empty for another method's.

    Raises DialectError for a config and a tensor that do not fit together, and for a prefix of two stacks.
    """
    if config is None or not is_prefix(config):
        return {}
    values = tensors.get(KEY)
    if values is None:
        raise DialectError(
            f"the config is of a PREFIX_TUNING, and there is no tensor {KEY!r}: keys {list(tensors)[:5]}."
        )
    numbers = [config.get(name) for name in _NUMBERS]
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        said = ", ".join(f"{name} {number!r}" for name, number in zip(_NUMBERS, numbers, strict=True))
        raise DialectError(f"the PREFIX_TUNING config says {said}; expected whole numbers, as PEFT saves them.")
    if (config.get("num_transformer_submodules") or 1) != 1:
        raise DialectError(
            "the prefix is for an encoder and a decoder (num_transformer_submodules 2), and no text encoder of a "
            "pipeline has both."
        )
    tokens, layers, heads, width = (int(number or 0) for number in numbers)
    if values.shape != (tokens, layers * 2 * width) or width % heads:
        raise DialectError(
            f"{KEY} is {tuple(values.shape)}, and by its config ({layers} layers, {heads} heads, token_dim {width}) it "
            f"should be {(tokens, layers * 2 * width)}. Is adapter_config.json that of this file?"
        )
    return {COMPONENT: Prefix(values, layers, heads)}


def prefix_file(adapter: Adapter, dialect: str, folder: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensor and the config of an adapter's prefix, as PEFT has them.

    Raises DialectError for anything else than one prefix in a PEFT folder.
    """
    others = [*adapter.targets, *adapter.foreign, *adapter.embeddings]
    if dialect != "peft" or not folder or others or len(adapter.prefixes) != 1:
        raise DialectError(
            f"{dialect}: a prefix is saved alone, in a PEFT folder: save(path without ending, dialect='peft'). This "
            f"adapter has {len(adapter.prefixes)} prefixes and {len(others)} other parts; give each an adapter of its "
            "own."
        )
    (prefix,) = adapter.prefixes.values()
    before = adapter.origin.config if adapter.origin is not None and is_prefix(adapter.origin.config) else None
    width = prefix.heads * prefix.head_dim
    return {KEY: prefix.values}, {
        "peft_type": "PREFIX_TUNING",
        "task_type": (before or {}).get("task_type") or "FEATURE_EXTRACTION",
        "base_model_name_or_path": (before or {}).get("base_model_name_or_path"),
        "inference_mode": True,
        "num_virtual_tokens": prefix.virtual_tokens,
        "num_layers": prefix.layers,
        "num_attention_heads": prefix.heads,
        "token_dim": width,
        "encoder_hidden_size": width,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
    }
