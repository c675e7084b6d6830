"""What a file's header says of itself, read leniently: every value is text, and much of it is wrong or cut off."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from diffadapt.adapter import Metadata
from diffadapt.algorithms.base import Delta

# Header values may be megabytes (all captions of a run): only the beginning is looked at.
_LONGEST_SCAN = 1 << 20
_LONGEST_VALUE = 1 << 16
_MOST_WORDS = 64
_LONGEST_TAG = 200
# A key whose value is an object: in `ss_tag_frequency` these are the training folders, `<repeats>_<words>`.
_FOLDER = re.compile(r'"((?:[^"\\]|\\.){1,200})"\s*:\s*\{')
_REPEATS = re.compile(r"\d+_")
_BASE_MODELS = ("ss_base_model_version", "modelspec.architecture")
_TRIGGERS = ("modelspec.trigger_phrase", "modelspec.trigger_word", "trigger_word", "trigger_words", "ss_trigger_word")

_MUSUBI = tuple(
    f"networks.lora_{name}" for name in ("wan", "hunyuan", "qwen", "flux_kontext", "flux_2", "framepack", "zimage")
)
_TRAINERS: tuple[tuple[str, Callable[[Mapping[str, str]], bool]], ...] = (
    ("OneTrainer", lambda raw: "ot_branch" in raw or "ot_config" in raw),
    ("ai-toolkit", lambda raw: "ai-toolkit" in raw.get("software", "")[:_LONGEST_VALUE]),
    ("LyCORIS", lambda raw: raw.get("ss_network_module", "").startswith("lycoris")),
    ("musubi-tuner", lambda raw: raw.get("ss_network_module", "").startswith(_MUSUBI)),
    ("sd-scripts", lambda raw: "ss_network_module" in raw or "ss_network_dim" in raw),
    ("SimpleTuner", lambda raw: "simpletuner" in raw.get("modelspec.comment", "").lower()[:_LONGEST_VALUE]),
    ("diffusers", lambda raw: "lora_adapter_metadata" in raw),
)  # fmt: skip


def read_metadata(
    raw: Mapping[str, str], deltas: Iterable[Delta] = (), config: Mapping[str, Any] | None = None
) -> Metadata:
    """The typed metadata of a file: `raw` is its header, ranks and alphas are those of the deltas."""
    ranks: set[int] = set()
    alphas: set[float] = set()
    for delta in deltas:
        rank = delta.rank
        if rank is not None:
            ranks.add(rank)
        alpha = getattr(getattr(delta, "inner", delta), "alpha", None)
        if isinstance(alpha, float):
            alphas.add(alpha)
    return Metadata(
        trainer=trainer(raw, config),
        base_model=base_model(raw, config),
        trigger_words=trigger_words(raw),
        ranks=tuple(sorted(ranks)),
        alphas=tuple(sorted(alphas)),
        raw=raw,
    )


def trainer(raw: Mapping[str, str], config: Mapping[str, Any] | None = None) -> str | None:
    """Who wrote the file, or None."""
    named = next((name for name, says in _TRAINERS if says(raw)), None)
    if named is None and config is not None:
        return "peft" if "peft_type" in config else "LyCORIS" if "lycoris_config" in config else None
    return named


def base_model(raw: Mapping[str, str], config: Mapping[str, Any] | None = None) -> str | None:
    """What the file says it was trained on: an architecture, seldom the very model."""
    for key in _BASE_MODELS:
        value = raw.get(key, "")[:_LONGEST_VALUE].strip()
        if value and value.lower() not in ("none", "null", "unknown"):
            return value
    if raw.get("ss_v2", "").lower() == "true":
        return "sd_v2"
    named = (config or {}).get("base_model_name_or_path")
    return named if isinstance(named, str) and named else None


def trigger_words(raw: Mapping[str, str]) -> tuple[str, ...]:
    """The words that the file says call its subject, in order, without repeats."""
    words: dict[str, None] = {}
    for key in _TRIGGERS:
        for word in _words(raw.get(key, "")[:_LONGEST_VALUE]):
            words[word] = None
    for found in _FOLDER.finditer(raw.get("ss_tag_frequency", "")[:_LONGEST_SCAN]):
        folder = found.group(1)
        counted = _REPEATS.match(folder)
        if counted and len(folder) > counted.end():
            words[folder[counted.end() :]] = None
        if len(words) >= _MOST_WORDS:
            break
    return tuple(words)


def tag_frequencies(raw: Mapping[str, str], most: int) -> tuple[tuple[str, int], ...]:
    """The most frequent tags of the training captions, with their counts, summed over folders; () where they say none.

    `ss_tag_frequency` is JSON, `{folder: {tag: count}}`, in a string, and cut off in some files.
    """
    try:
        folders = json.loads(raw.get("ss_tag_frequency") or "{}")
    except (ValueError, RecursionError):
        return ()
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if type(count) is int and 0 < count < 1 << 53 and (name := tag.strip()[:_LONGEST_TAG]):
                counts[name] += count
    return tuple(counts.most_common(most))


def _words(text: str) -> list[str]:
    """The words of a value: JSON where it is that, else split at commas."""
    if text.startswith(("[", '"')):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        if isinstance(value, list):
            return [word for word in value if isinstance(word, str) and word]
        text = value if isinstance(value, str) else text
    return [word for part in text.split(",") if (word := part.strip()) and word.lower() != "none"]
