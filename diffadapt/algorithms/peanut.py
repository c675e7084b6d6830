"""PEANuT: the change is a small network's answer to the weight itself.

`peanut_A` (r, out), `peanut_B` (out, r), and `depth` each of `peanut_encoders.i`, `peanut_decoders.i` (r, r).
H_0 = f(W^T A^T); H_{i+1} = f(H_i E_i^T); then for every decoder H <- f(H D_i^T) + H_{depth-1-i}; delta W = scaling *
(H B^T)^T; f and scaling are the config's `act_fn` and `scaling`.
Sources: PEANuT, arXiv 2410.01870; PEFT `tuners/peanut`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.factored import number, require_linear
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class PEANuT(Delta):
    """down (r, out), up (out, r); encoders and decoders (r, r) each. activation: transformers' name of it."""

    algorithm: ClassVar[str] = "peanut"

    down: Tensor
    up: Tensor
    encoders: tuple[Tensor, ...]
    decoders: tuple[Tensor, ...]
    activation: str
    scaling: float

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if not any(role.startswith("peanut_") for role in group):
            return None
        down, up = group.take("peanut_A"), group.take("peanut_B")
        encoders, decoders = (_numbered(group, f"peanut_{side}") for side in ("encoders", "decoders"))
        rank = len(down)
        square = all(tuple(t.shape) == (rank, rank) for t in (*encoders, *decoders))
        if down.ndim != 2 or up.shape != down.T.shape or len(encoders) != len(decoders) or not square:
            raise AlgorithmError(
                f"{group.name}: peanut_A {tuple(down.shape)}, peanut_B {tuple(up.shape)}, {len(encoders)} encoders and "
                f"{len(decoders)} decoders do not fit together; expected (r, out), (out, r) and as many (r, r) of each."
            )
        name = context.config.get("act_fn")
        if not isinstance(name, str):
            raise AlgorithmError(f"{group.name}: PEANuT needs act_fn of adapter_config.json, not {name!r}.")
        _activation(name)
        return cls(down, up, encoders, decoders, name, number(group, context.config, "scaling"))

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    def weight_delta(self, weight: Tensor) -> Tensor:
        act = _activation(self.activation)
        hidden = act(f32(weight).T @ f32(self.down, weight).T)
        residuals = []
        for encoder in self.encoders:
            residuals.append(hidden)
            hidden = act(hidden @ f32(encoder, weight).T)
        for decoder in self.decoders:
            hidden = act(hidden @ f32(decoder, weight).T) + residuals.pop()
        return (f32(self.up, weight) @ hidden.T) * self.scaling

    def check(self, layer: Layer) -> None:
        require_linear(self.algorithm, layer)
        if self.down.shape[1] != layer.shape[0]:
            raise AlgorithmError(
                f"peanut: peanut_A {tuple(self.down.shape)} does not fit a Linear of {layer.shape}. "
                "The adapter is for another model."
            )

    def peft_fields(self, module: str) -> Fields | None:
        return {
            "peft_type": "PEANUT", "r": self.rank, "depth": len(self.encoders), "act_fn": self.activation,
            "scaling": self.scaling,
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """The tensors; act_fn and scaling are the config's."""
        named = {"peanut_A": self.down, "peanut_B": self.up}
        named |= {f"peanut_encoders.{i}": t for i, t in enumerate(self.encoders)}
        return named | {f"peanut_decoders.{i}": t for i, t in enumerate(self.decoders)}


def _numbered(group: TensorGroup, role: str) -> tuple[Tensor, ...]:
    found: list[Tensor] = []
    while f"{role}.{len(found)}" in group:
        found.append(group.take(f"{role}.{len(found)}"))
    return tuple(found)


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of this name. Raises AlgorithmError for one that transformers does not know."""
    from transformers.activations import ACT2FN  # takes a while to import, and only PEANuT needs it

    if name not in ACT2FN:
        raise AlgorithmError(f"peanut: act_fn {name!r} is no activation of this version of transformers.")
    activation: Callable[[Tensor], Tensor] = ACT2FN[name]
    return activation
