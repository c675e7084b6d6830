"""Strength per module: a number, or a mapping by component, block and module pattern.

    0.8
    {"unet": 0.7, "text_encoder": 0.3}
    {"unet": {"down": 0.2, "mid": 0.6, "up": {"block_0": 1.0, "block_1": [0.3, 0.4, 0.5]}}}
    {"unet": {"up.1.attn2": 0.5, "to_out.0": 0.0, "default": 1.0}}
    {"transformer": {"double": {"block_0": 0.2}, "single": 0.5, "default": 1.0}}

A key names consecutive, whole path segments: "to_q" never matches "add_to_q", "1" never matches "10". `down`, `mid` and
`up` are Diffusers' `down_blocks`, `mid_block`, `up_blocks`; `double` and `single` (or the original code's
`double_blocks`, `single_blocks`, `joint_blocks`) are a transformer's blocks of two streams and of one, whatever its
class calls them: `transformer_blocks` and `single_transformer_blocks` in most. `block_1` is the segment `1`.
Nested keys follow one another in the path, and a number follows at once: `up: {block_0}` is `up_blocks.0`, not
`up_blocks.1.attentions.0`. A list numbers blocks, or under one block its attentions. The rule with the most segments
wins, the later one among equals. What no rule names has strength 1 (as in Diffusers), or that of the key "default".

A segment may be a pattern: "*" is any one segment, "to_*" or "attn[12]" (as in `fnmatch`) those that fit, "**" any
number of segments: "*.attn2.to_k", "down.**.to_*". "^" before the first segment means that the path begins with it:
"^layers.0" is not `perceiver.layers.0`. Numbers may be negative. A text encoder that the pipeline lacks may
be named; anything else that names nothing in the pipeline is an error. A schedule may stand in place of any number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

from diffadapt.errors import StackError
from diffadapt.inject.schedule import Number, Schedule

Strength: TypeAlias = "float | int | Schedule | Mapping[str, Strength] | Sequence[Strength]"

_ROOT, _OR = "^", "|"
_DOUBLE = "^transformer_blocks|joint_transformer_blocks|double_stream_blocks|double_blocks"
_SINGLE = "^single_transformer_blocks|single_stream_blocks|single_blocks"
_ALIASES = {
    "down": "down_blocks", "mid": "mid_block", "up": "up_blocks",
    # At the root only: a UNet's attentions have `transformer_blocks` within.
    "double": _DOUBLE, "double_blocks": _DOUBLE, "joint_blocks": _DOUBLE, "single": _SINGLE, "single_blocks": _SINGLE,
}  # fmt: skip
_NUMBERED = re.compile(r"block_(\d+)")
_PATTERN = re.compile(r"[*?\[]")
_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
DEFAULT = "default"


@dataclass(frozen=True)
class Rule:
    """groups: runs of whole path segments that follow one another (gaps allowed between runs, not inside).

    A segment may be one of several, "a|b", and must begin the path where it begins with "^".
    """

    component: str | None
    groups: tuple[tuple[str, ...], ...]
    strength: Number
    text: str

    @property
    def weight(self) -> int:
        return sum(map(len, self.groups)) + (self.component is not None)

    def matches(self, component: str, segments: Sequence[str]) -> bool:
        if self.component is not None and component != self.component:
            return False
        at = 0
        for group in self.groups:
            size = len(group)
            last = len(segments) - size if not group[0].startswith(_ROOT) else min(0, len(segments) - size)
            found = next((i for i in range(at, last + 1) if _same(group, segments[i : i + size])), None)
            if found is None:
                return False
            at = found + size
        return True


def _same(group: Sequence[str], segments: Sequence[str]) -> bool:
    return all(_fits(g.removeprefix(_ROOT), s) for g, s in zip(group, segments, strict=True))


def _fits(wanted: str, segment: str) -> bool:
    return (
        wanted in ("*", segment)
        or (_OR in wanted and segment in wanted.split(_OR))
        or (_PATTERN.search(wanted) is not None and fnmatchcase(segment, wanted))
    )


def _segments(key: str) -> tuple[str, ...]:
    parts = []
    for part in key.split("."):
        numbered = _NUMBERED.fullmatch(part)
        parts.append(numbered.group(1) if numbered else part)
    bare = parts[0].removeprefix(_ROOT)
    found = _ALIASES.get(bare, bare)
    parts[0] = _ROOT + found.removeprefix(_ROOT) if bare != parts[0] else found
    return tuple(parts)


def _followed(groups: tuple[tuple[str, ...], ...], segments: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The groups with another, which "**" cuts: a number belongs to the segment before it."""
    if "**" in segments:
        at = segments.index("**")
        for part in (segments[:at], segments[at + 1 :]):
            groups = _followed(groups, part) if part else groups
        return groups
    if groups and segments[0].isdecimal():
        return (*groups[:-1], groups[-1] + segments)
    return (*groups, segments)


def rules(strength: Strength, components: Sequence[str]) -> list[Rule]:
    """The rules that a strength means. Raises StackError for values that are neither numbers, mappings nor lists."""
    found: list[Rule] = []

    def walk(value: Strength, component: str | None, groups: tuple[tuple[str, ...], ...], text: str) -> None:
        if isinstance(value, Schedule):
            found.append(Rule(component, groups, value, text))
            return
        if isinstance(value, bool) or not isinstance(value, (int, float, Mapping, list, tuple)):
            raise StackError(f"The strength of {text or 'the adapter'} is {value!r}; expected a number or a mapping.")
        if isinstance(value, (int, float)):
            if value != value or value in (float("inf"), float("-inf")):
                raise StackError(f"The strength of {text or 'the adapter'} is {value}; expected a finite number.")
            found.append(Rule(component, groups, float(value), text))
            return
        items = value.items() if isinstance(value, Mapping) else ((str(i), v) for i, v in enumerate(value))
        for key, inner in items:
            where = f"{text}.{key}" if text else str(key)
            if key == DEFAULT:
                walk(inner, component, groups, where)
            elif component is None and not groups and (key in components or key in _ENCODERS):
                walk(inner, key, groups, where)
            elif not isinstance(value, Mapping) and groups and groups[-1][-1].isdecimal():
                # A list under a block numbers its attentions, as in Diffusers: up.block_0: [a, b, c].
                walk(inner, component, (*groups, ("attentions", key)), where)
            else:
                walk(inner, component, _followed(groups, _segments(str(key))), where)

    walk(strength, None, (), "")
    return sorted(found, key=lambda rule: rule.weight)


class Targets:
    """The modules of one adapter, and which of them a rule names: worked out once, whatever number it gives them."""

    def __init__(self, keys: Sequence[tuple[str, str]]) -> None:
        """keys: (component, module path) of each module."""
        self._split = [(component, path.split(".")) for component, path in keys]
        self._hits: dict[tuple[str | None, tuple[tuple[str, ...], ...]], list[int]] = {}

    def __len__(self) -> int:
        return len(self._split)

    def named_by(self, rule: Rule) -> list[int]:
        """The places, in the order of the keys, of the modules that the rule names."""
        key = (rule.component, rule.groups)
        if key not in self._hits:
            self._hits[key] = [i for i, (part, segments) in enumerate(self._split) if rule.matches(part, segments)]
        return self._hits[key]


def multipliers(
    strength: Strength,
    targets: Targets,
    components: Sequence[str],
    known: Callable[[], Mapping[str, Sequence[str]]] | None,
) -> list[Number]:
    """The strength of each target.

    known: component -> the module paths it has, asked only to tell a misspelt block from one this adapter leaves alone;
        None where there is no model to tell.
    Raises StackError for a rule that names nothing in any component.
    """
    if isinstance(strength, (int, float)) and not isinstance(strength, bool) and strength == strength:
        return [float(strength)] * len(targets)
    values: list[Number] = [1.0] * len(targets)
    for rule in rules(strength, components):
        hits = targets.named_by(rule)
        for i in hits:
            values[i] = rule.strength
        if known is not None and not hits and rule.groups and not _exists(rule, known()):
            raise StackError(
                f"'{rule.text}' names no module of the pipeline. Components: {', '.join(components)}; blocks are named "
                "like 'down', 'mid', 'up.1', 'double.3', 'single', 'attn2.to_k' (whole path segments)."
            )
    return values


def _exists(rule: Rule, known: Mapping[str, Sequence[str]]) -> bool:
    return any(rule.matches(component, path.split(".")) for component, paths in known.items() for path in paths)
