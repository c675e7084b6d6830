"""Which modules are to be trained: a word, patterns in the grammar of strengths, or these by component."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

from diffadapt.adapter import TargetKey
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import StackError, TargetError
from diffadapt.inject.locate import Component, layers
from diffadapt.inject.progress import DENOISERS
from diffadapt.inject.scaling import rules

Targets: TypeAlias = "str | Sequence[str] | Mapping[str, str | Sequence[str]]"

_PROJECTIONS = (
    "to_q", "to_k", "to_v", "to_out", "q_proj", "k_proj", "v_proj", "out_proj", "o_proj", "to_qkv", "to_kv", "qkv",
    "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "query", "key", "value", "proj_attn", "q", "k", "v", "o",
)  # fmt: skip

_FEED_FORWARD = ("ff", "mlp", "feed_forward", "fc", "DenseReluDense")


def _in_attention(path: str, layer: Layer) -> bool:
    """A projection of an attention: `attn1.to_q`, `self_attn.q_proj`, `attn.to_out.0`, T5's `SelfAttention.q`."""
    *above, leaf = path.split(".")
    if leaf.isdecimal() and above:
        *above, leaf = above
    return layer.kind == "linear" and leaf in _PROJECTIONS and any("att" in word.lower() for word in above)


def _is_feed_forward(path: str, layer: Layer) -> bool:
    words = path.split(".")
    return layer.kind == "linear" and any(word.startswith(_FEED_FORWARD) for word in words)


WORDS: Mapping[str, Callable[[str, Layer], bool]] = {
    "attn": _in_attention,
    "ff": _is_feed_forward,
    "linear": lambda path, layer: layer.kind == "linear",
    "conv": lambda path, layer: layer.kind == "conv",
    "all": lambda path, layer: layer.kind in ("linear", "conv"),
    "norm": lambda path, layer: layer.kind.endswith("_norm"),
    "embedding": lambda path, layer: layer.kind == "embedding" and "token" in path,
}
"""What a word names: (path, layer) -> whether the layer is meant."""

Chosen = dict[TargetKey, Layer]


def choose(targets: Targets, exclude: Targets, parts: Mapping[str, Component], kinds: Collection[str]) -> Chosen:
    """The modules that are named, in the model's order.

    targets: a word of `WORDS`, a pattern, several of both, or a mapping component -> these. Without a component the
    denoiser is meant. exclude: the same, taken away again. kinds: the kinds of layers that patterns may find.
    Raises TargetError for a component that is not there, and for a word or pattern that names nothing.
    """
    chosen: Chosen = {}
    for component, wanted in _by_component(targets, parts).items():
        found = [(path, layer) for path, _, layer in layers(parts[component]) if layer.kind in kinds]
        kept = _named(wanted, found, component)
        chosen |= {TargetKey(component, path): layer for path, layer in found if path in kept}
    for component, unwanted in (_by_component(exclude, parts) if exclude else {}).items():
        found = [(path, layer) for path, _, layer in layers(parts[component])]
        dropped = _named(unwanted, found, component)
        chosen = {
            key: layer for key, layer in chosen.items() if key.component != component or key.module not in dropped
        }
    if not chosen:
        raise TargetError(f"The targets {targets!r} without {exclude!r} are no module at all.")
    return chosen


def _by_component(targets: Targets, parts: Mapping[str, Component]) -> dict[str, list[str]]:
    if not isinstance(targets, Mapping):
        denoiser = next((name for name in (*DENOISERS, *parts) if name in parts), None)
        if denoiser is None:
            raise TargetError("There is no model to train here.")
        targets = {denoiser: targets}
    for component in targets:
        if component not in parts:
            raise TargetError(f"There is no component {component!r} to train; there are {', '.join(parts)}.")
    return {name: [words] if isinstance(words, str) else list(words) for name, words in targets.items()}


def _named(wanted: Sequence[str], found: Sequence[tuple[str, Layer]], component: str) -> set[str]:
    """The paths that words and patterns name. Raises TargetError for one that names none."""
    paths: set[str] = set()
    for text in wanted:
        fits = WORDS.get(text)
        if fits is not None:
            here = {path for path, layer in found if fits(path, layer)}
        else:
            try:
                (rule,) = rules({text: 1.0}, ())
            except StackError as error:
                raise TargetError(f"{text!r} is no pattern of modules: {error}") from error
            here = {path for path, layer in found if rule.matches(component, path.split("."))}
        if not here:
            near = ", ".join(path for path, _ in found[:3])
            raise TargetError(
                f"{text!r} names no module of the {component} to train. Words: {', '.join(WORDS)}; patterns name whole "
                f"path segments, as 'attn2.to_k', 'up.**.to_*'. Modules are called {near}, ..."
            )
        paths |= here
    return paths
