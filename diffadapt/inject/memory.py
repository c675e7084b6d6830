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

from diffadapt.inject.codec import INTEGERS, pack, unpack
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

    def restore(self, parameter: Tensor) -> None:
        """Put the base into the parameter, which is as the merge left it."""
        parameter.copy_(self.base(parameter))

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
        saved = torch.empty_like(weight)
        made = cls._merge(weight, terms, saved)
        if isinstance(made, CodeMemory):
            return made
        weight[:made].copy_(saved[:made])
        return None

    @classmethod
    def _merge(cls, weight: Tensor, terms: Terms, saved: Tensor) -> CodeMemory | int:
        """`merge` with room for the base; in place of None, the number of rows that it changed until then."""
        delta, scratch, again = (terms.buffer(weight.device) for _ in range(3))
        integer = INTEGERS[weight.element_size()]
        codes, places, values = [], [], []
        room = weight.numel() * weight.element_size() // 4
        for start, stop in terms.blocks():
            block, base, now = weight[start:stop], saved[start:stop].copy_(weight[start:stop]), scratch[: stop - start]
            change = terms.write(delta[: stop - start], start, stop)
            second = terms.write(again[: stop - start], start, stop)
            if not _same(change, second):
                return start
            block.copy_(now.copy_(base).add_(change))
            guess = _guess(block, change, now).view(integer)
            code, far = pack(torch.sub(base.view(integer), guess, out=guess).reshape(-1))
            codes.append(code)
            places.append((far + start * terms.columns).to(torch.int32))
            values.append(base.reshape(-1)[far])
            room -= code.numel() + far.numel() * (4 + weight.element_size())
            if room < 0:
                return stop
        return cls(terms, codes, torch.cat(places), torch.cat(values))

    def base(self, merged: Tensor) -> Tensor:
        restored = merged.to(self.values.device, copy=True).contiguous()
        self._decode(restored.view(self.terms.rows, self.terms.columns))
        return restored

    def restore(self, parameter: Tensor) -> None:
        if parameter.device == self.values.device and parameter.is_contiguous():
            self._decode(parameter.view(self.terms.rows, self.terms.columns))
        else:
            super().restore(parameter)

    def _decode(self, flat: Tensor) -> None:
        """The base in place of the merged weight `flat`."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)  # a product is split over threads: the same number gives the same bits
        try:
            delta, scratch = self.terms.buffer(flat.device), self.terms.buffer(flat.device)
            integer = INTEGERS[flat.element_size()]
            for (start, stop), code in zip(self.terms.blocks(), self.codes, strict=True):
                block = flat[start:stop]
                change = self.terms.write(delta[: stop - start], start, stop)
                guess = _guess(block, change, scratch[: stop - start]).view(integer)
                step = unpack(code, guess.numel(), integer).view(guess.shape)
                torch.add(guess, step, out=block.view(integer))
            flat.view(-1)[self.places.long()] = self.values
        finally:
            torch.set_num_threads(threads)


def _guess(merged: Tensor, change: Tensor, scratch: Tensor) -> Tensor:
    """round(W' - D): the base weight up to a few units in the last place."""
    return scratch.copy_(merged).sub_(change).to(merged.dtype)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether float32 matrices hold the same bits. Compared eight bytes at a time where their rows allow it."""
    wide = torch.int64 if one.shape[1] % 2 == 0 else torch.int32
    return torch.equal(one.view(wide), other.view(wide))
