"""RoAd: pairs of outputs are rotated and scaled, y' = c * y + s * turn(y), the bias with them.

`road_theta` and `road_alpha`: (out / 2,) road_1, (out,) road_2, (2 out,) road_4; c = alpha cos theta, s = alpha sin
theta. Outputs t and t + g / 2 of each run of g = `group_size` make a pair, and turn(y) is (-y2, y1) of a pair. road_1
shares theta and alpha in the pair; road_4 has, per group, g of them for c and then g for s.
A linear map of the outputs: W' = R W, b' = R b. Sources: RoAd, arXiv 2409.00119; PEFT `tuners/road`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.factored import require_linear
from diffadapt.algorithms.forms import BiasChange, ChannelForm, Form, OutputChange
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError

_VARIANTS = {"road_1": 0.5, "road_2": 1.0, "road_4": 2.0}


@dataclass(frozen=True, eq=False)
class TurnedPairs(ChannelForm):
    """v -> v + excess * v + side * turn(v); excess, side: (out,), group: the run in which pairs lie half apart."""

    excess: Tensor
    side: Tensor
    group: int

    def change(self, v: Tensor, layer: Layer) -> Tensor:
        halves = v.reshape(*v.shape[:-1], -1, 2, self.group // 2)
        turned = torch.stack((-halves[..., 1, :], halves[..., 0, :]), dim=-2).reshape(v.shape)
        return v * self.excess + turned * self.side


@dataclass(frozen=True, eq=False)
class RoAd(Delta):
    """theta and alpha as in the file. variant: "road_1", "road_2", "road_4"; group: `group_size`."""

    algorithm: ClassVar[str] = "road"

    theta: Tensor
    alpha: Tensor
    variant: str
    group: int

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if "road_theta" not in group and "road_alpha" not in group:
            return None
        theta, alpha = group.take("road_theta"), group.take("road_alpha")
        variant, size = context.config.get("variant"), context.config.get("group_size")
        if variant not in _VARIANTS or not isinstance(size, int) or size < 2 or size % 2:
            raise AlgorithmError(
                f"{group.name}: RoAd needs variant and an even group_size of adapter_config.json; seen {variant!r} and "
                f"{size!r}. The tensors alone do not say which outputs make a pair."
            )
        if theta.ndim != 1 or theta.shape != alpha.shape or len(theta) % int(size * _VARIANTS[variant]):
            raise AlgorithmError(
                f"{group.name}: road_theta {tuple(theta.shape)} and road_alpha {tuple(alpha.shape)} are no {variant} "
                f"in groups of {size}."
            )
        return cls(theta, alpha, variant, size)

    @property
    def outputs(self) -> int:
        return int(len(self.theta) / _VARIANTS[self.variant])

    def turn(self, like: Tensor | None = None) -> TurnedPairs:
        """The map as a live form, float32."""
        theta, alpha = f32(self.theta, like), f32(self.alpha, like)
        if self.variant == "road_1":
            theta, alpha = (
                t.reshape(-1, 1, self.group // 2).expand(-1, 2, -1).flatten() for t in (theta, alpha)
            )  # fmt: skip
        sine = (theta, alpha)
        if self.variant == "road_4":
            (theta, to), (alpha, so) = (
                t.reshape(-1, 2, self.group).transpose(0, 1).flatten(1) for t in (theta, alpha)
            )  # fmt: skip
            sine = (to, so)
        return TurnedPairs(alpha * theta.cos() - 1, sine[1] * sine[0].sin(), self.group)

    def _turned(self, rows: Tensor) -> Tensor:
        """The change of a weight (out, in) or a bias (out,)."""
        if rows.ndim == 1:
            return self.turn(rows).change(f32(rows), _NO_LAYER)
        return self.turn(rows).change(f32(rows).T, _NO_LAYER).T

    def weight_delta(self, weight: Tensor) -> Tensor:
        return self._turned(weight)

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        return None if bias is None else self._turned(bias)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        change = self.bias_delta(bias())
        turn = OutputChange(self.turn())
        return (turn,) if change is None else (turn, BiasChange(change))

    def check(self, layer: Layer) -> None:
        require_linear(self.algorithm, layer)
        if self.outputs != layer.shape[0]:
            raise AlgorithmError(
                f"road: {len(self.theta)} angles of {self.variant} are for {self.outputs} outputs, the Linear has "
                f"{layer.shape[0]}. The adapter is for another model."
            )

    def peft_fields(self, module: str) -> Fields | None:
        return {"peft_type": "ROAD", "variant": self.variant, "group_size": self.group}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors; variant and group_size are the config's."""
        return {"road_theta": self.theta, "road_alpha": self.alpha}

    def rows(self, start: int, stop: int) -> RoAd:
        if start % self.group or stop % self.group:
            raise AlgorithmError(f"road: rows {start} to {stop} cut a group of {self.group} outputs.")
        cut = slice(int(start * _VARIANTS[self.variant]), int(stop * _VARIANTS[self.variant]))
        return dataclasses.replace(self, theta=self.theta[cut], alpha=self.alpha[cut])


_NO_LAYER = Layer("linear", (1, 1))
