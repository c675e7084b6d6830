"""The merged modules of a pipeline: brought to a mix, or restored, all of them or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffadapt.adapter import TargetKey
from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import MergeError
from diffadapt.inject.base_files import BaseFiles
from diffadapt.inject.locate import weight_of
from diffadapt.inject.merge import MergedModule, Remember, merge_module, mix_key, refuse_unmergeable
from diffadapt.inject.packed import merge_packed
from diffadapt.inject.quantised import quantiser_of
from diffadapt.report import LayerMerge, MergeReport

Mode = Literal["weights", "auto"]


@dataclass(frozen=True)
class MergeOptions:
    """How a stack is merged, kept so that a change of strength merges again in the same way.

    names: the adapters to merge, in all components or by component; None for all. base: the base model's folder, for
    `remember="file"`.
    """

    names: tuple[str, ...] | Mapping[str, tuple[str, ...]] | None = None
    mode: Mode = "weights"
    remember: Remember = "copy"
    max_loss: float = 0.25
    base: Path | None = None

    def takes(self, name: str, component: str | None = None) -> bool:
        """Whether an adapter is to be merged: in this component, or (None) in any."""
        if not isinstance(self.names, Mapping):
            return self.names is None or name in self.names
        return any(name in names for key, names in self.names.items() if component in (None, key))


def frozen(
    names: Sequence[str] | Mapping[str, Sequence[str]] | None,
) -> tuple[str, ...] | dict[str, tuple[str, ...]] | None:
    """The names to merge, safe from later changes by whoever gave them."""
    if isinstance(names, Mapping):
        return {component: tuple(group) for component, group in names.items()}
    return None if names is None else tuple(names)


@dataclass(frozen=True)
class Wanted:
    """What a module's weight is to hold: (strength, delta) pairs, in stack order."""

    module: nn.Module
    layer: Layer
    deltas: list[tuple[float, Delta]]


class MergedWeights:
    """Every module whose weight holds adapters now, and what is remembered of its base."""

    def __init__(self) -> None:
        self.modules: dict[TargetKey, MergedModule] = {}
        self._room: dict[TargetKey, Tensor] = {}

    def __contains__(self, key: TargetKey) -> bool:
        return key in self.modules

    def base_weight(self, key: TargetKey) -> Tensor | None:
        """The weight of a module before its merge, or None where it is not merged."""
        merged = self.modules.get(key)
        return None if merged is None else merged.base_weight()

    def bring(self, mix: Mapping[TargetKey, Wanted], options: MergeOptions, owner: Any) -> MergeReport:
        """Bring every module's weight to `mix`; modules that are not in it get their base back.

        Raises MergeError, with every module as it was before, where one cannot be merged (mode "weights") or where
        somebody else changed a weight that has to be restored.
        """
        live, wanted = self._mergeable(mix, options)
        limit = options.max_loss if options.mode == "auto" else None
        stale = {
            key: m
            for key, m in self.modules.items()
            if key not in wanted
            or m.key != mix_key(wanted[key].deltas)
            or (limit is not None and m.result.loss > limit)
        }
        self.check(stale)
        files = BaseFiles(owner, options.base) if options.remember == "file" else None
        results: dict[TargetKey, LayerMerge] = {}
        undone: dict[TargetKey, MergedModule] = {}
        done: list[TargetKey] = []
        try:
            for key, merged in stale.items():
                undone[key] = merged
                self._restore(key)
            unchanged = len(self.modules)
            results.update((key, merged.result) for key, merged in self.modules.items())
            for key, want in wanted.items():
                if key in self.modules:
                    continue
                outcome = _merge(want, options.remember, _stored(files, key), limit, self._room.pop(key, None))
                if isinstance(outcome, LayerMerge):
                    live[key] = f"{outcome.loss:.0%} of the change would be lost to the rounding of the weight's dtype"
                    continue
                self.modules[key], results[key] = outcome, outcome.result
                done.append(key)
        except BaseException:
            self._roll_back(done, undone, options)
            raise
        return MergeReport(results, live, unchanged, self.remembered())

    @staticmethod
    def _mergeable(
        mix: Mapping[TargetKey, Wanted], options: MergeOptions
    ) -> tuple[dict[TargetKey, str], dict[TargetKey, Wanted]]:
        """Why some modules stay live (mode "auto" only), and what is wanted of the others."""
        live: dict[TargetKey, str] = {}
        wanted = dict(mix)
        for key, want in mix.items():
            try:
                refuse_unmergeable(".".join(key), want.module, want.deltas)
            except MergeError as error:
                if options.mode != "auto":
                    raise
                live[key] = str(error)
                del wanted[key]
        return live, wanted

    def _roll_back(
        self, done: Sequence[TargetKey], undone: Mapping[TargetKey, MergedModule], options: MergeOptions
    ) -> None:
        for key in done:
            self._restore(key)
        for key, merged in undone.items():
            if key in self.modules:  # its turn had not come
                continue
            # The same terms on the same base give the same bits again.
            want = Wanted(merged.module, merged.layer, merged.terms)
            again = _merge(want, options.remember, _stored(None, key))
            if isinstance(again, MergedModule):
                self.modules[key] = again

    def check(self, merged: Mapping[TargetKey, MergedModule] | None = None) -> None:
        """Raise MergeError where the base's bits cannot be put back without overwriting somebody else's change."""
        reasons = {k: why for k, m in (self.modules if merged is None else merged).items() if (why := m.check())}
        if reasons:
            key, reason = next(iter(reasons.items()))
            more = f" ({len(reasons)} modules in all)" if len(reasons) > 1 else ""
            raise MergeError(
                f"{'.'.join(key)}: {reason}{more}. Nothing was changed. `unmerge(force=True)` puts the base back and "
                "drops the other change."
            )

    def restore(self) -> None:
        """Put the base's very bits back everywhere."""
        for key in list(self.modules):
            self._restore(key)

    def _restore(self, key: TargetKey) -> None:
        merged = self.modules[key]
        merged.restore()
        del self.modules[key]
        if merged.room is not None:
            self._room[key] = merged.room

    def release(self) -> None:
        """Give back the memory of copies that are of no more use; it is kept for the next merge until then."""
        self._room.clear()

    def remembered(self) -> dict[str, int]:
        """Bytes kept for the way back, by kind."""
        kept: dict[str, int] = {}
        for merged in self.modules.values():
            for memory in merged.kept:
                kept[memory.kind] = kept.get(memory.kind, 0) + memory.nbytes
        return kept


def _merge(
    want: Wanted,
    remember: Remember,
    stored: Callable[[str], Tensor | None],
    limit: float | None = None,
    room: Tensor | None = None,
) -> MergedModule | LayerMerge:
    if quantiser_of(want.module.weight) is not None:
        return merge_packed(want.module, want.layer, want.deltas, limit)
    return merge_module(want.module, want.layer, want.deltas, remember, stored, limit, room)


def _stored(files: BaseFiles | None, key: TargetKey) -> Callable[[str], Tensor | None]:
    return (lambda name: files.parameter(key, name)) if files is not None else (lambda name: None)


class BaseWeight:
    """A module's weight before any merge: what a merge remembers of it, else the weight itself."""

    def __init__(self, merged: MergedWeights, key: TargetKey, module: nn.Module) -> None:
        self.merged, self.key, self.module = merged, key, module

    @torch.no_grad()
    def __call__(self) -> Tensor:
        remembered = self.merged.base_weight(self.key)
        return weight_of(self.module) if remembered is None else remembered
