"""T-LoRA: delta W = s * (P diag(lambda) Q - P0 diag(lambda0) Q0), fewer ranks at noisier timesteps.

Tensors: `q_layer` (r, in[, 1...]), `p_layer` (out, r[, 1...]), `lambda_layer` (1, r), `alpha`; s = alpha / r. The base
factors P0, lambda0, Q0 are not in the file: they are r singular triples of the base weight, the first, last or middle
ones (`sig_type`). Sources: T-LoRA, arXiv 2507.05964; LyCORIS `modules/tlora.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, expect_shape, f32
from diffadapt.algorithms.forms import Form, LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.start import Start
from diffadapt.errors import AlgorithmError

_ROLES = ("q_layer", "p_layer", "lambda_layer")


@dataclass(frozen=True, eq=False)
class TLoRA(Delta):
    """q (r, in[, 1...]), p (out, r[, 1...]), singular (1, r).

    sig_type: which singular triples the training began with: "principal", "middle" or "last". min_rank, exponent: of
    the mask over timesteps. base: these triples (P0, lambda0, Q0) where they are at hand, else they are found again.
    """

    algorithm: ClassVar[str] = "tlora"
    kept: ClassVar[frozenset[str]] = frozenset({"base"})
    options: ClassVar[Mapping[str, Any]] = {"sig_type": "principal", "min_rank": 1, "exponent": 1.0}

    q: Tensor
    p: Tensor
    singular: Tensor
    alpha: float
    sig_type: str = "principal"
    min_rank: int = 1
    exponent: float = 1.0
    base: tuple[Tensor, ...] | None = None

    @classmethod
    def fresh(cls, start: Start) -> Self:
        """The singular triples of the base weight that `sig_type` names, and the same subtracted, as LyCORIS begins."""
        start.require("tlora", ungrouped=True)
        rank, sig_type = start.rank, start.option("sig_type", "principal")
        if sig_type not in ("principal", "middle", "last"):
            raise AlgorithmError(f"tlora: sig_type is {sig_type!r}; expected principal, middle or last.")
        if any(size != 1 for size in start.layer.shape[2:]):
            raise AlgorithmError(f"tlora: acts on no kernel, as of {start.layer.shape}; leave the module out.")
        start.require_rank("tlora")
        ones = (1,) * len(start.layer.shape[2:])
        empty = cls(
            torch.empty(rank, start.columns, *ones), torch.empty(start.rows, rank, *ones), torch.empty(1, rank),
            start.scale_alpha, sig_type, start.option("min_rank", 1), start.option("exponent", 1.0),
        )  # fmt: skip
        begun = empty.prepared(start.weight)
        p0, s0, q0 = (t.clone().cpu() for t in begun.base or ())
        return dataclasses.replace(
            begun, q=q0.reshape(empty.q.shape), p=p0.reshape(empty.p.shape), singular=s0.reshape(1, rank)
        )

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if not any(role in group for role in _ROLES):
            return None
        q, p, singular = (group.take(role) for role in _ROLES)
        rank = singular.numel()
        if min(q.ndim, p.ndim) < 2 or q.shape[0] != rank or p.shape[1] != rank or rank == 0:
            shapes = [tuple(t.shape) for t in (q, p, singular)]
            raise AlgorithmError(f"{group.name}: q_layer, p_layer, lambda_layer {shapes} do not share one rank.")
        options = context.options
        sig_type = str(options.get("sig_type", "principal"))
        if str(options.get("use_data_init", True)).lower() in ("false", "0"):
            raise AlgorithmError(
                f"{group.name}: this T-LoRA began at random factors (use_data_init=False), which no file holds; its "
                "effect cannot be recovered. Train it with use_data_init=True."
            )
        if sig_type not in ("principal", "middle", "last"):
            raise AlgorithmError(f"{group.name}: sig_type is {sig_type!r}; expected principal, middle or last.")
        minimum, exponent = int(options.get("tlora_min_rank", 1)), float(options.get("tlora_alpha", 1.0))
        return cls(q, p, singular, group.take_alpha(rank, context), sig_type, minimum, exponent)

    @property
    def rank(self) -> int:
        return int(self.singular.numel())

    @property
    def live_only(self) -> str | None:
        return "T-LoRA uses fewer ranks at noisier timesteps, which no single weight can hold"

    def rank_mask(self, progress: float) -> Tensor:
        """(r,) of zeros and ones: the ranks in use at `progress` through denoising, 0 (pure noise) to 1 (clean).

        int(progress^exponent * (r - min_rank)) + min_rank ranks, the first ones.
        """
        progress = min(max(progress, 0.0), 1.0)
        active = int(progress**self.exponent * (self.rank - self.min_rank)) + self.min_rank
        return (torch.arange(self.rank) < active).float()

    def prepared(self, weight: Callable[[], Tensor]) -> Self:
        """With the base's triples, which take an SVD to find."""
        return self if self.base is not None else dataclasses.replace(self, base=self._base(weight()))

    def settled(self) -> Self:
        return dataclasses.replace(self, base=None)

    def pair_mask(self, progress: float) -> Tensor:
        """(2r,) factors of the ranks of `pair`: the trained half and the base's half follow one mask."""
        return self.rank_mask(progress).repeat(2)

    def _base(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The singular triples that training began with: P0 (out, r), lambda0 (r,), Q0 (r, in), in float32."""
        if self.base is not None:
            p0, s0, q0 = (t.to(weight.device) for t in self.base)
            return p0, s0, q0
        u, s, vh = torch.linalg.svd(f32(weight).flatten(1), full_matrices=False)
        rank, available = self.rank, s.shape[0]
        if self.sig_type == "principal":
            start = 0
        else:
            start = max(available - rank, 0) if self.sig_type == "last" else (available - rank) // 2
        chosen = slice(start, start + rank)
        u, s, vh = u[:, chosen], s[chosen], vh[chosen]
        missing = rank - s.shape[0]
        # More ranks than singular values: LyCORIS pads with null vectors.
        return F.pad(u, (0, missing)), F.pad(s, (0, missing), value=1e-6), F.pad(vh, (0, 0, 0, missing))

    def pair(self, weight: Tensor) -> LowRank:
        """The exact pair of rank 2r for a base weight: the trained factors, then the base's, subtracted."""
        p0, s0, q0 = self._base(weight)
        up = f32(self.p, weight).flatten(1) * f32(self.singular, weight).flatten()
        down = torch.cat([f32(self.q, weight).flatten(1), q0])
        down = down.reshape(2 * self.rank, *weight.shape[1:])
        return LowRank(down, torch.cat([up, -p0 * s0], dim=1), self.alpha / self.rank, self.pair_mask)

    def weight_delta(self, weight: Tensor) -> Tensor:
        """The change with all ranks in use, as at the end of denoising."""
        return self.pair(weight).dense(tuple(weight.shape), weight.device)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        return (self.pair(weight()),)

    def check(self, layer: Layer) -> None:
        if layer.kind not in ("linear", "conv") or layer.groups > 1 or any(size != 1 for size in layer.shape[2:]):
            raise AlgorithmError(
                f"tlora: cannot act on a {layer.kind} layer of shape {layer.shape} in {layer.groups} groups; expected "
                "Linear or an ungrouped 1x1 Conv."
            )
        expect_shape("tlora", (self.p.shape[0], self.q[0].numel()), layer)

    def tensors(self) -> dict[str, Tensor]:
        named = dict(zip(_ROLES, (self.q, self.p, self.singular), strict=True))
        return named | {"alpha": torch.tensor(self.alpha)}
