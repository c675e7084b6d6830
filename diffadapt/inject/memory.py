"""What a merge remembers of a weight, so that unmerging gives back the very bits.

- `CopyMemory`: the weight itself. Fastest, costs the weight's size.
- `CodeMemory`: with W' = round(W + D), the guess round(W' - D) is W up to a few units in the last place; the difference
  is packed into 2 bits per element (4 for float32), the rare larger ones listed apart: about a sixth of a copy. Exact
  as long as D can be computed again bit for bit, which is tried when the code is made.
- `FileMemory`: the base mapped from its safetensors file. Costs nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from diffadapt.inject.codec import INTEGERS, from_ordered, ordered, pack, unpack
from diffadapt.inject.terms import Terms

MASK = (1 << 63) - 1


def checksum(weight: Tensor) -> int:
    """A sum over the weight's bits, eight bytes at a time: any single change is seen, whatever its size."""
    flat = weight.detach().reshape(-1)
    size = flat.element_size()
    words = flat.numel() * size // 8
    total = 0
    if flat.data_ptr() % 8 == 0 and flat.storage_offset() * size % 8 == 0:
        split = words * 8 // size
        total = int(flat[:split].view(torch.int64).sum())
        flat = flat[split:]
    if flat.numel():
        total += int(flat.view(INTEGERS[size]).sum(dtype=torch.int64))
    return total & MASK


class Memory(ABC):
    """The base bits of one weight."""

    kind: ClassVar[str]

    @abstractmethod
    def base(self, merged: Tensor) -> Tensor:
        """The base weight. merged: the weight as the merge left it."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory kept, in bytes."""


class CopyMemory(Memory):
    kind = "copy"

    def __init__(self, weight: Tensor, room: Tensor | None = None) -> None:
        """Memory for a copy of the weight, to be filled by whoever changes it.

        room: a tensor that nobody needs any more, used where it fits: fresh memory costs more than the copy.
        """
        fits = room is not None and room.shape == weight.shape and room.stride() == weight.stride()
        same = room is not None and room.dtype == weight.dtype and room.device == weight.device
        self.tensor = room if room is not None and fits and same else torch.empty_like(weight.detach())

    def base(self, merged: Tensor) -> Tensor:
        return self.tensor

    @property
    def nbytes(self) -> int:
        return self.tensor.numel() * self.tensor.element_size()


class FileMemory(Memory):
    kind = "file"

    def __init__(self, mapped: Tensor) -> None:
        """mapped: the base as its file holds it, in the file's dtype."""
        self.mapped = mapped

    def base(self, merged: Tensor) -> Tensor:
        return self.mapped.to(merged.dtype).reshape(merged.shape)

    @property
    def nbytes(self) -> int:
        return 0


class CodeMemory(Memory):
    """The rounding residual of a merge, packed. Made by `merge`, which returns None where a copy is the better way."""

    kind = "code"

    def __init__(self, terms: Terms, codes: list[Tensor], places: Tensor, values: Tensor) -> None:
        """codes: packed steps, one uint8 tensor per block; places: int32 flat indices of elements listed apart, values:
        those elements themselves."""
        self.terms, self.codes, self.places, self.values = terms, codes, places, values
        self.threads = torch.get_num_threads()

    @property
    def nbytes(self) -> int:
        kept = [*self.codes, self.places, self.values]
        return sum(t.numel() * t.element_size() for t in kept)

    @classmethod
    def merge(cls, weight: Tensor, terms: Terms) -> CodeMemory | None:
        """Merge `weight` (rows, columns; a view of the parameter) in place and return its code.

        None, and the weight as it was, where the code would take more than a quarter of a copy, or where the second
        computation of the product gives other bits than the first.
        """
        base_sum, merged = checksum(weight), torch.empty_like(weight)
        delta, scratch = terms.buffer(weight.device), terms.buffer(weight.device)
        codes, places, values = [], [], []
        room = weight.numel() * weight.element_size() // 4
        for start, stop in terms.blocks():
            base, block, now = weight[start:stop], merged[start:stop], scratch[: stop - start]
            change = terms.write(delta[: stop - start], start, stop)
            block.copy_(now.copy_(base).add_(change))
            step = ordered(base).sub_(ordered(_guess(block, change, now))).reshape(-1)
            code, far = pack(step)
            codes.append(code)
            places.append((far + start * terms.columns).to(torch.int32))
            values.append(base.reshape(-1)[far])
            room -= code.numel() + far.numel() * (4 + weight.element_size())
            if room < 0:
                return None
        memory = cls(terms, codes, torch.cat(places), torch.cat(values))
        if checksum(memory.base(merged)) != base_sum:
            return None
        weight.copy_(merged)
        return memory

    def base(self, merged: Tensor) -> Tensor:
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)  # a product is split over threads: the same number gives the same bits
        try:
            return self._decode(merged)
        finally:
            torch.set_num_threads(threads)

    def _decode(self, merged: Tensor) -> Tensor:
        device = self.values.device
        flat = merged.to(device).reshape(self.terms.rows, self.terms.columns)
        restored = torch.empty_like(flat)
        delta, scratch = self.terms.buffer(device), self.terms.buffer(device)
        integer = INTEGERS[flat.element_size()]
        for (start, stop), code in zip(self.terms.blocks(), self.codes, strict=True):
            change = self.terms.write(delta[: stop - start], start, stop)
            guess = ordered(_guess(flat[start:stop], change, scratch[: stop - start]))
            guess.add_(unpack(code, guess.numel(), integer).view(guess.shape))
            restored[start:stop].copy_(from_ordered(guess, flat.dtype))
        restored.view(-1)[self.places.long()] = self.values
        return restored.reshape(merged.shape)


def _guess(merged: Tensor, change: Tensor, scratch: Tensor) -> Tensor:
    """round(W' - D): the base weight up to a few units in the last place."""
    return scratch.copy_(merged).sub_(change).to(merged.dtype)
