"""PEFT adapters whose training took something out of the base weight first: PiSSA, OLoRA, KaSA.

Their file holds the factors of W0 + s B A with W0 = W - lost(W); on the untouched W the change is therefore
delta(W0) - lost(W), where lost(W) is a low-rank part of W that can be found again:

- PiSSA (arXiv 2404.02948): the top-r part of the SVD of W
- OLoRA (arXiv 2406.01775): s Q[:, :r] R[:r] of W = Q R
- KaSA (arXiv 2412.06071): the r smallest parts of the SVD; and `lora_diag` (r,) stands between the factors

CorDA, LoRA-GA and LoftQ need their data or quantiser, and `pissa_niter_k` drew a random approximation: these are
refused, never guessed. Only PEFT's config tells (`init_lora_weights`), and only Linears can be trained so.
The base weight must be the one that the training started from.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.anchored import Anchored
from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.cayley import wide
from diffadapt.algorithms.forms import Form, LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.lora import LoRA
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError

_UNTOUCHED = ("gaussian", "orthogonal", "eva", "mica")
_LOST = {
    "pissa_niter": "took a randomised, approximate SVD part out of the base weight",
    "corda": "took a part out of the base weight that depends on its training data",
    "lora_ga": "took a part out of the base weight that depends on the gradients of its training data",
    "loftq": "replaced the base weight by a quantised one",
}


@dataclass(frozen=True, eq=False)
class OnChangedBase(Delta):
    """A delta that belongs to W - lost(W), seen from W. factors: the delta as the file has it; scale: its s."""

    peft_start: ClassVar[Fields]
    """The fields of PEFT's config that say so."""

    factors: Delta
    scale: float

    @property
    def inner(self) -> Delta:
        """The delta that acts on W - lost(W)."""
        return self.factors

    @abstractmethod
    def lost(self, weight: Tensor) -> LowRank:
        """The part that the training took out of `weight` (out, in), as float32 factors."""

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        """Nothing in the tensors tells: `repair` decides by the config."""
        return None

    @property
    def rank(self) -> int:
        return self.factors.rank or 0

    def weight_delta(self, weight: Tensor) -> Tensor:
        lost = self.lost(weight).dense(tuple(weight.shape), weight.device)
        return self.inner.weight_delta(f32(weight) - lost) - lost

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        return self.inner.bias_delta(bias)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        if self.inner.low_rank() is None:
            return super().forms(layer, weight, bias)
        lost = self.lost(weight())
        return (*self.inner.forms(layer, weight, bias), LowRank(lost.down, lost.up, -lost.scale))

    def prepared(self, weight: Callable[[], Tensor]) -> Delta:
        """What the training took out of the base, found once."""
        if not isinstance(self.factors, LoRA) or self.inner is not self.factors:
            return self
        lost = self.lost(weight())
        return Anchored(self.factors, LoRA(lost.down, lost.up, lost.scale * lost.rank))

    def check(self, layer: Layer) -> None:
        if layer.kind != "linear":
            raise AlgorithmError(
                f"{self.algorithm}: cannot act on a {layer.kind} layer; PEFT trains it on Linears only."
            )
        self.inner.check(layer)

    def peft_fields(self, module: str) -> Fields | None:
        """The factors', and what the training did to the base, which PEFT does again when it loads."""
        fields = self.factors.peft_fields(module)
        return None if fields is None else {**fields, **self.peft_start}

    def tensors(self) -> dict[str, Tensor]:
        """The inner tensors: the config's `init_lora_weights` must travel with them."""
        return self.factors.tensors()

    def rows(self, start: int, stop: int) -> Delta:
        raise AlgorithmError(
            f"{self.algorithm}: what the training took out of the base depends on all rows of the fused weight; "
            "apply the adapter to the fused weight."
        )


def singular_part(weight: Tensor, rank: int, largest: bool) -> LowRank:
    """The `rank` largest or smallest parts of the thin SVD of `weight`, as U (U^T W) or (W V) V^T.

    Only the singular vectors of the short side are needed: eigenvectors of its Gram matrix, in float64 as accurate
    as the trainer's float32 SVD and much cheaper.
    """
    w = wide(weight)
    tall = w.shape[0] > w.shape[1]
    vectors = torch.linalg.eigh(w.T @ w if tall else w @ w.T).eigenvectors
    basis = vectors[:, len(vectors) - rank :] if largest else vectors[:, :rank]
    down, up = (basis.T, w @ basis) if tall else (basis.T @ w, basis)
    return LowRank(f32(down, weight), f32(up, weight))


@dataclass(frozen=True, eq=False)
class PiSSA(OnChangedBase):
    """LoRA that started at the principal singular part of the base weight."""

    algorithm: ClassVar[str] = "pissa"
    peft_start: ClassVar[Fields] = {"init_lora_weights": "pissa"}

    def lost(self, weight: Tensor) -> LowRank:
        return singular_part(weight, self.rank, largest=True)


@dataclass(frozen=True, eq=False)
class OLoRA(OnChangedBase):
    """LoRA that started at the first columns of the QR decomposition of the base weight."""

    algorithm: ClassVar[str] = "olora"
    peft_start: ClassVar[Fields] = {"init_lora_weights": "olora"}

    def lost(self, weight: Tensor) -> LowRank:
        q, r = torch.linalg.qr(wide(weight))
        return LowRank(f32(r[: self.rank], weight), f32(q[:, : self.rank], weight), self.scale)


@dataclass(frozen=True, eq=False)
class KaSA(OnChangedBase):
    """LoRA with a diagonal between its factors, on a base without its smallest singular parts.

    diag: `lora_diag` (r,). factors: the LoRA of A and B without it.
    """

    algorithm: ClassVar[str] = "kasa"
    peft_start: ClassVar[Fields] = {"kasa_config": {}}

    diag: Tensor

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        diag = group.take_optional("lora_diag")
        if diag is None:
            return None
        factors = LoRA.parse(group, context)
        if factors is None or diag.shape != factors.down.shape[:1]:
            seen = None if factors is None else tuple(factors.down.shape)
            raise AlgorithmError(
                f"{group.name}: lora_diag {tuple(diag.shape)} does not fit lora_A {seen}; expected (r,)."
            )
        return cls(factors, factors.scale, diag)

    @property
    def inner(self) -> Delta:
        if not isinstance(self.factors, LoRA):
            raise AlgorithmError("kasa: its factors are no LoRA pair.")
        return dataclasses.replace(self.factors, down=f32(self.factors.down) * f32(self.diag)[:, None])

    def lost(self, weight: Tensor) -> LowRank:
        return singular_part(weight, self.rank, largest=False)

    def tensors(self) -> dict[str, Tensor]:
        return self.factors.tensors() | {"lora_diag": self.diag}


def repair(delta: Delta, context: Context) -> Delta:
    """The delta as it acts on the untouched base, for a LoRA (or its DoRA) read with PEFT's config.

    Raises AlgorithmError, with the reason, for an `init_lora_weights` whose change of the base is lost.
    """
    start = context.config.get("init_lora_weights")
    if not isinstance(start, str) or start.lower() in _UNTOUCHED:
        return delta
    name = start.lower()
    pair = next((d for d in (delta, *vars(delta).values()) if isinstance(d, LoRA)), None)
    if pair is None:
        return delta
    if name == "pissa":
        return PiSSA(delta, pair.scale)
    if name == "olora":
        return OLoRA(delta, pair.scale)
    reason = next((why for prefix, why in _LOST.items() if name.startswith(prefix)), None)
    if reason is None:
        raise AlgorithmError(f"init_lora_weights={start!r} is not known: whether it changed the base cannot be told.")
    raise AlgorithmError(
        f"init_lora_weights={start!r} {reason}, so the file alone is wrong on the untouched base and cannot be "
        "repaired. Save it again in PEFT with path_initial_model_for_weight_conversion: that makes it an ordinary LoRA."
    )
