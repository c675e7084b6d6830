"""`extract`: what a fine-tuned model learned, as an adapter: the difference of two checkpoints, a layer at a time."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffadapt.adapter import Adapter, Metadata, TargetKey
from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.lora import LoRA
from diffadapt.algorithms.total import Sum
from diffadapt.combine.change import DenseChange
from diffadapt.combine.checkpoints import ORIGINAL, Checkpoint, Key, open_checkpoint
from diffadapt.combine.walking import is_embedding
from diffadapt.errors import CombineError, DiffAdaptError
from diffadapt.reading import read_adapter

_BUFFERS = frozenset({"running_mean", "running_var", "num_batches_tracked", "position_ids", "inv_freq"})


def extract(
    tuned: Any,
    base: Any,
    rank: int,
    *,
    components: Collection[str] | None = None,
    vectors: bool = True,
    name: str = "extracted",
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """The best LoRA of a rank of what a tuned model differs in from its base.

    tuned, base: a `.safetensors` file in Diffusers' names or a single file of the original code (of which the denoiser
    is taken), a folder of one model or of a pipeline, whole or in shards, or a model or pipeline in memory; not
    necessarily both of one kind. rank: of each Linear and convolution, at most. components: which ("unet", ...); None:
    all but the VAE. vectors: also the differences of norms, biases, embeddings and tables, whole. dtype: of the result.

    Files are mapped and read a layer at a time; neither model is ever in memory. Unchanged parameters are left out.
    `losses` has the relative Frobenius error by target, `ignored` every parameter that had no counterpart, and why.
    Raises SourceError for what cannot be read, CombineError where the two have nothing in common or do not differ.
    """
    if rank < 1:
        raise CombineError(f"the rank is {rank}; expected at least 1.")
    first, second = open_checkpoint(tuned, components), open_checkpoint(base, components)
    job = _Extraction(first, second, rank, vectors, dtype)
    for key in second:
        if key in first:
            job.take(key)
    if not job.common:
        raise CombineError(f"{first.name} and {second.name} have no parameter of one name in common.")
    job.name_strangers()
    if not job.deltas:
        raise CombineError(f"{first.name} and {second.name} do not differ in anything that was compared.")
    return job.adapter(name)


class _Extraction:
    """An extraction under way."""

    def __init__(self, tuned: Checkpoint, base: Checkpoint, rank: int, vectors: bool, dtype: torch.dtype) -> None:
        self.tuned, self.base, self.rank, self.vectors, self.dtype = tuned, base, rank, vectors, dtype
        self.deltas: dict[Key, list[Delta]] = {}
        self.lost: dict[Key, float] = {}
        self.ignored: dict[str, str] = {}
        self.common = 0

    def take(self, key: Key) -> None:
        """Compare one parameter."""
        if key.component is None and not key.name.startswith(ORIGINAL):
            self._ignore(key, "only the denoiser of an original single file is extracted")
            return
        self.common += 1
        new, old = self.tuned[key], self.base[key]
        module, _, last = key.name.rpartition(".")
        if last in _BUFFERS:
            self._ignore(key, "a buffer, which is not trained")
        elif new.shape != old.shape:
            self._ignore(key, f"its shape is {tuple(new.shape)}, the base's {tuple(old.shape)}")
        elif not (new.is_floating_point() and old.is_floating_point()):
            self._ignore(key, f"holds {new.dtype} and {old.dtype}, no numbers to subtract")
        else:
            change = new.detach().float().sub(old.detach().to(new.device, torch.float32))
            if bool(change.any()):
                own = last not in ("weight", "bias")
                self._add(Key(key.component, key.name if own else module), key, change, "weight" if own else last)

    def _add(self, target: Key, key: Key, change: Tensor, role: str) -> None:
        """Keep the change of a parameter."""
        listed = target in self.tuned.embeddings | self.base.embeddings or is_embedding(target.name)
        if role == "weight" and change.ndim > 1 and target.name != key.name and not listed:
            found = DenseChange(change.flatten(1)).truncated(self.rank)
            size = found.down.shape[0]
            down = found.down.reshape(size, *change.shape[1:])
            self._keep(target, LoRA(down, found.up, float(size)))
            self.lost[target] = found.lost
        elif not self.vectors:
            self._ignore(key, "left out, because vectors=False")
        else:
            self._keep(target, Full(change) if role == "weight" else Full(diff_b=change))

    def _keep(self, target: Key, delta: Delta) -> None:
        self.deltas.setdefault(target, []).append(delta.map_tensors(lambda t: t.to("cpu", self.dtype).contiguous()))

    def _ignore(self, key: Key, why: str) -> None:
        self.ignored[f"{key.component}.{key.name}" if key.component else key.name] = why

    def name_strangers(self) -> None:
        """Note the parameters that only one of the two has."""
        for here, there in ((self.tuned, self.base), (self.base, self.tuned)):
            for key in here:
                if key not in there:
                    self._ignore(key, f"only in {here.name}")

    def adapter(self, name: str) -> Adapter:
        """What was found."""
        made = {"method": "extract", "rank": self.rank, "tuned": self.tuned.name, "base": self.base.name}
        note = Metadata(base_model=self.base.name, raw={"diffadapt.made": json.dumps(made)})
        tensors = dict(self._named())
        if any(key.component is None for key in self.deltas):
            read = read_adapter(tensors, name=name)
            lost = {f"diffusion_model.{key.name.removeprefix(ORIGINAL)}": error for key, error in self.lost.items()}
            return _replaced(read, note, self.ignored, {
                target: max(found) for target, keys in read.keys.items()
                if (found := [error for key in keys if (error := lost.get(_module(key)))])
            })  # fmt: skip
        targets = {
            TargetKey(key.component or "", key.name): joined(deltas) for key, deltas in self.deltas.items()
        }  # fmt: skip
        losses = {TargetKey(key.component or "", key.name): error for key, error in self.lost.items() if error}
        adapter = Adapter(name, "kohya", targets, candidates=_families(tensors))
        return _replaced(adapter, note, self.ignored, losses)

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors as a file would call them: in Diffusers' names, or ComfyUI's for those of original code."""
        for key, deltas in self.deltas.items():
            stem = f"{key.component}.{key.name}" if key.component else f"diffusion_model.{key.name}"
            stem = stem.replace(f"diffusion_model.{ORIGINAL}", "diffusion_model.")
            for delta in deltas:
                for role, tensor in delta.tensors().items():
                    yield f"{stem}.{role}.weight" if role.startswith("lora_") else f"{stem}.{role}", tensor


def joined(deltas: list[Delta]) -> Delta:
    """The changes of one module as one delta."""
    full = [delta for delta in deltas if isinstance(delta, Full)]
    rest = [delta for delta in deltas if not isinstance(delta, Full)]
    if len(full) == 2:
        weight, bias = sorted(full, key=lambda delta: not delta.changes_weight)
        full = [Full(weight.diff, bias.diff_b)]
    return Sum((*rest, *full)) if len(rest) + len(full) > 1 else (*rest, *full)[0]


def _module(key: str) -> str:
    return key.removesuffix(".weight").rpartition(".")[0]


def _families(tensors: dict[str, Tensor]) -> tuple[str, ...]:
    """The families that names and shapes may be of; () where none is known."""
    pairs = {key: tensor for key, tensor in tensors.items() if ".lora_" in key or key.endswith(".alpha")}
    try:
        return read_adapter(pairs, check_finite=False).candidates if pairs else ()
    except DiffAdaptError:
        return ()  # a model that no table knows: loaded by its own names


def _replaced(adapter: Adapter, note: Metadata, ignored: dict[str, str], losses: dict[TargetKey, float]) -> Adapter:
    return replace(
        adapter, metadata=note, ignored={**adapter.ignored, **ignored}, losses=losses, origin=None, keys={},
        foreign_keys={}, evidence="",
    )  # fmt: skip
