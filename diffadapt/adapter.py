"""The common adapter representation: which delta acts on which Diffusers module, and what the file says of itself."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from diffadapt.algorithms.base import Delta

if TYPE_CHECKING:
    from diffadapt.explain import Explanation
    from diffadapt.families.choose import Module


class TargetKey(NamedTuple):
    """A module of a pipeline. Component: "unet", "text_encoder", "text_encoder_2", "transformer", "controlnet", ...;
    module: its Diffusers path. Paths of CLIP text encoders always have their `text_model.` level here."""

    component: str
    module: str


@dataclass(frozen=True)
class Embedding:
    """Textual-inversion vectors of one placeholder. vectors: one (tokens, dim) tensor per text encoder component."""

    token: str
    vectors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Prefix:
    """Trained keys and values that stand before those of every attention of a language model.

    values: (virtual tokens, layers * 2 * heads * head dim), PEFT's `prompt_embeddings`: of each token, per layer, the
    keys and then the values, head by head. layers, heads: of the model; its key-value heads where queries share them.
    """

    values: Tensor
    layers: int
    heads: int

    @property
    def virtual_tokens(self) -> int:
        return self.values.shape[0]

    @property
    def head_dim(self) -> int:
        return self.values.shape[1] // (self.layers * 2 * self.heads)


@dataclass(frozen=True)
class Metadata:
    """What a file says of itself. Everything is a hint, except where formats say that it changes the maths.

    ranks, alphas: the distinct values in the file's tensors, ascending.
    """

    trainer: str | None = None
    base_model: str | None = None
    trigger_words: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    alphas: tuple[float, ...] = ()
    raw: Mapping[str, str] = field(default_factory=dict)


class Foreign(NamedTuple):
    """A module that no family table knows, as the file names it. component: None where the file does not say."""

    component: str | None
    module: str
    flat: bool
    """Dots are written as underscores."""


@dataclass(frozen=True, eq=False)
class Origin:
    """What an adapter was read from, for explanations: types and shapes only, no data.

    tensors: the file's keys. modules: what the family was chosen by. config: the JSON beside the file, or None.
    alpha: what every alpha was overridden with, or None. into: the components it was moved to.
    """

    tensors: Mapping[str, Tensor]
    modules: tuple[Module, ...]
    config: Mapping[str, Any] | None = None
    alpha: float | None = None
    into: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter, normalised: frozen, cheap to make, its tensors mapped until used.

    targets: (component, Diffusers module path) -> delta.
    keys: the same keys -> the file's keys that made the delta, for reports and messages.
    prefixes: component -> the prefix of that language model.
    foreign: deltas whose module only the pipeline itself can name (matched by flattened name when loaded).
    unmatched: keys that no delta explains. ignored: key -> why it has no effect here (a position buffer, ...).
    candidates: the families the file may be for, best first; `family` is the first.
    """

    name: str
    dialect: str
    targets: Mapping[TargetKey, Delta]
    keys: Mapping[TargetKey, tuple[str, ...]] = field(default_factory=dict)
    foreign: Mapping[Foreign, Delta] = field(default_factory=dict)
    foreign_keys: Mapping[Foreign, tuple[str, ...]] = field(default_factory=dict)
    embeddings: Mapping[str, Embedding] = field(default_factory=dict)
    prefixes: Mapping[str, Prefix] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)
    candidates: tuple[str, ...] = ()
    metadata: Metadata = field(default_factory=Metadata)
    path: Path | None = None
    evidence: str = ""
    """Which keys decided the dialect, in words."""
    origin: Origin | None = field(default=None, repr=False)
    losses: Mapping[TargetKey, float] = field(default_factory=dict, repr=False)
    """Of a combination: the targets whose rank costs something -> the relative Frobenius error of the change."""

    @property
    def family(self) -> str | None:
        return self.candidates[0] if self.candidates else None

    @property
    def source(self) -> str:
        """What messages call it: the file's name, else the adapter's."""
        return self.path.name if self.path is not None else self.name

    @property
    def algorithms(self) -> Mapping[str, int]:
        """How many targets each algorithm has."""
        return Counter(delta.algorithm for delta in (*self.targets.values(), *self.foreign.values()))

    @property
    def components(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key.component for key in self.targets))

    def __deepcopy__(self, memo: dict[int, Any]) -> Adapter:
        return self  # frozen: copies of a pipeline share it

    def explain(self, *, norms: bool = False, hashes: bool = False) -> Explanation:
        """What the adapter is and why it was read so: evidence, families, ranks by block, problems. Print it.

        norms: measure every delta that needs no base weight. hashes: of the adapter's file, where there is one.
        """
        from diffadapt.explain import explain

        return explain(self, norms=norms, hashes=hashes)

    def moved(self, into: Mapping[str, str]) -> Adapter:
        """The same adapter for other components: {"transformer": "transformer_2"} for Wan's low-noise expert, whose
        files have the keys of the high-noise one's."""

        def key(target: TargetKey) -> TargetKey:
            return TargetKey(into.get(target.component, target.component), target.module)

        def foreign(name: Foreign) -> Foreign:
            return name._replace(component=into.get(name.component or "", name.component))

        before = self.origin.into if self.origin is not None else {}
        moves = {name: into.get(now, now) for name, now in before.items()}
        moves |= {name: now for name, now in into.items() if name not in before.values() and name not in before}
        return replace(
            self,
            targets={key(target): delta for target, delta in self.targets.items()},
            keys={key(target): names for target, names in self.keys.items()},
            foreign={foreign(name): delta for name, delta in self.foreign.items()},
            foreign_keys={foreign(name): names for name, names in self.foreign_keys.items()},
            prefixes={into.get(component, component): prefix for component, prefix in self.prefixes.items()},
            origin=None if self.origin is None else replace(self.origin, into=moves),
        )

    def save(self, path: str | os.PathLike[str], *, dialect: str | None = None) -> Path:
        """Write the adapter as a `.safetensors` file in a dialect (default: the one it came in).

        Raises DialectError where the dialect has no name for a target or cannot hold an algorithm.
        """
        from diffadapt.writing import write_adapter

        return write_adapter(self, Path(path), dialect or self.dialect)
