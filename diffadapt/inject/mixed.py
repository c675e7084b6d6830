"""Mixed batches: the samples of one batch carry different adapters.

Some adapters differ between the samples, the weights do not: every module runs once on the whole batch, and what its
slot adds is each sample's own (see `mixed_rows`). The counterpart in PEFT are `adapter_names` at inference, for its own
LoRA layers; the name of no adapter, "__base__", is PEFT's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from torch import nn

from diffadapt.adapter import TargetKey
from diffadapt.errors import StackError
from diffadapt.inject.entry import Entry
from diffadapt.inject.following import FollowBatch, FollowImages
from diffadapt.inject.gating import GateMix
from diffadapt.inject.live import Mix
from diffadapt.inject.locate import Component
from diffadapt.inject.mixed_rows import BatchLayout, MixedRows
from diffadapt.inject.mixing import StackMix
from diffadapt.inject.placement import LINEAR, Hidden, Loaded, Placement
from diffadapt.inject.scaling import Strength
from diffadapt.inject.schedule import Schedule
from diffadapt.inject.slot import Slot

if TYPE_CHECKING:
    from diffadapt.inject.gates import Gates

BASE = "__base__"
"""The entry of a sample without adapters."""

Entries = Sequence[str | Mapping[str, Strength]]
Values = Sequence[float] | None
"""Strengths of an adapter's placements; None for those in force."""


class BatchMix:
    """Which adapters every prompt of a batch carries, and the hooks that tell how the batch is made of the prompts."""

    shares_tables = False
    """Parameters cannot differ between samples."""

    def __init__(self, prompts: Sequence[Mapping[Loaded, Values]], images: int | None) -> None:
        """images: pictures for each prompt; None to learn it from the pipeline's own `encode_prompt`."""
        self.prompts, self.images = prompts, images
        self.layouts: dict[str, BatchLayout] = {}
        self._watches: list[FollowBatch] = []
        self._shadowed: list[tuple[Any, object]] = []

    # -- how the batch is made ---------------------------------------------------------------------------------

    def begin(self, owner: Any, parts: Mapping[str, Component], watches: dict[str, FollowBatch]) -> None:
        """Watch the models' batches, and the pipeline's number of images. watches: what earlier mixes watched with."""
        for name, component in parts.items():
            if name not in watches or watches[name].model is not component.model:
                watches[name] = FollowBatch(component.model, BatchLayout(name, len(self.prompts)))
            layout = self.layouts[name] = watches[name].layout
            layout.prompts, layout.images, layout.batch = len(self.prompts), 1, None
            watches[name].attach()
            self._watches.append(watches[name])
        self._follow_images(self.images or 1)
        encode = getattr(owner, "encode_prompt", None)
        if self.images is None and encode is not None and not isinstance(owner, nn.Module):
            self._shadowed = [(owner, owner.__dict__.get("encode_prompt"))]
            owner.__dict__["encode_prompt"] = FollowImages(encode, self._follow_images)

    def end(self) -> None:
        """Leave the pipeline as `begin` found it."""
        for watch in self._watches:
            watch.detach()
        for owner, before in self._shadowed:
            if before is None:
                owner.__dict__.pop("encode_prompt", None)
            else:
                owner.__dict__["encode_prompt"] = before
        self._watches, self._shadowed = [], []

    def _follow_images(self, images: int) -> None:
        for name, layout in self.layouts.items():
            if not name.startswith("text_encoder"):  # these see the prompts themselves
                layout.images = images

    # -- what is in force --------------------------------------------------------------------------------------

    def put(self, loaded: Iterable[Loaded], hidden: Hidden, slots: Mapping[TargetKey, Slot], scale: float) -> None:
        """Give every slot the strengths of its prompts. The arguments are those of `LiveSlots.refresh`."""
        held: dict[TargetKey, list[dict[Entry, float]]] = {key: [{} for _ in self.prompts] for key in slots}
        for adapter in loaded:
            for index, placement in enumerate(adapter.placements):
                out = hidden(adapter.name, placement.key)
                values = [0.0 if out else _multiplier(p, adapter, index) * scale for p in self.prompts]
                # What tells a slot that has nothing to do from the others.
                placement.entry.multiplier = max(values, key=abs)
                if placement.called:
                    for row, value in zip(held[placement.key], values, strict=True):
                        row[placement.entry] = value
        for key, slot in slots.items():
            rows = slot.rows if isinstance(slot.rows, MixedRows) else MixedRows(slot, self.layouts[key.component])
            rows.layout = self.layouts[key.component]
            rows.put(held[key])
            slot.rows = rows

    def write(self, slots: Mapping[TargetKey, Slot]) -> None:
        """Bring what is built to the strengths in force: a compiled model builds nothing itself."""
        for slot in slots.values():
            if slot.rows is not None:
                slot.rows.write()

    def check(self) -> None:
        """Raise StackError for adapters that cannot differ between the samples of a batch."""
        for adapter in {adapter: None for prompt in self.prompts for adapter in prompt}:
            if adapter.parameters:
                raise StackError(
                    f"Adapter {adapter.name!r} is being trained, which no mixed batch does; train it alone."
                )
            if adapter.prefixes.steps:
                raise StackError(f"Adapter {adapter.name!r} has a prefix, which all samples share: run it alone.")
            for index, placement in enumerate(adapter.placements):
                _check_placement(adapter, placement, [_multiplier(p, adapter, index) for p in self.prompts])


def _multiplier(prompt: Mapping[Loaded, Values], adapter: Loaded, index: int) -> float:
    """What the entry's delta of a placement is multiplied by for a prompt.

    An adapter that is named acts at the strength in force, or fully where it is switched off.
    """
    if adapter not in prompt:
        return 0.0
    values, placement = prompt[adapter], adapter.placements[index]
    in_force = 1.0 if adapter.strength == 0.0 else placement.value
    value = in_force if values is None else values[index]
    return value if placement.rule == LINEAR else float(value != 0.0)


def _check_placement(adapter: Loaded, placement: Placement, multipliers: Sequence[float]) -> None:
    where = ".".join(placement.key)
    if not any(multipliers):
        return
    if not placement.called:
        raise StackError(
            f"Adapter {adapter.name!r} changes {where}, which no layer of its own computes with: all samples of a "
            "batch share it. Run this adapter alone."
        )
    if ".experts." in where:
        raise StackError(f"Adapter {adapter.name!r} changes {where}: an expert sees tokens, and not of which sample.")
    if placement.rule != LINEAR and placement.value == 0.0:
        raise StackError(f"Adapter {adapter.name!r} has the strength rule {placement.rule!r}: set its strength first.")


class MixedStack(StackMix):
    """The side of `PipelineAdapters` that gives the samples of a batch adapters of their own."""

    _watches: dict[str, FollowBatch]

    def mix_batch(self, entries: Entries | None, *, images_per_prompt: int | None = None) -> None:
        """From now on, run batches whose samples carry different adapters. None ends it.

        entries: for every prompt of a call the name of an adapter, which acts at the strength it has (1 where it is
        switched off), or a mapping of names to strengths as in `set`, or "__base__" for none.

        A batch may be the prompts repeated: each for its images, one after the other (`num_images_per_prompt`), and all
        of that for guidance, the prompts "without" before those "with". That is what Diffusers' pipelines do, whether
        they join both for one call (Stable Diffusion, SD3) or call twice (Flux, Wan). images_per_prompt: None takes the
        number from the pipeline's call; give it where there is none (a bare model, embeddings of your own).

        A compiled model is compiled once more for mixed batches, and not again for another assignment, unless a prompt
        mixes adapters of more ranks together than any adapter on a layer has.

        A later change of a strength or `disable()` acts on the adapters in the batch too. Raises StackError for names
        that are not loaded, merged weights, adapters in training, and those that act on no activation of one sample
        (parameters outside of layers, experts). Another number of rows is an error when the model runs.
        """
        self._swap_mix(None if entries is None else self._mix_of(entries, images_per_prompt))

    @contextmanager
    def mixed(self, entries: Entries, *, images_per_prompt: int | None = None) -> Iterator[Self]:
        """`mix_batch` for a while: `with pipe.adapters.mixed(["ink", "__base__", {"ink": 0.5, "clay": 0.3}]): ...`."""
        before = self._live.mix
        self.mix_batch(entries, images_per_prompt=images_per_prompt)
        try:
            yield self
        finally:
            self._swap_mix(before)

    def _mix_of(self, entries: Entries, images: int | None) -> BatchMix:
        if isinstance(entries, (str, Mapping)) or not entries:
            raise StackError(f"A mixed batch takes an entry for every prompt, not {entries!r}.")
        if self.merged:
            raise StackError("Merged weights are the same for all samples of a batch: unmerge() first.")
        if images is not None and images < 1:
            raise StackError(f"images_per_prompt is {images}; expected at least 1.")
        parts = self.components()
        prompts: list[dict[Loaded, Values]] = []
        for entry in entries:
            names: Mapping[str, Strength | None] = {entry: None} if isinstance(entry, str) else entry
            chosen = {self._get(name): strength for name, strength in names.items() if name != BASE}
            prompts.append({a: None if s is None else self._fixed(a, s, parts) for a, s in chosen.items()})
        mix = BatchMix(prompts, images)
        mix.check()
        return mix

    def _fixed(self, loaded: Loaded, strength: Strength, parts: Mapping[str, Component]) -> list[float]:
        numbers = self._resolve(loaded, strength, parts)[1]
        if any(isinstance(number, Schedule) for number in numbers):
            raise StackError(f"Give {loaded.name!r} its schedule by set(), and its name alone to the mixed batch.")
        return [float(number) for number in numbers if not isinstance(number, Schedule)]

    def _refresh(self) -> None:
        self._live.refresh(self._loaded.values(), self._hidden)
        self._refresh_tables()
        self._refresh_prefixes(self._shared)

    def _refresh_tables(self) -> None:
        self._tables.refresh(self._loaded.values(), self._shared, self._live.scale)

    @property
    def _shared(self) -> bool:
        """Whether what acts on all samples alike is in force: tables, prefixes."""
        return self._enabled and (self._live.mix is None or self._live.mix.shares_tables)

    @contextmanager
    def gated(self, gates: Gates) -> Iterator[Self]:
        """For a while, let `gates` say the strengths of their adapters, so that a loss can train them.

        Raises StackError for merged weights, adapters in training, and what no gate can stand before.
        """
        if self.merged:
            raise StackError("Gates cannot stand before merged weights: unmerge() first.")
        before, mix = self._live.mix, GateMix(gates)
        mix.check(self._loaded.values())
        self._swap_mix(mix)
        try:
            yield self
        finally:
            self._swap_mix(before)

    def _swap_mix(self, mix: Mix | None) -> None:
        before = self._live.mix
        try:
            self._put_mix(mix)
        except BaseException:
            self._put_mix(before)
            raise

    def _put_mix(self, mix: Mix | None) -> None:
        if self._live.mix is not None:
            self._live.mix.end()
        self._live.mix = mix
        if mix is not None:
            mix.begin(self._owner, self.components(), self._watches)
        else:
            for slot in self._live.slots.values():
                slot.rows = None
        self._refresh()
