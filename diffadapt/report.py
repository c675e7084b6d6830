"""What a load and a merge did, to print or to read by machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from diffadapt.adapter import TargetKey


@dataclass(frozen=True)
class LoadReport:
    """The fate of every key of a file.

    applied: target -> algorithm. ignored: key -> reason. unmatched: keys that found no module here.
    """

    name: str
    source: str
    dialect: str
    evidence: str
    family: str | None
    applied: Mapping[TargetKey, str]
    total: int
    ignored: Mapping[str, str] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    unmatched_targets: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    trainer: str | None = None
    base_model: str | None = None
    ranks: tuple[int, ...] = ()
    alphas: tuple[float, ...] = ()
    trigger_words: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()

    @property
    def algorithms(self) -> dict[str, int]:
        return dict(Counter(self.applied.values()))

    @property
    def components(self) -> dict[str, int]:
        return dict(Counter(key.component for key in self.applied))

    @property
    def complete(self) -> bool:
        """Every module of the file was applied and no key is left over."""
        return len(self.applied) == self.total and not self.unmatched

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        plain = asdict(self)
        plain["applied"] = [[*key, algorithm] for key, algorithm in self.applied.items()]
        return plain | {"algorithms": self.algorithms, "components": self.components, "complete": self.complete}

    def __str__(self) -> str:
        by = ", ".join(f"{n} {a}" for a, n in sorted(self.algorithms.items()))
        where = ", ".join(f"{c} {n}" for c, n in self.components.items())
        kinds = f" ({by}; {where})" if by else " modules"
        lines = [f"{self.name}: applied {len(self.applied)} of {self.total}{kinds}"]
        about = [f"{self.dialect} file for {self.family or 'an unknown family'}"]
        about += [f"trained with {self.trainer}"] if self.trainer else []
        about += [f"rank {_span(self.ranks)}"] if self.ranks else []
        about += [f"alpha {_span(self.alphas)}"] if self.alphas else []
        lines.append("  " + ", ".join(about))
        if self.trigger_words:
            lines.append("  trigger words: " + ", ".join(self.trigger_words[:12]))
        if self.embeddings:
            lines.append("  embeddings: " + ", ".join(self.embeddings))
        if self.prefixes:
            lines.append("  prefixes: " + ", ".join(self.prefixes))
        if self.unmatched:
            lines.append(f"  unmatched: {len(self.unmatched)} keys, e.g. {', '.join(self.unmatched[:3])}")
        for reason, count in Counter(self.ignored.values()).items():
            lines.append(f"  ignored: {count} keys: {reason}")
        return "\n".join(lines)


def _span(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{min(values):g} to {max(values):g}"


def _memory(size: int) -> str:
    return f"{size / 2**20:.0f} MiB" if size >= 10 * 2**20 else f"{size / 2**10:.0f} KiB"


@dataclass(frozen=True)
class LayerMerge:
    """How one layer took its merge.

    survived: the projection of the realised change of the weight on the intended one (1 is all of it); loss: the
    relative size of the difference between them. Both on a sample of rows, 1 and 0 for float32 weights.
    """

    survived: float
    loss: float
    live: bool = False


@dataclass(frozen=True)
class MergeReport:
    """What a merge did: target -> how the layer took it. live: layers left as side branches, with the reason."""

    layers: Mapping[TargetKey, LayerMerge]
    live: Mapping[TargetKey, str] = field(default_factory=dict)
    unchanged: int = 0
    remembered: Mapping[str, int] = field(default_factory=dict)
    """Bytes kept for the way back, by kind ("copy", "code", "file")."""

    @property
    def survived(self) -> float:
        """The weakest layer's share of the intended change."""
        return min((layer.survived for layer in self.layers.values()), default=1.0)

    def to_dict(self) -> dict[str, Any]:
        return {
            "layers": [[*key, asdict(layer)] for key, layer in self.layers.items()],
            "live": [[*key, reason] for key, reason in self.live.items()],
            "unchanged": self.unchanged,
            "remembered": dict(self.remembered),
        }

    def __str__(self) -> str:
        kept = ", ".join(f"{_memory(size)} as {kind}" for kind, size in self.remembered.items() if size)
        lines = [f"merged {len(self.layers)} layers ({self.unchanged} unchanged); remembers {kept or 'nothing'}"]
        weak = sorted((layer.survived, key) for key, layer in self.layers.items() if layer.survived < 0.9)
        if weak:
            worst = ", ".join(f"{key.module} {share:.0%}" for share, key in weak[:3])
            lines.append(f"  {len(weak)} layers keep less than 90% of the change: {worst}")
        lost = sorted(((layer.loss, key) for key, layer in self.layers.items() if layer.loss >= 1), reverse=True)
        if lost:
            lines.append(
                f"  {len(lost)} layers are further from the wanted weight than without the merge (rounding), e.g. "
                f'{lost[0][1].module}; mode="auto" leaves such layers live'
            )
        if self.live:
            lines.append(f"  {len(self.live)} layers stay live, e.g. {next(iter(self.live.items()))}")
        return "\n".join(lines)
