"""The config that a PEFT or Diffusers file needs beside its tensors, because its keys hold no rank and no alpha."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from diffadapt.errors import DialectError


class Numbers(NamedTuple):
    """What PEFT must be told of one module. alpha: None where the algorithm has none."""

    rank: int | None
    alpha: float | None
    kind: str
    stabilised: bool = False
    bias: bool = False
    dora: bool = False


_METHODS = {"lora": "LORA", "dora": "LORA", "loha": "LOHA", "lokr": "LOKR", "oft": "OFT", "boft": "BOFT", "ia3": "IA3"}


def peft_config(modules: Mapping[str, Numbers], dialect: str) -> dict[str, Any]:
    """The config of one component: the commonest rank and alpha, and patterns for the modules that differ.

    modules: by Diffusers path. Raises DialectError where one config cannot describe them all.
    """
    kinds = {_METHODS.get(numbers.kind) for numbers in modules.values()}
    (method,) = kinds if len(kinds) == 1 else (None,)
    if method is None:
        seen = ", ".join(sorted({numbers.kind for numbers in modules.values()}))
        raise DialectError(f"{dialect}: no PEFT config of ours describes {seen} in one file; write kohya, or keep it.")
    flags = {(numbers.stabilised, numbers.bias, numbers.dora) for numbers in modules.values()}
    if len(flags) > 1:
        raise DialectError(
            f"{dialect}: a PEFT config says once for all modules whether they have DoRA, a bias and rank-stabilised "
            "scaling, and here they differ; write kohya instead."
        )
    ranks, alphas = _commonest(modules, "rank"), _commonest(modules, "alpha")
    config: dict[str, Any] = {"peft_type": method, "target_modules": sorted(modules), "r": ranks}
    config["rank_pattern"] = _pattern(modules, "rank", ranks)
    if alphas is not None:
        config["lora_alpha" if method == "LORA" else "alpha"] = _whole(alphas)
        config["alpha_pattern"] = _pattern(modules, "alpha", alphas)
    if method == "LORA":
        stabilised, bias, dora = next(iter(flags))
        config |= {"use_rslora": stabilised, "lora_bias": bias, "use_dora": dora}
    return config


def header(configs: Mapping[str | None, Mapping[str, Any]]) -> str:
    """The text of `lora_adapter_metadata`, as Diffusers writes it: the component's name before each field."""
    fields = {
        name if component is None else f"{component}.{name}": value
        for component, config in configs.items()
        for name, value in config.items()
        if name != "peft_type"
    }
    return json.dumps(fields, indent=2, sort_keys=True)


def _commonest(modules: Mapping[str, Numbers], field: str) -> Any:
    counts = Counter(value for numbers in modules.values() if (value := getattr(numbers, field)) is not None)
    return counts.most_common(1)[0][0] if counts else None


def _pattern(modules: Mapping[str, Numbers], field: str, usual: Any) -> dict[str, Any]:
    """The modules whose number is not the usual one; a name that ends another is anchored, as PEFT matches suffixes."""
    tails = Counter(tail for name in modules for tail in _tails(name))
    return {
        name if tails[name] == 1 else f"^{name}": _whole(value)
        for name, numbers in modules.items()
        if (value := getattr(numbers, field)) is not None and value != usual
    }


def _tails(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[start:]) for start in range(len(words))]


def _whole(value: float) -> float | int:
    """PEFT's alphas are integers by habit."""
    return int(value) if float(value).is_integer() else value
