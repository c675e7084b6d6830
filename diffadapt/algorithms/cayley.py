"""The maths from a trained generator to a rotation, batched over blocks and done in float64.

The blocks are small, and a float32 solve would lose 1e-6 of the change. Every function returns the *excess*, the
matrix less the identity, which keeps small rotations exact: C+(Q) - I = 2 Q (I - Q)^-1 without a subtraction.
Sources: OFT, arXiv 2306.07280 (Cayley); BOFT, arXiv 2311.06243; the Neumann series, PEFT.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float64; on the CPU where its device has no float64."""
    return tensor.to("cpu" if tensor.device.type == "mps" else tensor.device, torch.float64)


def skew(blocks: Tensor) -> Tensor:
    """Q = X - X^T in float64. blocks: (..., n, n), any matrices."""
    x = wide(blocks)
    return x - x.transpose(-1, -2)


def packed_size(width: int) -> int | None:
    """The n of which n (n - 1) / 2 is `width`, or None where there is none."""
    n = (1 + math.isqrt(1 + 8 * width)) // 2
    return n if n * (n - 1) // 2 == width and n > 1 else None


def unpack(packed: Tensor, size: int) -> Tensor:
    """The skew-symmetric (k, n, n) of row-major upper triangles (k, n (n - 1) / 2), in float64."""
    rows, columns = torch.triu_indices(size, size, 1, device=packed.device)
    values = wide(packed)
    index = (
        torch.arange(len(values), device=values.device)[:, None],
        rows.to(values.device),
        columns.to(values.device),
    )
    upper = values.new_zeros(len(values), size, size).index_put(index, values)
    return upper - upper.transpose(-1, -2)


def pack(q: Tensor) -> Tensor:
    """The row-major upper triangles (k, n (n - 1) / 2) of (k, n, n)."""
    rows, columns = torch.triu_indices(q.shape[-1], q.shape[-1], 1, device=q.device)
    return q[:, rows, columns]


def cayley(q: Tensor) -> Tensor:
    """(I + Q)(I - Q)^-1 - I in float32. q: (..., n, n), skew-symmetric. The other direction is `cayley(-q)`."""
    q = wide(q)
    eye = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    # Q and (I - Q)^-1 commute, so the solve may stand on the left.
    excess: Tensor = torch.linalg.solve(eye - q, 2 * q)
    return excess.float()


def neumann(q: Tensor, terms: int, halved_tail: bool) -> Tensor:
    """PEFT's series for `cayley(q)` in float32, with the truncation of the trainer as part of the truth.

    PEFT 0.16-0.17: 2 (Q + ... + Q^(terms-1)). With `halved_tail` (PEFT >= 0.18, OneTrainer) the last power counts
    once instead of twice, and 3 terms are the same as 4.
    """
    q = wide(q)
    if terms <= 1:
        return torch.zeros_like(q).float()
    top = max(terms, 4) - 1 if halved_tail and terms > 2 else terms - 1
    power = q
    total = 2 * q
    for exponent in range(2, top + 1):
        power = power @ q
        total = total + (power if halved_tail and exponent == top else 2 * power)
    return total.float()


def clip_ratio(q: Tensor, limit: float, kohya: bool) -> Tensor:
    """The factor that a constraint puts on the whole of `q` (one Frobenius norm over all blocks and stages).

    LyCORIS: a limit of 0 is "off". Kohya (sd-scripts): a limit of 0 leaves 1e-8 of the rotation.
    """
    norm = torch.linalg.vector_norm(q)
    if kohya:
        return torch.div(norm.clamp(max=limit) + 1e-8, norm + 1e-8)
    if limit <= 0:
        return torch.ones_like(norm)
    return torch.clamp(limit / (norm + 1e-8), max=1.0)


def project(blocks: Tensor, radius: float) -> Tensor:
    """PEFT's `coft`: every block shrunk to the Frobenius norm `radius` / sqrt(number of stored blocks)."""
    x = wide(blocks)
    norms = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    return x * torch.clamp(radius / math.sqrt(len(x)) / norms.clamp(min=1e-300), max=1.0)
