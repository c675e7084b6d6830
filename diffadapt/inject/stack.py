"""The stack of adapters on a pipeline: names, strengths, live or merged."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from diffadapt.adapter import Adapter
from diffadapt.errors import MergeError, StackError
from diffadapt.inject.following import FollowSteps
from diffadapt.inject.learner import Learner
from diffadapt.inject.live import LiveSlots
from diffadapt.inject.locate import Component, components, describe
from diffadapt.inject.merge import Remember
from diffadapt.inject.merging import MergedWeights, MergeOptions, Mode, frozen
from diffadapt.inject.placement import LINEAR, Loaded, UnmatchedKeysWarning, mix_of, place
from diffadapt.inject.scaling import Strength
from diffadapt.inject.tables import Tables
from diffadapt.inject.trained import TrainedStack
from diffadapt.inject.widen import WidenedInputs
from diffadapt.report import LoadReport, MergeReport


class PipelineAdapters(TrainedStack):
    """All adapters of a pipeline or model. Made by `diffadapt.enable`; found as `pipe.adapters`.

    Everything here either finishes or leaves the pipeline as it was.
    """

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._loaded: dict[str, Loaded] = {}
        self._merged = MergedWeights()
        self._options: MergeOptions | None = None
        self._enabled = True
        self._muted = frozenset()
        self._live = LiveSlots(owner, self._merged)
        self._steps = FollowSteps(owner, self._arrive)
        self._widened = WidenedInputs()
        self._tables = Tables()
        self._watches = {}
        self._thawed = []

    def components(self) -> dict[str, Component]:
        """The models adapters can act on, by component name."""
        return components(self._owner)

    # -- loading and removing ----------------------------------------------------------------------------------

    def load(
        self,
        adapter: Adapter,
        name: str,
        strength: Strength = 1.0,
        *,
        rule: str = LINEAR,
        strict: bool = False,
        learner: Learner | None = None,
    ) -> LoadReport:
        """Put an adapter on the stack. Used by `load_adapter`, which reads it first and tells of the arguments.

        learner: takes the tensors of an adapter that is to be trained.

        Raises StackError for a name in use, TargetError where the adapter does not fit; the pipeline is then as before.
        """
        if name in self._loaded:
            raise StackError(f"An adapter named {name!r} is loaded already; remove it first or choose another name.")
        parts = self.components()
        loaded = place(
            adapter, name, parts, merged=self._merged, rule=rule, strict=strict, learner=learner, owner=self._owner
        )
        if loaded.report.unmatched or loaded.report.unmatched_targets:
            _warn(loaded.report, self._owner)
        change = self._resolve(loaded, strength, parts)
        if any(key in self._merged for key in self._widened.wanted(loaded)):
            raise StackError(f"{adapter.source} widens an input layer whose weight holds adapters; unmerge them first.")
        others = list(self._loaded.values())
        self._loaded[name] = loaded
        self._live.add(loaded)
        try:
            loaded.embeddings.install(self._owner)
            loaded.prefixes.install()
            self._live.relayer(self._widened.widen(loaded, others, parts))
            self._apply({name: change})
        except BaseException:
            self._drop(name)
            raise
        self._live.follow(parts, self._loaded.values())
        self._freeze()
        return loaded.report

    def fit(self, adapter: Adapter) -> LoadReport:
        """What a load of the adapter would apply. Changes nothing and reads no values: one of stand-ins (see
        `io.headers`) will do. Raises TargetError where it does not fit."""
        parts = self.components()
        found = place(
            adapter, adapter.name, parts, merged=self._merged, rule=LINEAR, strict=False, learner=None,
            owner=self._owner,
        )  # fmt: skip
        return found.report

    def remove(self, name: str) -> None:
        """Take an adapter off the pipeline: also out of merged weights, and its embeddings out of the tokenizers."""
        loaded = self._get(name)
        if self._options is not None:
            self._apply({name: (0.0, [0.0] * len(loaded.placements))})
        self._drop(name)

    def _drop(self, name: str) -> None:
        loaded = self._loaded.pop(name)
        self._live.drop(loaded)
        self._refresh_tables()
        loaded.embeddings.uninstall(self._owner)
        loaded.prefixes.uninstall()
        parts = self.components()
        self._live.relayer(self._widened.narrow(self._loaded.values(), parts, self._merged.modules))
        self._live.follow(parts, self._loaded.values())
        self._follow_steps()
        self._freeze()
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
        loaded = self._get(name)
        for placement in loaded.placements:
            placement.move(device)
            self._live.invalidate(placement.key)
        loaded.embeddings.to(device)
        loaded.prefixes.to(device)

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
        if self._live.mix is not None:
            raise MergeError(
                "A mixed batch is in force, and merged weights are the same for all samples: end it first."
            )
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
        chosen = [p for n, loaded in active for p in loaded.hooked if options.takes(n, p.key.component)]
        if (scheduled := next((p for p in chosen if p.schedule is not None), None)) is not None:
            raise MergeError(
                f"The strength of {scheduled.entry.owner!r} at {'.'.join(scheduled.key)} follows the denoising "
                f"({scheduled.schedule}), and a merged weight stays what it is. Set a number, or name the adapters to "
                "merge without it."
            )
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


def _warn(report: LoadReport, owner: Any) -> None:
    """Say that keys are left over, at the line that called `load_adapter`."""
    warnings.warn(
        f"{report.source}: {len(report.unmatched) or len(report.unmatched_targets)} keys match nothing in "
        f"{describe(owner)}; applied {len(report.applied)} of {report.total} modules.",
        UnmatchedKeysWarning, stacklevel=4,
    )  # fmt: skip
