"""PEFT configs: `adapter_config.json` and Diffusers' `lora_adapter_metadata`, and the numbers of one module in them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from diffadapt.errors import DialectError

METADATA_KEY = "lora_adapter_metadata"
_COMPONENTS = ("unet", "transformer", "controlnet", "prior", "text_encoder_3", "text_encoder_2", "text_encoder")
_LONGEST_PATTERN = 1000
_PLAIN = re.compile(r"[\w\-]+(\.[\w\-]+)*")
# A repetition of a group: what catastrophic backtracking needs. No trainer writes one.
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_Counted = Mapping[str, Any]


class ModulePattern:
    """A `rank_pattern` or `alpha_pattern`: the first pattern that is a dotted suffix of the module's name decides."""

    def __init__(self, patterns: Mapping[str, Any], field: str) -> None:
        """Raises DialectError for what is no mapping, and for a regular expression that could run for ever."""
        if not isinstance(patterns, Mapping):
            raise DialectError(f"{field} of the PEFT config is a {type(patterns).__name__}, expected a mapping.")
        self._plain: dict[str, tuple[int, Any]] = {}
        self._regular: list[tuple[int, re.Pattern[str], Any]] = []
        self._whole: dict[str, tuple[int, Any]] = {}
        for place, (pattern, value) in enumerate(patterns.items()):
            # Plain names are the rule, and there are as many of them as modules: looked up, not searched.
            if _PLAIN.fullmatch(pattern[1:]) and pattern.startswith("^"):
                self._whole.setdefault(pattern[1:], (place, value))
            elif _PLAIN.fullmatch(pattern):
                self._plain.setdefault(pattern, (place, value))
            else:
                self._regular.append((place, _compiled(pattern, field), value))

    def of(self, module: str) -> Any | None:
        """The value for a module, or None."""
        found = [self._plain[suffix] for suffix in _suffixes(module) if suffix in self._plain]
        found += [self._whole[module]] if module in self._whole else []
        found += [(place, value) for place, pattern, value in self._regular if pattern.match(module)]
        return min(found, key=lambda hit: hit[0])[1] if found else None


class PeftConfig:
    """One PEFT config; `of(module)` is it with the patterns of the module applied."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)
        self._ranks = ModulePattern(config.get("rank_pattern") or {}, "rank_pattern")
        self._alphas = ModulePattern(config.get("alpha_pattern") or {}, "alpha_pattern")
        self._patterned = bool(config.get("rank_pattern") or config.get("alpha_pattern"))

    def of(self, module: str) -> Mapping[str, Any]:
        """The config of one module: its own `r`, and its own `lora_alpha` (or `alpha`, as LoHa and LoKr call it)."""
        if not self._patterned:
            return self.config
        own: dict[str, Any] = {}
        rank, alpha = self._ranks.of(module), self._alphas.of(module)
        if rank is not None:
            own["r"] = rank
        if alpha is not None:
            own["alpha" if "alpha" in self.config and "lora_alpha" not in self.config else "lora_alpha"] = alpha
        return {**self.config, **own} if own else self.config


def configs_of(metadata: Mapping[str, str], beside: Mapping[str, Any] | None) -> dict[str | None, PeftConfig]:
    """The configs of a file by component; under None the one that names no component.

    metadata: the file's header, which may hold `lora_adapter_metadata`. beside: adapter_config.json, or None.
    """
    found: dict[str | None, dict[str, Any]] = {}
    if beside and ("peft_type" in beside or "r" in beside or "lora_alpha" in beside):
        found[None] = dict(beside)
    for name, value in _header(metadata).items():
        component = next((c for c in _COMPONENTS if name.startswith(f"{c}.")), None)
        field = name if component is None else name[len(component) + 1 :]
        found.setdefault(component, {})[field] = value
    return {component: PeftConfig(config) for component, config in found.items()}


def _header(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """`lora_adapter_metadata`, decoded. Raises DialectError where it is not a JSON object: it decides the scale."""
    text = metadata.get(METADATA_KEY)
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DialectError(f"{METADATA_KEY} in the header is not JSON ({error}). Save the adapter again.") from error
    if not isinstance(value, dict):
        raise DialectError(f"{METADATA_KEY} in the header is a {type(value).__name__}, expected an object.")
    return value


def _compiled(pattern: str, field: str) -> re.Pattern[str]:
    if len(pattern) > _LONGEST_PATTERN or _REPEATED_GROUP.search(pattern):
        raise DialectError(
            f"{field} of the PEFT config holds the pattern {pattern[:80]!r}, which could take for ever to match. "
            "Expected module names or simple regular expressions: name the modules instead."
        )
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise DialectError(
            f"{field} of the PEFT config: {pattern[:80]!r} is no regular expression ({error})."
        ) from error


def _suffixes(module: str) -> list[str]:
    """The module's name and what follows each of its dots."""
    words = module.split(".")
    return [".".join(words[start:]) for start in range(len(words))]
