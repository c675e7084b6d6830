"""Whether tensors hold NaN or infinity, by comparing bit patterns: faster than any float reduction on CPU.

In every IEEE-like format the absolute value of a number orders like its bits without the sign, so one maximum over
the masked bits answers for a whole run of tensors; the few float8 formats differ only in the mask and the limit.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

CHUNK = 1 << 20
"""Elements looked at in one step: large enough to keep both threads busy, small enough for the cache."""


class BitRule(NamedTuple):
    """How to tell a non-finite value of one dtype: `max(operation(bits, mask)) >= limit`."""

    bits: torch.dtype
    operation: Literal["and", "xor"]
    mask: int
    limit: int


RULES: dict[torch.dtype, BitRule] = {
    torch.float64: BitRule(torch.int64, "and", 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    torch.float32: BitRule(torch.int32, "and", 0x7FFF_FFFF, 0x7F80_0000),
    torch.float16: BitRule(torch.int16, "and", 0x7FFF, 0x7C00),
    torch.bfloat16: BitRule(torch.int16, "and", 0x7FFF, 0x7F80),
    torch.float8_e5m2: BitRule(torch.uint8, "and", 0x7F, 0x7C),
    torch.float8_e4m3fn: BitRule(torch.uint8, "and", 0x7F, 0x7F),
    # The FNUZ formats have one NaN, the bit pattern of minus zero: 0x80 ^ 0x7F is the only way to reach 0xFF.
    torch.float8_e5m2fnuz: BitRule(torch.uint8, "xor", 0x7F, 0xFF),
    torch.float8_e4m3fnuz: BitRule(torch.uint8, "xor", 0x7F, 0xFF),
    torch.float8_e8m0fnu: BitRule(torch.uint8, "and", 0xFF, 0xFF),
}


def has_nonfinite(tensor: torch.Tensor) -> bool:
    """Tell whether `tensor` (any shape, dtype and device) holds NaN or infinity; integer dtypes never do."""
    tensor = tensor.detach()
    if tensor.dtype.is_complex:
        tensor = torch.view_as_real(tensor.resolve_conj())
    rule = RULES.get(tensor.dtype)
    if rule is None or not tensor.numel():
        return False
    bits = tensor.view(rule.bits)
    if not bits.is_contiguous():
        return int(_masked(bits, rule).max()) >= rule.limit
    flat = bits.view(-1)
    if flat.numel() <= CHUNK:
        return int(_masked(flat, rule).max()) >= rule.limit
    scratch = torch.empty(CHUNK, dtype=rule.bits, device=flat.device)
    return any(
        int(_masked(part, rule, scratch[: part.numel()]).max()) >= rule.limit for part in torch.split(flat, CHUNK)
    )


def _masked(bits: torch.Tensor, rule: BitRule, out: torch.Tensor | None = None) -> torch.Tensor:
    """Apply the rule's mask to `bits`, into `out` where given."""
    operation = torch.bitwise_and if rule.operation == "and" else torch.bitwise_xor
    return operation(bits, rule.mask, out=out)
