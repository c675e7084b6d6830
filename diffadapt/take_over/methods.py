"""The LoRA methods of a Diffusers pipeline, by our stack. Signatures and meanings are Diffusers'."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffadapt.adapter import Adapter
from diffadapt.errors import MergeError, StackError
from diffadapt.inject.merge import Remember
from diffadapt.reading import read_adapter
from diffadapt.report import LoadReport
from diffadapt.take_over import peft_side
from diffadapt.take_over.errors import as_diffusers
from diffadapt.take_over.mix import Mix, components_of
from diffadapt.take_over.state import State, listed
from diffadapt.take_over.weights import strength, times

_SWAP = "hotswap of {}"


class TakenOver(State):
    """What stands for Diffusers' LoRA methods on one pipeline."""

    # -- loading and removing ----------------------------------------------------------------------------------

    @as_diffusers
    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, Tensor] | Adapter,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> LoadReport:
        """Load an adapter of any format and put it in force, alone in the components it touches, as Diffusers does.

        adapter_name: default: "default_0", "default_1", ... hotswap: take the place of the adapter of that name, with
        its weights. kwargs: Diffusers' (`weight_name`, `subfolder`, `revision`, ...), and those of `read_adapter`.
        """
        if adapter_name is None and not hotswap:
            adapter_name = self._free_name()
        present = adapter_name in self._present()
        if hotswap and (adapter_name is None or adapter_name not in self.stack):
            raise StackError(f"There is no adapter named {adapter_name!r} to hotswap; load it first.")
        if present and not hotswap:
            raise StackError(f"Adapter name {adapter_name} already in use - please select a new adapter name.")
        # Diffusers passes over options it does not know; ours would be an error, as a misspelling is one.
        known = inspect.signature(read_adapter).parameters
        reading = {key: value for key, value in kwargs.items() if key in known and value is not None}
        adapter = read_adapter(pretrained_model_name_or_path_or_dict, **{"pipeline": self.pipe, **reading})
        if kwargs.get("load_into_transformer_2"):
            adapter = adapter.moved({"transformer": "transformer_2"})
        assert adapter_name is not None
        report = self._swap(adapter, adapter_name) if hotswap else self._add(adapter, adapter_name)
        self.scale.watch()
        return report

    def _add(self, adapter: Adapter, name: str) -> LoadReport:
        mix = self._now()
        report = self.stack.load(adapter, name, 0.0)
        components = components_of(self.stack, name)
        for component in components:
            mix.activate(component, [name])
        try:
            self._write(mix)
        except BaseException:
            self.stack.remove(name)
            raise
        peft_side.silence(self.pipe, components)
        return report

    def _swap(self, adapter: Adapter, name: str) -> LoadReport:
        mix, passing = self._now(), _SWAP.format(name)
        self.stack.load(adapter, passing, 0.0)
        try:
            self._write(mix.renamed(name, passing))
        except BaseException:
            self.stack.remove(passing)
            raise
        self.stack.remove(name)
        self.stack.rename(passing, name)
        self._write(mix)
        return self.stack.report(name)

    @as_diffusers
    def unload_lora_weights(self, **kwargs: Any) -> None:
        """Remove every adapter.

        What is fused stays in the weights, as in Diffusers; `unfuse_lora()` before this undoes it.
        """
        if self.stack.merged:
            self.kept |= {name for names in self.stack.merged_parts.values() for name in names}
            self.stack.keep_merged()
        self.stack.clear()
        self._mix = Mix()
        self.kept |= peft_side.merged(self.pipe)
        peft_side.original(self.pipe, "unload_lora_weights", **kwargs)
        self._count_fused()

    @as_diffusers
    def delete_adapters(self, adapter_names: Sequence[str] | str) -> None:
        """Remove adapters, also out of fused weights. Names that are not loaded are passed over, as in Diffusers.

        Where the last active adapter of a component goes, the first of the rest becomes active, as in PEFT.
        """
        for name in listed(adapter_names):
            mix = self._now()
            if name in self.stack:
                components = [c for c in components_of(self.stack, name) if name in mix.active.get(c, ())]
                self.stack.remove(name)
                mix.forget(name)
                for component in components:
                    rest = sorted(self._ours(component))
                    if rest and not {*mix.active[component]} & {*rest}:
                        mix.activate(component, rest[:1])
                self._write(mix)
        peft_side.original(self.pipe, "delete_adapters", adapter_names)

    # -- what is in force --------------------------------------------------------------------------------------

    @as_diffusers
    def set_adapters(self, adapter_names: Sequence[str] | str, adapter_weights: Any = None) -> None:
        """Put exactly these adapters in force. adapter_weights: see `take_over.weights`; 1.0 where nothing is said."""
        names = listed(adapter_names)
        weights = self._expanded(names, adapter_weights)
        self._require(names)
        mix = self._now()
        for component in self._loadable:
            mix.activate(component, [name for name in names if name in self.stack])
        for name, weight in zip(names, weights, strict=True):
            for component in components_of(self.stack, name) if name in self.stack else ():
                part = weight.get(component) if isinstance(weight, Mapping) else weight
                mix.weights[component, name] = strength(part, getattr(self.pipe, component))
        self._write(mix)
        self._set_peft(names, weights)

    def _set_peft(self, names: Sequence[str], weights: Sequence[Any]) -> None:
        known = {name for group in peft_side.names(self.pipe).values() for name in group}
        theirs = [(name, weight) for name, weight in zip(names, weights, strict=True) if name in known]
        if theirs:
            peft_side.original(self.pipe, "set_adapters", [n for n, _ in theirs], [w for _, w in theirs])
        else:
            peft_side.silence(self.pipe, self._loadable)

    @as_diffusers
    def get_active_adapters(self) -> list[str]:
        """The adapters in force in any component, in the order they were named."""
        mix, loaded = self._now(), self.stack.names
        ours = [name for component in self._loadable for name in mix.active.get(component, ()) if name in loaded]
        return list(dict.fromkeys([*ours, *peft_side.active(self.pipe)]))

    @as_diffusers
    def get_list_adapters(self) -> dict[str, list[str]]:
        """Every adapter, by component."""
        theirs = peft_side.names(self.pipe)
        lists = {c: list(dict.fromkeys([*self._ours(c), *theirs.get(c, ())])) for c in self._loadable}
        return {component: names for component, names in lists.items() if names}

    @as_diffusers
    def enable_lora(self) -> None:
        """Put the active adapters in force again."""
        self.stack.enable()
        peft_side.original(self.pipe, "enable_lora")
        self._count_fused()

    @as_diffusers
    def disable_lora(self) -> None:
        """Put all adapters out of force, also fused ones; they stay active, to be enabled again."""
        self._mix = self._now()
        self.stack.disable()
        peft_side.original(self.pipe, "disable_lora")

    @as_diffusers
    def set_lora_device(self, adapter_names: Sequence[str], device: torch.device | str | int) -> None:
        """Keep these adapters' tensors on a device. They can be used wherever they are."""
        for name in listed(adapter_names):
            if name in self.stack:
                self.stack.move(name, device)
        peft_side.original(self.pipe, "set_lora_device", adapter_names, device)

    # -- fusing ------------------------------------------------------------------------------------------------

    @as_diffusers
    def fuse_lora(
        self,
        components: Sequence[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
        *,
        remember: Remember = "code",
        **kwargs: Any,
    ) -> None:
        """Merge adapters into the weights: the active ones, or those named, at their weights times `lora_scale`.

        remember: what the way back is made of, as in `pipe.adapters.merge`. As in Diffusers the adapters keep the
        scale when they are unfused.
        """
        components = self._parts("fuse_lora", components)
        self._require(listed(adapter_names or ()))
        before = self._now()
        mix = before.copy()
        for component in components:
            fused = mix.fused.setdefault(component, [])
            chosen = listed(adapter_names) if adapter_names else mix.active.get(component, ())
            for name in (n for n in self._ours(component) if n in chosen and n not in fused):
                mix.weights[component, name] = times(mix.weight(component, name), lora_scale)
                fused.append(name)
        self._beneath("fuse_lora", components, lora_scale, safe_fusing, adapter_names=adapter_names, **kwargs)
        report = self._write(mix, remember)
        if safe_fusing and report is not None and (broken := self._not_finite(report)):
            self._write(before, remember)
            raise MergeError(f"NaN or infinity in the fused weight of {broken}; the adapters were not fused.")

    @as_diffusers
    def unfuse_lora(self, components: Sequence[str] | None = None, **kwargs: Any) -> None:
        """Restore the very bits of the base weights; the active adapters act live again.

        What was unloaded while fused has become part of the base and stays.
        """
        components = self._parts("unfuse_lora", components)
        mix = self._now()
        for component in components:
            mix.fused.pop(component, None)
        self.kept.clear()
        self._beneath("unfuse_lora", components, **kwargs)
        self._write(mix)

    def _beneath(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Let PEFT fuse or unfuse its own adapters in weights that hold none of ours: ours go back to the very bits."""
        if peft_side.held(self.pipe):
            bare = self._now()
            bare.fused = {}
            self._write(bare)
            peft_side.original(self.pipe, method, *args, **kwargs)
