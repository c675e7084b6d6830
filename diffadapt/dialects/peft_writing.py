"""The config that a PEFT or Diffusers file needs beside its tensors, and the names of tensors that depend on it.

What a method needs is said by its algorithm (`Delta.peft_fields`); here the modules' fields are joined into one config.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from diffadapt.algorithms import Delta
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.peft_fields import Fields, Otherwise
from diffadapt.algorithms.total import Sum
from diffadapt.algorithms.trained_tokens import TrainedTokens
from diffadapt.errors import DialectError

_RANK = {"r": "rank_pattern"}
_RANK_AND_ALPHA = {**_RANK, "alpha": "alpha_pattern", "lora_alpha": "alpha_pattern"}
_FREQUENCIES = {"n_frequency": "n_frequency_pattern"}
_PATTERNS: Mapping[str, Mapping[str, str]] = {
    "LORA": _RANK_AND_ALPHA, "LOHA": _RANK_AND_ALPHA, "LOKR": _RANK_AND_ALPHA, "DELORA": _RANK, "HIRA": _RANK,
    "OSF": {"effective_rank": "rank_pattern"}, "FOURIERFT": _FREQUENCIES, "WAVEFT": _FREQUENCIES,
    "C3A": {"block_size": "block_size_pattern"},
}  # fmt: skip
"""By method: the fields that may differ between modules, and the pattern that says where."""
_BESIDE = frozenset({"LN_TUNING", "TRAINABLE_TOKENS"})
"""Methods whose tensors may stand beside those of another in one file."""
_CLIP_LEVEL = "text_model."


class Described(NamedTuple):
    """A module's algorithm, for messages, and what the config must say of it; None where no config can."""

    kind: str
    fields: Fields | None


# What Diffusers' and bare files hold: the keys tell the method, and of the config only these numbers are read.
_KEYED = {"lora": "LORA", "loha": "LOHA", "lokr": "LOKR", "oft": "OFT", "boft": "BOFT", "ia3": "IA3"}


def described(delta: Delta, module: str, dialect: str) -> Described:
    """What a dialect's config must say of a module. module: its whole name."""
    core = core_of(delta)
    if dialect == "peft":
        return Described(delta.algorithm if isinstance(delta, Sum) else core.algorithm, delta.peft_fields(module))
    method = _KEYED.get(core.algorithm)
    if method is None:
        return Described(core.algorithm, None)
    tensors = delta.tensors()
    fields: dict[str, Any] = {"peft_type": method, "r": Otherwise(None) if delta.rank is None else delta.rank}
    if (alpha := tensors.get("alpha")) is not None:
        fields["lora_alpha" if method == "LORA" else "alpha"] = float(alpha.item())
    if method == "LORA":
        stabilised = bool(getattr(core, "rank_stabilised", False))
        fields |= {
            "use_rslora": stabilised,
            "lora_bias": "lora_up_bias" in tensors,
            "use_dora": "dora_scale" in tensors,
        }
    return Described(core.algorithm, fields)


def core_of(delta: Delta) -> Delta:
    """The delta that a modifier (DoRA) modifies, or the delta itself."""
    inner = getattr(delta, "inner", delta)
    return inner if isinstance(inner, Delta) else delta


def peft_config(modules: Mapping[str, Described], dialect: str) -> dict[str, Any]:
    """The config of one component: what its modules say together.

    modules: by their whole names in the model. Of fields that have a pattern, the commonest value, and the modules that
    differ by pattern. Raises DialectError where one config cannot describe them all.
    """
    method = _method(modules, dialect)
    # Without its level the name is a suffix of CLIP's in every version of transformers, which is how PEFT matches.
    fields = {name.removeprefix(_CLIP_LEVEL): found.fields or {} for name, found in modules.items()}
    own = {name: said for name, said in fields.items() if said["peft_type"] == method}
    config: dict[str, Any] = {"peft_type": method, "target_modules": sorted(own)}
    patterns = _PATTERNS.get(method, {} if dialect == "peft" else _RANK_AND_ALPHA)
    for field in dict.fromkeys(field for said in own.values() for field in said if field != "peft_type"):
        values = {name: said[field] for name, said in own.items() if field in said}
        if field in patterns:
            config[field], config[patterns[field]] = _by_pattern(values)
        else:
            config[field] = _agreed(list(values.values()), field, dialect)
    return config | _beside(fields, method, dialect)


def endings(delta: Delta, method: str) -> Mapping[str, str]:
    """How PEFT spells the roles of a delta in a file of `method`, where it is not as everywhere."""
    if delta.algorithm == "adalora":
        return {"lora_down": "lora_A", "lora_up": "lora_B"}
    if isinstance(delta, Sum):
        return {"set_bias": "base_layer.bias"}
    if isinstance(delta, TrainedTokens) and method != "TRAINABLE_TOKENS":
        return {"trainable_tokens_delta": "token_adapter.trainable_tokens_delta"}
    if isinstance(delta, Full):
        prefix = "ln_tuning_layers." if method == "LN_TUNING" else ""
        return {"set_weight": f"{prefix}weight", "set_bias": f"{prefix}bias"}
    return {}


def method_of(types: Iterable[str]) -> str | None:
    """The `peft_type` of a file with modules of these: the one that the others can stand beside, if there is one."""
    found = set(types)
    main = found - _BESIDE or found
    return main.pop() if len(main) == 1 else None


def header(configs: Mapping[str | None, Mapping[str, Any]]) -> str:
    """The text of `lora_adapter_metadata`, as Diffusers writes it: the component's name before each field."""
    fields = {
        name if component is None else f"{component}.{name}": value
        for component, config in configs.items()
        for name, value in config.items()
        if name != "peft_type"
    }
    return json.dumps(fields, indent=2, sort_keys=True)


def _method(modules: Mapping[str, Described], dialect: str) -> str:
    known = [found.fields["peft_type"] for found in modules.values() if found.fields is not None]
    method = method_of(known) if len(known) == len(modules) else None
    if method is None:
        seen = ", ".join(sorted({found.kind for found in modules.values()}))
        raise DialectError(f"{dialect}: no PEFT config of ours describes {seen} in one file; write kohya, or keep it.")
    return method


def _beside(fields: Mapping[str, Fields], method: str, dialect: str) -> dict[str, Any]:
    """What stands beside the file's own method: modules that are replaced whole, and rows of embeddings."""
    config: dict[str, Any] = {}
    others = {name: said for name, said in fields.items() if said["peft_type"] != method}
    saved = sorted(name for name, said in others.items() if said["peft_type"] == "LN_TUNING")
    tokens = {name: list(said["token_indices"]) for name, said in others.items() if "token_indices" in said}
    if saved:
        config["modules_to_save"] = saved
    if tokens and method != "LORA":
        raise DialectError(f"{dialect}: PEFT trains tokens beside a LoRA only, not beside {method}; keep the file.")
    return config | ({"trainable_token_indices": tokens} if tokens else {})


def _agreed(values: list[Any], field: str, dialect: str) -> Any:
    """What the modules say together of one field."""
    said = [value for value in values if not isinstance(value, Otherwise)]
    if not said:
        return values[0].value
    first = said[0]
    if isinstance(first, Mapping):
        keys = dict.fromkeys(key for value in said for key in value)
        return {key: _agreed([value[key] for value in said if key in value], f"{field}.{key}", dialect) for key in keys}
    if isinstance(first, list) and all(isinstance(item, str) for value in said for item in value):
        return sorted({item.removeprefix(_CLIP_LEVEL) for value in said for item in value})
    if any(value != first for value in said):
        seen = ", ".join(sorted({repr(value) for value in said}))
        raise DialectError(
            f"{dialect}: a PEFT config says {field} once for all modules, and here it differs: {seen}; write kohya "
            "instead, or keep the file."
        )
    return list(first) if isinstance(first, tuple) else _whole(first)


def _by_pattern(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The commonest value, and the modules whose value is another.

    A name that ends another is anchored, as PEFT matches suffixes.
    """
    counts = Counter(value for value in values.values() if not isinstance(value, Otherwise))
    if not counts:
        return next(iter(values.values())).value, {}
    usual = counts.most_common(1)[0][0]
    tails = Counter(tail for name in values for tail in _tails(name))
    pattern = {
        name if tails[name] == 1 else f"^{name}": _whole(value)
        for name, value in values.items()
        if not isinstance(value, Otherwise) and value != usual
    }
    return _whole(usual), pattern


def _tails(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[start:]) for start in range(len(words))]


def _whole(value: Any) -> Any:
    """PEFT's alphas are integers by habit."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
