"""PSOFT: a rotation inside the principal singular part of the base weight.

`psoft_R` (r (r - 1) / 2,), packed row by row like OFT's blocks, or (r, r) with `psoft_orth=False`; `psoft_R.vector_b`,
`psoft_R.vector_a` (r,), each there by the config. With W = U S V^T cut to the r largest parts and R = diag(b) C
diag(a), delta W = U S (R - I) V^T, or with `ab_svd_init="pissa_init"` U S^1/2 (R - I) S^1/2 V^T; psoft_alpha / r
cancels.
C = (I + Q)(I - Q)^-1 of the skew-symmetric Q, or PEFT's series (`use_cayley_neumann`), its Q first shrunk to the norm
`cayley_neumann_eps`.
A singular vector's sign is the library's choice, and the change depends on it. This makes the call that PEFT makes
(torch.linalg.svd in float32, or torch.svd_lowrank seeded with `random_seed`); with another LAPACK, or on a GPU, the
same file may mean another change, in PEFT as here. Sources: PSOFT, arXiv 2505.11235; PEFT `tuners/psoft`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.cayley import cayley, neumann, packed_size, unpack, wide
from diffadapt.algorithms.factored import number, require_linear
from diffadapt.algorithms.forms import Form, LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class PSOFT(Delta):
    """rotation (r (r - 1) / 2,) or (r, r), before and after (r,) or None: b and a.

    terms: of the series, 0 for the exact rotation; limit: cayley_neumann_eps. symmetric: pissa_init. iterations: of the
    low-rank SVD, -1 for the full one; seed: its random_seed.
    """

    algorithm: ClassVar[str] = "psoft"

    rotation: Tensor
    before: Tensor | None
    after: Tensor | None
    terms: int
    limit: float | None
    symmetric: bool
    iterations: int
    seed: int

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        rotation = group.take_optional("psoft_R")
        if rotation is None:
            return None
        before, after = group.take_optional("psoft_R.vector_b"), group.take_optional("psoft_R.vector_a")
        config = context.config
        if "ab_svd_init" not in config:
            raise AlgorithmError(f"{group.name}: PSOFT needs adapter_config.json, which names the decomposition.")
        rank = packed_size(len(rotation)) if rotation.ndim == 1 else len(rotation)
        if rotation.ndim > 2 or rank is None or (rotation.ndim == 2 and rotation.shape[1] != rank):
            raise AlgorithmError(f"{group.name}: psoft_R {tuple(rotation.shape)}; expected (r (r - 1) / 2,) or (r, r).")
        if any(vector is not None and vector.numel() != rank for vector in (before, after)):
            raise AlgorithmError(f"{group.name}: psoft_R's vectors do not have its {rank} numbers.")
        limited = config.get("cayley_neumann_eps") is not None
        terms = int(number(group, config, "num_cayley_neumann_terms", 5)) if config.get("use_cayley_neumann") else 0
        lowrank = config.get("psoft_svd") == "lowrank"
        return cls(
            rotation, before, after, terms,
            number(group, config, "cayley_neumann_eps") if limited else None, config["ab_svd_init"] == "pissa_init",
            int(number(group, config, "psoft_svd_lowrank_niter", 10)) if lowrank else -1,
            int(number(group, config, "random_seed", 0)),
        )  # fmt: skip

    @property
    def rank(self) -> int:
        return packed_size(len(self.rotation)) or 0 if self.rotation.ndim == 1 else len(self.rotation)

    def excess(self) -> Tensor:
        """R - I in float64, (r, r)."""
        eye = torch.eye(self.rank, dtype=torch.float64)
        if self.rotation.ndim == 2:
            turn = wide(self.rotation)
        else:
            q = unpack(self.rotation[None], self.rank)[0]
            if self.terms and self.limit is not None and float(q.norm()) > self.limit:
                q = q * (self.limit / (q.norm() + 1e-12))
            turn = wide(neumann(q, self.terms, True) if self.terms else cayley(q)) + eye.to(q.device)
        if self.before is not None:
            turn = wide(self.before)[:, None] * turn
        if self.after is not None:
            turn = turn * wide(self.after)
        return turn - eye.to(turn.device)

    def parts(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The r largest singular parts of the weight in float32: U (out, r), S (r,), V^T (r, in)."""
        base = f32(weight)
        if self.iterations < 0:
            u, s, v = torch.linalg.svd(base, full_matrices=False)
            return u[:, : self.rank], s[: self.rank], v[: self.rank]
        devices = [] if base.device.type == "cpu" else [base.device]
        kind = "cuda" if base.device.type == "cpu" else base.device.type
        with torch.random.fork_rng(devices, device_type=kind):
            torch.manual_seed(self.seed)
            u, s, v = torch.svd_lowrank(base, q=self.rank, niter=self.iterations)
        return u, s, v.T

    def pair(self, weight: Tensor) -> LowRank:
        """The change as float32 factors."""
        u, s, v = (wide(t) for t in self.parts(weight))
        inner = self.excess().to(u.device)
        if self.symmetric:
            return LowRank(f32(s.sqrt()[:, None] * v, weight), f32(u * s.sqrt() @ inner, weight))
        return LowRank(f32(v, weight), f32(u * s @ inner, weight))

    def weight_delta(self, weight: Tensor) -> Tensor:
        return self.pair(weight).dense(tuple(weight.shape), weight.device)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        return (self.pair(weight()),)

    def check(self, layer: Layer) -> None:
        require_linear(self.algorithm, layer)
        if self.rank > min(layer.shape):
            raise AlgorithmError(f"psoft: its rank {self.rank} does not fit a Linear of {layer.shape}.")

    def peft_fields(self, module: str) -> Fields | None:
        """`psoft_alpha` / r cancels, so it is written as 1."""
        lowrank = {"psoft_svd_lowrank_niter": self.iterations} if self.iterations >= 0 else {}
        return {
            "peft_type": "PSOFT", "r": self.rank, "psoft_alpha": self.rank,
            "ab_svd_init": "pissa_init" if self.symmetric else "psoft_init",
            "psoft_svd": "lowrank" if self.iterations >= 0 else "full", **lowrank, "random_seed": self.seed,
            "psoft_orth": self.rotation.ndim == 1, "psoft_mag_b": self.before is not None,
            "psoft_mag_a": self.after is not None, "use_cayley_neumann": self.terms > 0,
            "num_cayley_neumann_terms": self.terms or 5, "cayley_neumann_eps": self.limit,
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """The tensors; the decomposition is the config's."""
        named = {"psoft_R": self.rotation, "psoft_R.vector_b": self.before, "psoft_R.vector_a": self.after}
        return {role: t for role, t in named.items() if t is not None}
