"""What a stack of adapters tells of itself: names, strengths, what is merged."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from diffadapt.adapter import Adapter, TargetKey
from diffadapt.errors import StackError
from diffadapt.inject.merge import MergedModule
from diffadapt.inject.merging import MergedWeights, MergeOptions
from diffadapt.inject.placement import Loaded
from diffadapt.inject.scaling import Strength
from diffadapt.inject.schedule import Number
from diffadapt.inject.tables import Tables
from diffadapt.report import LayerMerge, LoadReport


class StackView:
    """The side of `PipelineAdapters` that changes nothing."""

    _loaded: dict[str, Loaded]
    _merged: MergedWeights
    _options: MergeOptions | None
    _enabled: bool
    _tables: Tables

    @property
    def names(self) -> tuple[str, ...]:
        """All loaded adapters, in the order of loading."""
        return tuple(self._loaded)

    @property
    def active(self) -> dict[str, Strength]:
        """The adapters in force and their strengths: those that are not set to 0, unless all are disabled."""
        return {n: a.strength for n, a in self._loaded.items() if a.strength != 0.0} if self._enabled else {}

    @property
    def strengths(self) -> dict[str, Strength]:
        """Every adapter's strength, also of those that are inactive (0) or disabled."""
        return {n: a.strength for n, a in self._loaded.items()}

    def values(self, name: str) -> dict[TargetKey, float]:
        """An adapter's strength at every module it acts on; a scheduled one as it is now."""
        loaded = self._get(name)
        return dict(zip(loaded.keys, loaded.values, strict=True))

    def numbers(self, name: str) -> dict[TargetKey, Number]:
        """An adapter's strength at every module it acts on: a number or a schedule."""
        loaded = self._get(name)
        return dict(zip(loaded.keys, loaded.numbers, strict=True))

    def outside_of_layers(self, name: str) -> tuple[str, ...]:
        """The parameters that an adapter changes and that no layer of their own computes with."""
        return tuple(".".join(p.key) for p in self._get(name).placements if not p.called)

    @property
    def enabled(self) -> bool:
        return self._enabled

    @property
    def merged(self) -> bool:
        """Whether weights of the pipeline hold adapters now."""
        return bool(self._merged.modules)

    @property
    def merged_parts(self) -> dict[str, tuple[str, ...]]:
        """Component -> the adapters that its weights hold now."""
        found: dict[str, dict[str, None]] = {}
        for name in self._loaded:
            for key, value in self.values(name).items():
                own = self._options is not None and self._options.takes(name, key.component)
                if own and value and key in self._merged:
                    found.setdefault(key.component, {})[name] = None
        return {component: tuple(names) for component, names in found.items()}

    def base_weight(self, key: TargetKey) -> Tensor | None:
        """A module's weight as it was before its merge; None where it holds no adapter."""
        held = self._holding(key)
        return None if held is None else held.base_weight()

    def base_bias(self, key: TargetKey) -> Tensor | None:
        """A module's bias as it was before its merge; None where it holds no adapter."""
        held = self._holding(key)
        return None if held is None else held.base_bias()

    def merge_of(self, name: str, key: TargetKey) -> LayerMerge | None:
        """How a module's weight took an adapter's change; None where it holds none of it."""
        held = self._holding(key)
        here = key not in self._merged or (self._options is not None and self._options.takes(name, key.component))
        return held.result if held is not None and here else None

    def _holding(self, key: TargetKey) -> MergedModule | None:
        """The module, where its parameters hold adapters: merged ones, or (of tables) live ones."""
        return self._merged.modules.get(key) or self._tables.modules.get(key)

    def __len__(self) -> int:
        return len(self._loaded)

    def __contains__(self, name: object) -> bool:
        return name in self._loaded

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded)

    def __getitem__(self, name: str) -> Adapter:
        return self._get(name).adapter

    def __repr__(self) -> str:
        rows = [f"{n}: {a.strength} ({len(a.placements)} modules)" for n, a in self._loaded.items()]
        state = "merged" if self.merged else "live" if self._enabled else "disabled"
        return f"PipelineAdapters({state}; {'; '.join(rows) or 'empty'})"

    def report(self, name: str) -> LoadReport:
        """The report of an adapter's load."""
        return self._get(name).report

    def parameters(self, name: str | None = None) -> list[nn.Parameter]:
        """The trainable tensors of one adapter, or of all that were loaded with `trainable=True`."""
        chosen = [self._get(name)] if name else list(self._loaded.values())
        return [p for loaded in chosen for p in loaded.parameters]

    def _get(self, name: str) -> Loaded:
        if name not in self._loaded:
            raise StackError(f"No adapter is named {name!r}. Loaded: {', '.join(self._loaded) or 'none'}.")
        return self._loaded[name]
