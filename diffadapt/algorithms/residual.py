"""The sparse residual of LyCORIS' extraction: a few numbers added to the weight (despite its name, not to the bias).

Tensors: `bias_indices` (2, n) int16, `bias_values` (n,), `bias_size` (2,) = (out, in * kernel), a COO matrix.
Source: LyCORIS `utils` (extract_diff with `use_sparse_bias`) and `merge`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import AlgorithmError

_ROLES = ("bias_indices", "bias_values", "bias_size")


@dataclass(frozen=True, eq=False)
class Residual(Delta):
    """indices (2, n) integers inside size (out, in * kernel), values (n,); repeated positions add up."""

    algorithm: ClassVar[str] = "residual"

    indices: Tensor
    values: Tensor
    size: tuple[int, ...]

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if not any(role in group for role in _ROLES):
            return None
        indices, values, sizes = (group.take(role) for role in _ROLES)
        size = tuple(int(n) for n in sizes.flatten().tolist())
        if (
            indices.is_floating_point()
            or len(size) != 2
            or min(size) < 1
            or tuple(indices.shape) != (len(size), values.numel())
        ):
            raise AlgorithmError(
                f"{group.name}: bias_indices {tuple(indices.shape)} {indices.dtype} do not fit bias_values "
                f"{tuple(values.shape)} and bias_size {size}."
            )
        if indices.numel():
            low, high = indices.amin(1).tolist(), indices.amax(1).tolist()
            if min(low) < 0 or any(top >= n for top, n in zip(high, size, strict=True)):
                raise AlgorithmError(
                    f"{group.name}: bias_indices run from {low} to {high}, outside the matrix of {size}. "
                    "The file is damaged, or the matrix was too large for its 16-bit indices."
                )
        return cls(indices, values, size)

    def weight_delta(self, weight: Tensor) -> Tensor:
        flat = torch.zeros(self.size, dtype=torch.float32, device=weight.device)
        places = tuple(self.indices.to(weight.device, torch.int64))
        return flat.index_put(places, f32(self.values, weight).flatten(), accumulate=True).reshape(weight.shape)

    def check(self, layer: Layer) -> None:
        if self.size[0] != layer.shape[0] or math.prod(self.size) != math.prod(layer.shape):
            raise AlgorithmError(
                f"residual: the sparse matrix is {self.size}, the {layer.kind} weight {layer.shape}. "
                "The adapter is for another model."
            )

    def tensors(self) -> dict[str, Tensor]:
        return dict(zip(_ROLES, (self.indices, self.values, torch.tensor(self.size)), strict=True))

    def rows(self, start: int, stop: int) -> Residual:
        inside = (self.indices[0] >= start) & (self.indices[0] < stop)
        indices = self.indices[:, inside].to(torch.int64)
        indices[0] -= start
        return dataclasses.replace(
            self, indices=indices, values=self.values.flatten()[inside], size=(stop - start, *self.size[1:])
        )
