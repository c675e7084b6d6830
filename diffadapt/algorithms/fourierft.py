"""FourierFT: a change that is short in the frequencies and dense in the weight.

`fourierft_spectrum` (n,) stands at n places of an (out, in) matrix, and delta W = scaling * the real part of its
inverse Fourier transform. The places are the first n of a permutation drawn from `random_loc_seed` (torch's CPU
generator), row by row; nothing of them is saved, so the config is needed. Sources: FourierFT, arXiv 2405.03003; PEFT
`tuners/fourierft`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.factored import number, require_linear
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.algorithms.start import Start
from diffadapt.errors import AlgorithmError


def scattered(values: Tensor, rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """The row and the column of each of `values` (n,): the first n places of a seeded permutation of the matrix.

    Raises AlgorithmError for more values than places.
    """
    if len(values) > rows * columns:
        raise AlgorithmError(f"{len(values)} frequencies do not fit a weight of {(rows, columns)}.")
    places = _places(len(values), rows * columns, seed).to(values.device)
    return places // columns, places % columns


@lru_cache(maxsize=256)
def _places(count: int, size: int, seed: int) -> Tensor:
    """The beginning of a permutation of as many numbers as a weight has: drawn once, not in every training step."""
    with torch.inference_mode(False):  # a training may save them for its backward
        return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count].clone()


@dataclass(frozen=True, eq=False)
class FourierFT(Delta):
    """spectrum: (n,) real coefficients. scaling, seed: the config's."""

    algorithm: ClassVar[str] = "fourierft"
    options: ClassVar[Mapping[str, Any]] = {
        "frequencies": 1000, "scaling": 150.0, "seed": 777, "zero": False,
    }  # fmt: skip

    spectrum: Tensor
    scaling: float
    seed: int

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        spectrum = group.take_optional("fourierft_spectrum")
        if spectrum is None:
            return None
        config = context.config
        if spectrum.ndim != 1:
            raise AlgorithmError(f"{group.name}: fourierft_spectrum {tuple(spectrum.shape)}; expected a vector.")
        seed = int(number(group, config, "random_loc_seed"))
        return cls(spectrum, number(group, config, "scaling"), seed)

    @classmethod
    def fresh(cls, start: Start) -> Self:
        """frequencies: n coefficients at places drawn from `seed`. They are normal numbers, as PEFT begins, which is
        not quite the base; zero: none, as with its `init_weights`."""
        start.require("fourierft", ("linear",))
        count = start.option("frequencies", 1000)
        if not 0 < count <= start.rows * start.columns:
            raise AlgorithmError(
                f"fourierft: {count} frequencies for a weight of {start.layer.shape}; expected 1 to "
                f"{start.rows * start.columns}. Give fewer, or leave the module out of the targets."
            )
        spectrum = torch.zeros(count) if start.option("zero", False) else start.normal(1.0, count)
        return cls(spectrum, start.option("scaling", 150.0), start.option("seed", 777))

    def weight_delta(self, weight: Tensor) -> Tensor:
        places = scattered(self.spectrum, weight.shape[0], weight.shape[1], self.seed)
        sparse = torch.zeros(weight.shape, device=self.spectrum.device).index_put(places, f32(self.spectrum))
        delta: Tensor = torch.fft.ifft2(sparse.to(weight.device)).real * self.scaling
        return delta

    def check(self, layer: Layer) -> None:
        require_linear(self.algorithm, layer)
        if len(self.spectrum) > layer.shape[0] * layer.shape[1]:
            raise AlgorithmError(f"fourierft: {len(self.spectrum)} frequencies, more than {layer.shape} has places.")

    def peft_fields(self, module: str) -> Fields | None:
        return {
            "peft_type": "FOURIERFT", "n_frequency": len(self.spectrum), "scaling": self.scaling,
            "random_loc_seed": self.seed,
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """The coefficients; the config must travel with them."""
        return {"fourierft_spectrum": self.spectrum}
