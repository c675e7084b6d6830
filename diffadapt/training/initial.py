"""Where a LoRA's factors begin: PEFT's `init_lora_weights`, with the base's bits as they are.

- gaussian: down normal of 1 / rank, up zero
- orthogonal: both from halves of one orthogonal matrix, so that their product is zero though neither is
- pissa: the principal singular part of the weight; olora: the first columns of its QR. PEFT takes these out of the
  base; here the beginning stays beside the factors (`algorithms/anchored.py`)
- eva: down from the principal directions of what the layers are given, ranks shared out by what these explain
- loftq: factors of what quantisation lost of the weight, on a base that is quantised

Sources: PEFT `tuners/lora/layer.py`, `tuners/lora/eva.py`, `utils/loftq_utils.py`; PiSSA, arXiv 2404.02948; OLoRA,
arXiv 2406.01775; EVA, arXiv 2410.07170; LoftQ, arXiv 2310.08659.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from diffadapt.algorithms.anchored import Anchored
from diffadapt.algorithms.base import Delta, f32
from diffadapt.algorithms.base_changing import singular_part
from diffadapt.algorithms.cayley import wide
from diffadapt.algorithms.lora import LoRA
from diffadapt.algorithms.start import Start
from diffadapt.errors import AlgorithmError

Beginning = Callable[[LoRA, Start], Delta]


def _gaussian(delta: LoRA, start: Start) -> Delta:
    return dataclasses.replace(delta, down=start.normal(1 / delta.rank, *delta.down.shape))


def _orthogonal(delta: LoRA, start: Start) -> Delta:
    _require_linear("orthogonal", start)
    rank = delta.rank
    if rank % 2:
        raise AlgorithmError(f"orthogonal: rank {rank} is odd; its halves come from an even one.")
    q = torch.linalg.qr(start.normal(1.0, rank, rank)).Q
    down = (start.normal(1.0, start.columns, rank // 2) @ q[0::2]).T / 10
    up = start.normal(1.0, rank // 2, start.rows).T @ q[1::2] / 10
    return dataclasses.replace(delta, down=down.contiguous(), up=up)


def _anchored(delta: LoRA, down: Tensor, up: Tensor) -> Delta:
    """The pair that begins at down and up, and as much subtracted."""
    begun = dataclasses.replace(
        delta, down=down.reshape(delta.down.shape).clone(), up=up.reshape(delta.up.shape).clone()
    )
    return Anchored(begun, dataclasses.replace(begun, down=begun.down.clone(), up=begun.up.clone()))


def _pissa(delta: LoRA, start: Start) -> Delta:
    part = singular_part(start.weight().flatten(1), delta.rank, largest=True)
    # One of the two holds the singular values; PEFT gives each their root.
    sizes = part.up.norm(dim=0) * part.down.norm(dim=1)
    lengths = (part.up.norm(dim=0), part.down.norm(dim=1))
    root = (sizes / delta.scale).clamp_min(0).sqrt()
    up = part.up / lengths[0].clamp_min(1e-30) * root
    down = part.down / lengths[1].clamp_min(1e-30)[:, None] * root[:, None]
    return _anchored(delta, down.cpu(), up.cpu())


def _olora(delta: LoRA, start: Start) -> Delta:
    weight = start.weight().flatten(1)
    q, r = torch.linalg.qr(wide(weight))
    return _anchored(delta, f32(r[: delta.rank]).cpu(), f32(q[:, : delta.rank]).cpu())


def _require_linear(name: str, start: Start) -> None:
    if start.layer.kind != "linear":
        raise AlgorithmError(f"{name}: begins on Linears only; leave the {start.layer.kind} out of the targets.")


_BEGINNINGS: dict[str, Beginning] = {
    "gaussian": _gaussian, "orthogonal": _orthogonal, "pissa": _pissa, "olora": _olora,
}  # fmt: skip
KNOWN = ("default", *_BEGINNINGS, "eva", "loftq")


def begin(name: str, delta: Delta, start: Start) -> Delta:
    """An untrained LoRA at another beginning. eva and loftq need more than the weight: see `calibrated`, `loftq`.

    Raises AlgorithmError for another algorithm, and for a layer that the beginning does not know.
    """
    if name == "default":
        return delta
    if type(delta) is not LoRA or delta.embedding or delta.mid is not None:
        raise AlgorithmError(f"init={name!r} is a beginning of LoRA pairs; leave it out for {delta.algorithm}.")
    return _BEGINNINGS[name](delta, start)


def from_residual(delta: LoRA, lost: Tensor) -> LoRA:
    """The pair of its rank that is nearest to `lost` (out, in * kernel): what quantisation took from the weight."""
    part = singular_part(lost.flatten(1), delta.rank, largest=True)
    up, down = part.up.cpu().reshape(delta.up.shape), part.down.cpu().reshape(delta.down.shape)
    return dataclasses.replace(delta, down=down, up=up / delta.scale)
