"""What the LoRA methods of one pipeline know of it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from diffadapt.errors import StackError
from diffadapt.inject.merge import Remember
from diffadapt.inject.stack import PipelineAdapters
from diffadapt.report import MergeReport
from diffadapt.take_over import peft_side
from diffadapt.take_over.call_scale import CallScale
from diffadapt.take_over.mix import Mix, components_of, taken_up, write

logger = logging.getLogger(__name__)


class State:
    """A taken-over pipeline: its stack, its mix of adapters, and what calls may name."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.scale = CallScale(pipe)
        self.kept: set[str] = set()
        """Adapters that were unloaded while fused: they are part of the weights for good."""
        self._mix = Mix()
        self._count_fused()

    @property
    def stack(self) -> PipelineAdapters:
        stack: PipelineAdapters = self.pipe.adapters
        return stack

    def _now(self) -> Mix:
        return taken_up(self._mix, self.stack)

    def _write(self, mix: Mix, remember: Remember = "code") -> MergeReport | None:
        self._mix, report = write(mix, self.stack, remember)
        self._count_fused()
        return report

    def _count_fused(self) -> None:
        """Keep what Diffusers' properties `fused_loras` and `num_fused_loras` read."""
        ours = {name for names in self.stack.merged_parts.values() for name in names}
        vars(self.pipe)["_merged_adapters"] = ours | self.kept | peft_side.merged(self.pipe)

    @property
    def _loadable(self) -> list[str]:
        """The components that may hold adapters, in Diffusers' order."""
        return list(dict.fromkeys((*getattr(self.pipe, "_lora_loadable_modules", ()), *self.stack.components())))

    def _present(self) -> set[str]:
        theirs = {name for names in peft_side.names(self.pipe).values() for name in names}
        return theirs | {*self.stack.names}

    def _require(self, names: Iterable[str]) -> None:
        present = self._present()
        if missing := {*names} - present:
            raise StackError(f"Adapter name(s) {missing} not in the list of present adapters: {present}.")

    def _parts(self, method: str, components: Sequence[str] | None) -> list[str]:
        """The components a call of `fuse_lora` or `unfuse_lora` means: those given, or the class' own default."""
        if components is None:
            own = getattr(type(self.pipe), method, None)
            default = inspect.signature(own).parameters["components"].default if own else None
            components = default or self._loadable
        if not components:
            raise StackError("`components` cannot be an empty list.")
        for component in components:
            if component not in getattr(self.pipe, "_lora_loadable_modules", self._loadable):
                raise StackError(f"{component} is not found in the components that take adapters: {self._loadable}.")
        return list(components)

    def _ours(self, component: str) -> list[str]:
        return [name for name in self.stack.names if component in components_of(self.stack, name)]

    def _free_name(self) -> str:
        present = self._present()
        number = len(present)
        while f"default_{number}" in present:
            number += 1
        return f"default_{number}"

    def _expanded(self, names: Sequence[str], weights: Any) -> list[Any]:
        """One weight per adapter; logs those that mean no component of the pipeline or of the adapter."""
        if isinstance(weights, Mapping) and (wrong := sorted({*weights} - {*self._loadable})):
            logger.warning(
                f"The following components in `adapter_weights` are not part of the pipeline: {wrong}. They are "
                f"ignored; its components that take adapters are {self._loadable}."
            )
            weights = {key: value for key, value in weights.items() if key not in wrong}
        expanded = list(weights) if isinstance(weights, (list, tuple)) else [weights] * len(names)
        if len(expanded) != len(names):
            raise StackError(f"{len(names)} adapter names and {len(expanded)} weights were given.")
        for name, weight in zip(names, expanded, strict=True):
            parts = components_of(self.stack, name) if name in self.stack else None
            if parts is not None and isinstance(weight, Mapping) and (idle := {*weight} & {*self._loadable} - {*parts}):
                logger.warning(f"{name!r} has nothing for {sorted(idle)}; these weights are ignored. It has {parts}.")
        return expanded

    def _not_finite(self, report: MergeReport) -> str | None:
        parts = self.stack.components()
        for component, path in report.layers:
            weight: Any = parts[component].modules[path].weight
            if not torch.isfinite(weight).all():
                return f"{component}.{path}"
        return None


def listed(names: Sequence[str] | str) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
