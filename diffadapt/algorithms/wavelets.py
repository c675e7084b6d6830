"""The filters of the wavelets that PEFT's WaveFT names, worked out from their definitions.

Daubechies' `db<N>` and the symlets `sym<N>`: spectral factorisation of the half-band polynomial of order N, from whose
zeros each group of conjugates is taken outside the unit circle or, inverted, inside.
Coiflets `coif<N>`, 6 N numbers: an orthonormal filter whose high-pass has 2 N vanishing moments, and its low-pass
2 N - 1 about its centre, 2 N; found by Newton's method from a Daubechies filter of the length.
Source: Daubechies, Ten Lectures on Wavelets, chapters 6 and 8.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

NAMES = (*(f"db{order}" for order in range(1, 11)), *(f"sym{order}" for order in range(2, 11)), "coif1", "coif2")
"""All that are worked out here. PEFT has three more: coif3, which Newton's method does not reach dependably, and coif4
and coif5, its numbers for which are no orthonormal filters."""

# Which groups of zeros are taken inside the unit circle (1), the farthest first. A symlet's is the choice, and of its
# two mirror images the one, under which the name is known; from a coiflet's Newton's method finds the known one.
_SYMLETS = {2: "0", 3: "0", 4: "01", 5: "10", 6: "101", 7: "100", 8: "0101", 9: "0110", 10: "10101"}
_STARTS = {1: "0", 2: "010"}
_DIGITS = 80


@lru_cache(maxsize=32)
def scaling_filter(wavelet: str) -> tuple[float, ...]:
    """The reconstruction low-pass filter of one of NAMES; its sum is the root of 2."""
    import mpmath  # type: ignore[import-untyped]  # comes with torch, by way of sympy; a tenth of a second

    family, order = wavelet.rstrip("0123456789"), int(wavelet.lstrip("abcdefghijklmnopqrstuvwxyz"))
    with mpmath.workdps(_DIGITS):
        if family == "coif":
            return _coiflet(order, _spectral(3 * order, _STARTS[order], mpmath))
        return _spectral(order, _SYMLETS[order] if family == "sym" else "", mpmath)


def _spectral(order: int, inverted: str, mpmath: Any) -> tuple[float, ...]:
    """The filter of 2 `order` numbers; inverted: a digit per group of zeros, or nothing to invert none."""
    groups = _zero_groups(order, mpmath)
    choices = inverted or "0" * len(groups)
    return _filter(
        order, [zero for group, choice in zip(groups, choices, strict=True) for zero in group[int(choice)]], mpmath
    )


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


def _coiflet(order: int, start: tuple[float, ...]) -> tuple[float, ...]:
    """The coiflet that damped Newton steps reach from another filter of its length."""
    taps = torch.tensor(start, dtype=torch.float64)
    centre = float((taps * torch.arange(len(taps))).sum()) / 2**0.5
    taps = taps.roll(round(2 * order - centre))
    damping, (value, slope) = 1e-3, _conditions(taps, order)
    for _ in range(200):
        size = float(value.norm())
        if size < 1e-15 or damping > 1e4:
            break
        system = torch.cat([slope, damping**0.5 * torch.eye(len(taps), dtype=torch.float64)])
        step = torch.linalg.lstsq(system, torch.cat([-value, torch.zeros_like(taps)])).solution
        new, new_slope = _conditions(taps + step, order)
        if float(new.norm()) < size:
            taps, value, slope, damping = taps + step, new, new_slope, max(damping / 5, 1e-18)
        else:
            damping *= 3
    return tuple(taps.tolist())


def _conditions(taps: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """What a coiflet makes 0, and its derivative by the taps."""
    length = len(taps)
    places = torch.arange(length, dtype=torch.float64)
    powers = (places[:, None] / length) ** torch.arange(2 * order)
    basis = torch.linalg.qr(powers).Q.T  # polynomials up to 2 order - 1, made orthonormal: moments by powers are stiff
    rows = [*basis, *(basis * (1 - 2 * (places % 2)))]
    wanted = torch.cat([basis[:, 2 * order] * 2**0.5, torch.zeros(2 * order, dtype=torch.float64)])
    values, slopes = [torch.stack(rows) @ taps - wanted], rows
    for shift in range(0, length, 2):
        early, late = taps[: length - shift], taps[shift:]
        values.append((early * late).sum()[None] - float(shift == 0))
        zeros = taps.new_zeros(shift)
        slopes = [*slopes, torch.cat([late, zeros]) + torch.cat([zeros, early])]
    return torch.cat(values), torch.stack(slopes)
