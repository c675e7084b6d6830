"""The stack of adapters on a pipeline: names, strengths, live or merged."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diffadapt.adapter import Adapter, TargetKey
from diffadapt.errors import StackError
from diffadapt.inject.disabled import Disabled
from diffadapt.inject.live import LiveSlots
from diffadapt.inject.locate import Component, components
from diffadapt.inject.merge import Remember
from diffadapt.inject.merging import MergedWeights, MergeOptions, Mode, frozen
from diffadapt.inject.placement import LINEAR, Loaded, mix_of, place
from diffadapt.inject.scaling import Strength, multipliers
from diffadapt.inject.tables import Tables
from diffadapt.inject.view import StackView
from diffadapt.inject.widen import WidenedInputs
from diffadapt.report import LoadReport, MergeReport


class PipelineAdapters(StackView):
    """All adapters of a pipeline or model. Made by `diffadapt.enable`; found as `pipe.adapters`.

    Everything here either finishes or leaves the pipeline as it was.
    """

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._loaded: dict[str, Loaded] = {}
        self._merged = MergedWeights()
        self._options: MergeOptions | None = None
        self._enabled = True
        self._live = LiveSlots(owner, self._merged)
        self._widened = WidenedInputs()
        self._tables = Tables()

    def components(self) -> dict[str, Component]:
        """The models adapters can act on, by component name."""
        return components(self._owner)

    # -- loading and removing ----------------------------------------------------------------------------------

    def add(
        self,
        adapter: Adapter,
        name: str,
        strength: Strength = 1.0,
        *,
        rule: str = LINEAR,
        strict: bool = False,
        trainable: bool = False,
    ) -> LoadReport:
        """Put an adapter on the stack. Used by `load_adapter`, which reads it first and tells of the arguments.

        Raises StackError for a name in use, TargetError where the adapter does not fit; the pipeline is then as before.
        """
        if name in self._loaded:
            raise StackError(f"An adapter named {name!r} is loaded already; remove it first or choose another name.")
        parts = self.components()
        loaded = place(
            adapter, name, parts, merged=self._merged, rule=rule, strict=strict, trainable=trainable, owner=self._owner
        )
        values = self._resolve(loaded, strength, parts)
        if any(key in self._merged for key in self._widened.wanted(loaded)):
            raise StackError(f"{adapter.source} widens an input layer whose weight holds adapters; unmerge them first.")
        others = list(self._loaded.values())
        self._loaded[name] = loaded
        self._live.add(loaded)
        try:
            loaded.embeddings.install(self._owner)
            self._live.relayer(self._widened.widen(loaded, others, parts))
            self._apply({name: (strength, values)})
        except BaseException:
            self._drop(name)
            raise
        self._live.follow(parts, self._loaded.values())
        return loaded.report

    def remove(self, name: str) -> None:
        """Take an adapter off the pipeline: also out of merged weights, and its embeddings out of the tokenizers."""
        loaded = self._get(name)
        if self._options is not None:
            self._apply({name: (0.0, [0.0] * len(loaded.placements))})
        self._drop(name)

    def _drop(self, name: str) -> None:
        loaded = self._loaded.pop(name)
        self._live.drop(loaded)
        self._tables.refresh(self._loaded.values(), self._enabled, self._live.scale)
        loaded.embeddings.uninstall(self._owner)
        parts = self.components()
        self._live.relayer(self._widened.narrow(self._loaded.values(), parts, self._merged.modules))
        self._live.follow(parts, self._loaded.values())
        if not self._loaded:
            self._merged.release()

    def clear(self) -> None:
        """Remove every adapter."""
        self.unmerge()
        for name in self.names:
            self.remove(name)

    def rename(self, old: str, new: str) -> None:
        """Give an adapter another name."""
        self._get(old)
        if new in self._loaded:
            raise StackError(f"An adapter named {new!r} is loaded already.")
        self._loaded = {new if n == old else n: loaded for n, loaded in self._loaded.items()}
        self._loaded[new].rename(new)

    def save(self, name: str, path: str | os.PathLike[str], *, dialect: str | None = None) -> Path:
        """Write one adapter (a trained one with what it has learnt) to a `.safetensors` file."""
        return self._get(name).current_adapter().save(path, dialect=dialect)

    def move(self, name: str, device: torch.device | str | int) -> None:
        """Keep an adapter's tensors on a device. Wherever they are, they are copied to where their modules compute."""
        for placement in self._get(name).placements:
            placement.move(device)
            self._live.invalidate(placement.key)

    # -- strengths ---------------------------------------------------------------------------------------------

    def set(
        self, strengths: str | Sequence[str] | Mapping[str, Strength], weights: Sequence[Strength] | None = None
    ) -> None:
        """Activate exactly these adapters; all others get strength 0. Merged weights are merged anew.

        strengths: {"pixel": 0.7, "detail": {"unet": {"down": 0.2, "mid": 0.6}}}, or names with `weights` (default 1).
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
        wanted = {n: strengths.get(n, 0.0) for n in self._loaded}
        self._apply({n: (s, self._resolve(self._loaded[n], s, parts)) for n, s in wanted.items()})

    def _resolve(self, loaded: Loaded, strength: Strength, parts: Mapping[str, Component]) -> list[float]:
        return multipliers(
            strength, loaded.targets, tuple(parts), lambda: {n: list(c.modules) for n, c in parts.items()}
        )

    def _apply(self, changes: Mapping[str, tuple[Strength, Sequence[float]]]) -> None:
        """Put strengths in force, live and merged; on failure put the old ones back."""
        before: dict[str, tuple[Strength, Sequence[float]]] = {
            n: (self._loaded[n].strength, self._loaded[n].values) for n in changes
        }
        try:
            self._bring(changes)
        except BaseException:
            self._bring(before)
            raise

    def _bring(self, changes: Mapping[str, tuple[Strength, Sequence[float]]]) -> None:
        for name, (strength, values) in changes.items():
            loaded = self._loaded[name]
            loaded.strength = strength
            for placement, value in zip(loaded.placements, values, strict=True):
                self._live.put(placement, value)
        self._settle_mix()

    def _settle_mix(self) -> None:
        """Bring the live side, and the weights where they are merged, to the mix in force."""
        if self._options is None:
            self._refresh()
        else:
            self._merge()

    def _refresh(self) -> None:
        self._live.refresh(self._loaded.values(), self._hidden)
        self._tables.refresh(self._loaded.values(), self._enabled, self._live.scale)

    def _hidden(self, name: str, key: TargetKey) -> bool:
        """Whether an adapter does nothing live at a module: all are disabled, or this one is in the weight."""
        merged = key in self._merged and self._options is not None and self._options.takes(name, key.component)
        return merged or not self._enabled

    @contextmanager
    def scaled(self, factor: float) -> Iterator[PipelineAdapters]:
        """For a while, multiply the strength of all that is live. What is merged is part of the weights and stays."""
        with self._live.scaled(factor, self._refresh):
            yield self

    @property
    def progress(self) -> float:
        """How far denoising has come, 0 (pure noise) to 1: what adapters that depend on the timestep (T-LoRA) follow.

        Read off the denoiser's timestep; set it by hand where the denoiser is compiled.
        """
        return self._live.progress

    @progress.setter
    def progress(self, value: float) -> None:
        self._live.set_progress(value)

    def enable(self) -> None:
        """Put the active adapters in force again."""
        self._switch(True)

    def disable(self) -> Disabled[PipelineAdapters]:
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

    # -- merging -----------------------------------------------------------------------------------------------

    def merge(
        self,
        names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        *,
        mode: Mode = "weights",
        remember: Remember = "copy",
        max_loss: float = 0.25,
        base: str | os.PathLike[str] | None = None,
    ) -> MergeReport:
        """Merge the active adapters (or those named) into the weights, in place, rounding once.

        names: of the adapters to merge, in all components or by component: {"unet": ["pixel"]}.
        mode: "auto" leaves layers live whose change would lose more than `max_loss` (relative) to the rounding of the
        weight's dtype, or that cannot be merged, and says which. remember: what the way back is made of, "copy"
        (fastest), "code" (about a sixth of that) or "file" (nothing; `base` is the folder of the base model, default
        the one the pipeline was loaded from). Raises MergeError, with the weights as they were.
        """
        by_component = names.values() if isinstance(names, Mapping) else [names or ()]
        for name in (name for group in by_component for name in group):
            self._get(name)
        options = MergeOptions(frozen(names), mode, remember, max_loss, None if base is None else Path(base))
        before, self._options = self._options, options
        try:
            return self._merge()
        except BaseException:
            self._options = before
            self._refresh()
            raise

    def _merge(self) -> MergeReport:
        """Bring the weights to the mix in force, and the live side to the rest of it."""
        options = self._options or MergeOptions()
        active = self._loaded.items() if self._enabled else ()
        chosen = (p for n, loaded in active for p in loaded.hooked if options.takes(n, p.key.component))
        report = self._merged.bring(mix_of(chosen), options, self._owner)
        self._settle()
        return report

    def _settle(self) -> None:
        """After weights have changed: what is merged is no longer live, and the other way round."""
        self._refresh()
        self._live.resync_fused()

    def unmerge(self, *, force: bool = False, release: bool = False) -> None:
        """Restore the very bits of the base weights; the adapters are live again.

        The memory of the copies stays for the next merge, which fresh memory would slow down; `release=True`, or
        removing the last adapter, gives it back.

        Raises MergeError where somebody else changed a merged weight in between; `force=True` restores all the same.
        """
        if not force:
            self._merged.check()
        self._merged.restore()
        if release:
            self._merged.release()
        self._options = None
        self._live.relayer(self._widened.narrow(self._loaded.values(), self.components(), self._merged.modules))
        self._settle()

    def keep_merged(self) -> None:
        """Make the merge final: the weights stay as they are, and the merged adapters leave the stack, also those that
        were merged in some components only."""
        names = [name for name in self.names if self._options is not None and self._options.takes(name)]
        self._widened.keep(self._merged.modules)
        self._merged.modules.clear()
        self._tables.keep(self._loaded.values(), names)
        self._options = None
        for name in names:
            self._drop(name)
        self._settle()
