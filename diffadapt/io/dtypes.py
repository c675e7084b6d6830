"""The dtypes a safetensors file can name, and their torch counterparts."""

from __future__ import annotations

import torch

from diffadapt.io import limits

DTYPES: dict[str, torch.dtype] = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Widest first: the order in which the safetensors library lays data out, so the writer follows this table."""


def count_bytes(shape: list[int] | tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of a dense tensor, or -1 where a size is negative or beyond any file (a zero hides no such size)."""
    elements, bound = 1, 1
    for size in shape:
        if size < 0:
            return -1
        elements *= size
        bound *= size or 1
        if bound > limits.ELEMENTS:
            return -1
    return elements * dtype.itemsize
