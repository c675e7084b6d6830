"""WaveFT: a few trained coefficients in the weight's wavelet domain.

`waveft_spectrum` (n,) stands at n places of an (out, in) matrix, drawn as FourierFT's are (`random_loc_seed`). With
`use_idwt` (the default) the matrix, padded to even sizes and to what the wavelet's filter eats, centred, is taken for
the four quarters a | h over v | d of one step of a wavelet transform, and delta W = scaling * its inverse, cropped to
the middle; without it delta W = scaling * the matrix.
The filters are worked out in `wavelets.py`; `coif3` to `coif5` are refused, for the reason given there.
Source: PEFT `tuners/waveft`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.factored import number, require_linear
from diffadapt.algorithms.fourierft import scattered
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.algorithms.wavelets import NAMES, scaling_filter
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class WaveFT(Delta):
    """spectrum (n,). wavelet: its name, or None where the numbers are the weight's own (`use_idwt=False`)."""

    algorithm: ClassVar[str] = "waveft"

    spectrum: Tensor
    scaling: float
    seed: int
    wavelet: str | None

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        spectrum = group.take_optional("waveft_spectrum")
        if spectrum is None:
            return None
        config = context.config
        if spectrum.ndim != 1:
            raise AlgorithmError(f"{group.name}: waveft_spectrum {tuple(spectrum.shape)}; expected a vector.")
        seed, scaling = int(number(group, config, "random_loc_seed")), number(group, config, "scaling")
        wavelet = str(config.get("wavelet_family", "db1")) if config.get("use_idwt", True) else None
        if wavelet is not None and wavelet not in NAMES:
            raise AlgorithmError(
                f"{group.name}: the wavelet {wavelet!r} is not worked out here; only {', '.join(NAMES)} are."
            )
        return cls(spectrum, scaling, seed, wavelet)

    def weight_delta(self, weight: Tensor) -> Tensor:
        out, inputs = weight.shape
        rows, columns = scattered(self.spectrum, out, inputs, self.seed)
        values = f32(self.spectrum)
        if self.wavelet is None:
            matrix = torch.zeros(out, inputs, device=values.device).index_put((rows, columns), values)
            return f32(matrix, weight) * self.scaling
        low = torch.tensor(scaling_filter(self.wavelet), dtype=torch.float32, device=values.device)
        sizes = [size + len(low) - 2 + (size % 2) for size in (out, inputs)]
        places = (rows + (sizes[0] - out) // 2, columns + (sizes[1] - inputs) // 2)
        matrix = torch.zeros(sizes, device=values.device).index_put(places, values)
        step = _inverse_step(matrix, low)
        top, left = (step.shape[0] - out) // 2, (step.shape[1] - inputs) // 2
        return f32(step[top : top + out, left : left + inputs], weight) * self.scaling

    def check(self, layer: Layer) -> None:
        require_linear(self.algorithm, layer)
        if len(self.spectrum) > layer.shape[0] * layer.shape[1]:
            raise AlgorithmError(f"waveft: {len(self.spectrum)} frequencies, more than {layer.shape} has places.")

    def peft_fields(self, module: str) -> Fields | None:
        return {
            "peft_type": "WAVEFT", "n_frequency": len(self.spectrum), "scaling": self.scaling,
            "random_loc_seed": self.seed, "use_idwt": self.wavelet is not None, "proportional_parameters": False,
            "wavelet_family": self.wavelet or "db1",
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """The coefficients; the config must travel with them."""
        return {"waveft_spectrum": self.spectrum}


def _inverse_step(matrix: Tensor, low: Tensor) -> Tensor:
    """One inverse step of a 2-D wavelet transform. matrix: the quarters a | h over v | d; low: the scaling filter."""
    high = low.flip(0) * torch.tensor([1.0, -1.0], device=low.device).repeat(len(low) // 2)
    upper, lower = matrix.chunk(2)
    quarters = [quarter for half in (upper, lower) for quarter in half.chunk(2, dim=1)]
    # h differs down the rows, v along the columns.
    filters = [torch.outer(a, b) for a, b in ((low, low), (high, low), (low, high), (high, high))]
    full = F.conv_transpose2d(torch.stack(quarters)[None], torch.stack(filters)[:, None], stride=2)[0, 0]
    edge = len(low) - 2
    return full[edge : full.shape[0] - edge, edge : full.shape[1] - edge]
