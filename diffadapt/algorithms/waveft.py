"""WaveFT: a few trained coefficients in the weight's wavelet domain.

`waveft_spectrum` (n,) stands at n places of an (out, in) matrix, drawn as FourierFT's are (`random_loc_seed`). With
`use_idwt` (the default) the matrix, padded to even sizes and to what the wavelet's filter eats, centred, is taken for
the four quarters a | h over v | d of one step of a wavelet transform, and delta W = scaling * its inverse, cropped to
the middle; without it delta W = scaling * the matrix.
Filters: PEFT has Daubechies' `db1` to `db10` and the symlets `sym2` to `sym10`, worked out here from their definition
(spectral factorisation of the half-band polynomial), and coiflets, which have none so short and are refused.
Sources: PEFT `tuners/waveft`; Daubechies, Ten Lectures on Wavelets, chapters 6 and 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.factored import number, require_linear
from diffadapt.algorithms.fourierft import scattered
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import AlgorithmError

_LIMITS = {"db": (1, 10), "sym": (2, 10)}
# Which groups of zeros a symlet takes inside the unit circle (1), the farthest first: the choice, and of its two mirror
# images the one, under which the name is known. A Daubechies wavelet takes none.
_SYMLETS = {2: "0", 3: "0", 4: "01", 5: "10", 6: "101", 7: "100", 8: "0101", 9: "0110", 10: "10101"}
_DIGITS = 80


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
        if wavelet is not None:
            family, order = wavelet.rstrip("0123456789"), wavelet.lstrip("abcdefghijklmnopqrstuvwxyz")
            low, high = _LIMITS.get(family, (1, 0))
            if not order.isdecimal() or not low <= int(order) <= high:
                raise AlgorithmError(
                    f"{group.name}: the wavelet {wavelet!r} is not worked out here; only db1-db10, sym2-sym10 are."
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


@lru_cache(maxsize=32)
def scaling_filter(wavelet: str) -> tuple[float, ...]:
    """The reconstruction low-pass filter of "db<N>" or "sym<N>", 2 N numbers whose sum is the root of 2."""
    import mpmath  # type: ignore[import-untyped]  # comes with torch, by way of sympy; a tenth of a second

    family, order = wavelet.rstrip("0123456789"), int(wavelet.lstrip("abcdefghijklmnopqrstuvwxyz"))
    with mpmath.workdps(_DIGITS):
        groups = _zero_groups(order, mpmath)
        inverted = _SYMLETS[order] if family == "sym" else "0" * len(groups)
        zeros = [zero for group, choice in zip(groups, inverted, strict=True) for zero in group[int(choice)]]
        return _filter(order, zeros, mpmath)


def _zero_groups(order: int, mpmath: Any) -> list[tuple[list[Any], list[Any]]]:
    """The zeros z of the half-band polynomial, conjugates together: (those outside the unit circle, their inverses).

    The farthest first.
    """
    coefficients = [mpmath.binomial(order - 1 + k, k) for k in range(order - 1, -1, -1)]
    roots = mpmath.polyroots(coefficients, maxsteps=500, extraprec=400) if order > 1 else []
    groups = []
    for root in roots:
        if mpmath.im(root) < -(mpmath.mpf(10) ** (-_DIGITS // 2)):
            continue  # its conjugate stands for both
        half = 1 - 2 * root
        zero = half + mpmath.sqrt(half * half - 1)
        zero = zero if abs(zero) > 1 else 1 / zero
        pair = [zero] if abs(mpmath.im(zero)) < mpmath.mpf(10) ** (-_DIGITS // 2) else [zero, mpmath.conj(zero)]
        groups.append((pair, [1 / z for z in pair]))
    return sorted(groups, key=lambda group: -abs(group[0][0]))


def _filter(order: int, zeros: list[Any], mpmath: Any) -> tuple[float, ...]:
    """The coefficients of (1 + z)^order prod (z - zero), rising, with the sum sqrt 2."""
    taps = [mpmath.mpc(1)]
    for zero in [mpmath.mpc(-1)] * order + zeros:
        shifted, kept = [mpmath.mpc(0), *taps], [*taps, mpmath.mpc(0)]
        taps = [s - zero * k for s, k in zip(shifted, kept, strict=True)]
    total = sum(taps)
    return tuple(float(mpmath.re(tap / total * mpmath.sqrt(2))) for tap in taps)
