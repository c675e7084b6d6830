"""The wavelet filters against PEFT's tables and against what defines them."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.waveft.wavelet import Wavelet, wavelist

from diffadapt.algorithms.wavelets import NAMES, scaling_filter


def overlap(taps: torch.Tensor) -> float:
    """How far a filter is from orthonormal to its even shifts."""
    shifts = range(0, len(taps), 2)
    return max(abs(float((taps[: len(taps) - s] * taps[s:]).sum()) - (s == 0)) for s in shifts)


def peft_filter(name: str) -> torch.Tensor:
    return torch.tensor(Wavelet(name).rec_lo, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_filters_are_peft_s_and_orthonormal(name):
    taps = torch.tensor(scaling_filter(name), dtype=torch.float64)
    assert taps.shape == peft_filter(name).shape
    assert float((taps - peft_filter(name)).abs().max()) < 1e-11  # PEFT's tables have 12 digits in places
    assert overlap(taps) < 1e-13
    assert abs(float(taps.sum()) - 2**0.5) < 1e-13


def test_the_wavelets_that_are_left_out_are_none():
    """PEFT's numbers for two of them are not even orthonormal: no definition leads there."""
    left = set(wavelist()) - set(NAMES)
    assert left == {"coif3", "coif4", "coif5", "haar"}  # WaveFT's own list has no haar, which is db1
    assert all(overlap(peft_filter(name)) > 1e-3 for name in ("coif4", "coif5"))
