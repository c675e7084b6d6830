"""The strengths of a stack of adapters, and putting them in force."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from diffadapt.adapter import TargetKey
from diffadapt.errors import StackError
from diffadapt.inject.disabled import Disabled
from diffadapt.inject.following import FollowSteps, moment_at
from diffadapt.inject.live import LiveSlots
from diffadapt.inject.locate import Component
from diffadapt.inject.own_blocks import strength_for, vector_of
from diffadapt.inject.placement import Loaded
from diffadapt.inject.scaling import Strength, multipliers
from diffadapt.inject.schedule import Moment, Number
from diffadapt.inject.view import StackView
from diffadapt.report import MergeReport

Change = tuple[Strength, Sequence[Number]]
"""A strength as it was given, and what it is at every placement."""


class StackMix(StackView):
    """The side of `PipelineAdapters` that weighs."""

    _owner: Any
    _live: LiveSlots
    _steps: FollowSteps
    _muted: frozenset[str]

    @abstractmethod
    def components(self) -> dict[str, Component]:
        """The models adapters can act on, by component name."""

    @abstractmethod
    def _merge(self) -> MergeReport:
        """Bring the weights to the mix in force, and the live side to the rest of it."""

    def set(
        self, strengths: str | Sequence[str] | Mapping[str, Strength], weights: Sequence[Strength] | None = None
    ) -> None:
        """Activate exactly these adapters; all others get strength 0. Merged weights are merged anew.

        strengths: {"pixel": 0.7, "detail": {"unet": {"down": 0.2, "mid": 0.6}}}, or names with `weights` (default 1).
        A schedule (`diffadapt.schedule`) stands wherever a number does; an adapter's strength may be a preset or a
        vector of block weights, "INALL" (`block_strength`). Text encoders run before the first step: a schedule has its
        first strength there. Raises StackError for an unknown name, and for a schedule where the adapter is merged.
        """
        if not isinstance(strengths, Mapping):
            names = [strengths] if isinstance(strengths, str) else list(strengths)
            weights = [1.0] * len(names) if weights is None else list(weights)
            if len(weights) != len(names):
                raise StackError(f"{len(names)} adapters and {len(weights)} weights were given.")
            strengths = dict(zip(names, weights, strict=True))
        for name in strengths:
            self._get(name)
        parts = self.components()
        self._apply({n: self._resolve(a, strengths.get(n, 0.0), parts) for n, a in self._loaded.items()})

    def _resolve(self, loaded: Loaded, strength: Strength, parts: Mapping[str, Component]) -> Change:
        """A strength in the grammar of `scaling`, and what it is at every placement."""
        if (vector := vector_of(strength)) is not None:
            strength = strength_for(vector, {name: part.model for name, part in parts.items()})

        def modules() -> dict[str, list[str]]:  # only where a rule asks: it walks the whole model
            return {name: list(part.modules) for name, part in parts.items()}

        return strength, multipliers(strength, loaded.targets, tuple(parts), modules)

    def _apply(self, changes: Mapping[str, Change]) -> None:
        """Put strengths in force, live and merged; on failure put the old ones back."""
        before: dict[str, Change] = {n: (self._loaded[n].strength, self._loaded[n].numbers) for n in changes}
        try:
            self._bring(changes)
        except BaseException:
            self._bring(before)
            raise

    def _bring(self, changes: Mapping[str, Change]) -> None:
        for name, (strength, numbers) in changes.items():
            loaded = self._loaded[name]
            loaded.strength = strength
            for placement, number in zip(loaded.placements, numbers, strict=True):
                self._live.put(placement, number)
        self._follow_steps()
        self._settle_mix()

    def _follow_steps(self) -> None:
        """Hook the models that run at every step, where a strength follows the steps."""
        if any(p.schedule is not None for loaded in self._loaded.values() for p in loaded.placements):
            self._steps.watch({name for name in self.components() if "encoder" not in name})
        else:
            self._steps.watch(set())

    def _arrive(self, moment: Moment) -> None:
        """Bring the scheduled strengths to a moment of the denoising."""
        if self._live.arrive(moment, self._loaded.values()):
            self._refresh()

    def _settle_mix(self) -> None:
        """Bring the live side, and the weights where they are merged, to the mix in force."""
        if self._options is None:
            self._refresh()
        else:
            self._merge()

    def _refresh(self) -> None:
        self._live.refresh(self._loaded.values(), self._hidden)
        self._tables.refresh(self._loaded.values(), self._enabled, self._live.scale)
        self._refresh_prefixes(self._enabled)

    def _refresh_prefixes(self, in_force: bool) -> None:
        for name, loaded in self._loaded.items():
            loaded.prefixes.refresh(loaded.strength, self.components, in_force and name not in self._muted)

    def _hidden(self, name: str, key: TargetKey) -> bool:
        """Whether an adapter does nothing live at a module: it is out of force, or in the weight."""
        merged = key in self._merged and self._options is not None and self._options.takes(name, key.component)
        return merged or not self._enabled or name in self._muted

    @contextmanager
    def muted(self, *names: str) -> Iterator[Self]:
        """For a while, put these adapters out of force where they are live.

        What is merged stays, and what they change outside of layers.
        """
        for name in names:
            self._get(name)
        before, self._muted = self._muted, self._muted.union(names)
        try:
            self._refresh()
            yield self
        finally:
            self._muted = before
            self._refresh()

    @contextmanager
    def scaled(self, factor: float) -> Iterator[Self]:
        """For a while, multiply the strength of all that is live. What is merged is part of the weights and stays."""
        with self._live.scaled(factor, self._refresh):
            yield self

    @property
    def progress(self) -> float:
        """How far denoising has come, 0 (pure noise) to 1: what adapters that depend on the timestep (T-LoRA) follow.

        Read off the denoiser's timestep; set it by hand where the denoiser is compiled, to the share of the steps that
        are done: `pipe.adapters.progress = step / steps`. Schedules follow it too.
        """
        return self._live.progress

    @progress.setter
    def progress(self, value: float) -> None:
        self._live.set_progress(value)
        self._arrive(moment_at(self._owner, value))

    def enable(self) -> None:
        """Put the active adapters in force again."""
        self._switch(True)

    def disable(self) -> Disabled[Self]:
        """Put all adapters out of force, without forgetting their strengths. As a context manager: for a while."""
        was = self._enabled
        self._switch(False)
        return Disabled(self, self.enable if was else None)

    def _switch(self, on: bool) -> None:
        if on == self._enabled:
            return
        self._enabled = on
        try:
            self._settle_mix()
        except BaseException:
            self._enabled = not on
            self._refresh()
            raise
