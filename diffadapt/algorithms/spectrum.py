"""FourierFT and C3A: changes that are short in the frequencies, dense in the weight.

FourierFT: `fourierft_spectrum` (n,) stands at n places of an (out, in) matrix, and delta W = scaling * the real part of
its inverse Fourier transform. The places are the first n of a permutation drawn from `random_loc_seed` (torch's CPU
generator), row by row; nothing of them is saved, so the config is needed.
C3A: `c3a_kernel` k (out / b, in / b, b): block (p, q) of delta W is the circulant matrix [i, j] = k[p, q, (j - i)
mod b] / in.
Sources: FourierFT, arXiv 2405.03003; C3A, arXiv 2407.19342; PEFT `tuners/fourierft`, `tuners/c3a`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, expect_shape, f32
from diffadapt.algorithms.factored import require_linear
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import AlgorithmError


def scattered(values: Tensor, rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """The row and the column of each of `values` (n,): the first n places of a seeded permutation of the matrix.

    Raises AlgorithmError for more values than places.
    """
    if len(values) > rows * columns:
        raise AlgorithmError(f"{len(values)} frequencies do not fit a weight of {(rows, columns)}.")
    places = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(seed))[: len(values)]
    places = places.to(values.device)
    return places // columns, places % columns


@dataclass(frozen=True, eq=False)
class FourierFT(Delta):
    """spectrum: (n,) real coefficients. scaling, seed: the config's."""

    algorithm: ClassVar[str] = "fourierft"

    spectrum: Tensor
    scaling: float
    seed: int

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        spectrum = group.take_optional("fourierft_spectrum")
        if spectrum is None:
            return None
        config = context.config
        if spectrum.ndim != 1 or "scaling" not in config or "random_loc_seed" not in config:
            raise AlgorithmError(
                f"{group.name}: fourierft_spectrum {tuple(spectrum.shape)} needs to be a vector, and the config beside "
                "the file to name scaling and random_loc_seed: where its numbers belong is in no other place."
            )
        return cls(spectrum, float(config["scaling"]), int(config["random_loc_seed"]))

    def weight_delta(self, weight: Tensor) -> Tensor:
        places = scattered(self.spectrum, weight.shape[0], weight.shape[1], self.seed)
        sparse = torch.zeros(weight.shape, device=self.spectrum.device).index_put(places, f32(self.spectrum))
        delta: Tensor = torch.fft.ifft2(sparse.to(weight.device)).real * self.scaling
        return delta

    def check(self, layer: Layer) -> None:
        require_linear(self.algorithm, layer)
        if len(self.spectrum) > layer.shape[0] * layer.shape[1]:
            raise AlgorithmError(f"fourierft: {len(self.spectrum)} frequencies, more than {layer.shape} has places.")

    def tensors(self) -> dict[str, Tensor]:
        """The coefficients; the config must travel with them."""
        return {"fourierft_spectrum": self.spectrum}


@dataclass(frozen=True, eq=False)
class C3A(Delta):
    """kernel: (out / b, in / b, b)."""

    algorithm: ClassVar[str] = "c3a"

    kernel: Tensor

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        kernel = group.take_optional("c3a_kernel")
        if kernel is None:
            return None
        if kernel.ndim != 3 or 0 in kernel.shape:
            raise AlgorithmError(f"{group.name}: c3a_kernel {tuple(kernel.shape)}; expected (out / b, in / b, b).")
        return cls(kernel)

    def dense(self, device: torch.device) -> Tensor:
        """The float32 change (out, in)."""
        high, wide, block = self.kernel.shape
        kernel = self.kernel.to(device, torch.float32)
        step = torch.arange(block, device=device)
        turned = kernel[:, :, (step[None, :] - step[:, None]) % block]
        return turned.transpose(1, 2).reshape(high * block, wide * block) / (wide * block)

    def weight_delta(self, weight: Tensor) -> Tensor:
        return self.dense(weight.device)

    def check(self, layer: Layer) -> None:
        require_linear(self.algorithm, layer)
        high, wide, block = self.kernel.shape
        expect_shape(self.algorithm, (high * block, wide * block), layer)

    def tensors(self) -> dict[str, Tensor]:
        return {"c3a_kernel": self.kernel}

    def rows(self, start: int, stop: int) -> Delta:
        return Full(diff=self.dense(self.kernel.device)[start:stop])
