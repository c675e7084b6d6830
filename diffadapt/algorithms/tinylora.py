"""TinyLoRA: a handful of trained numbers steer a random mixture of the weight's principal parts.

For the whole model `tinylora_v.<group>` v (u,), one per group of layers; per module `tinylora_A` (r, in), `tinylora_B`
(out, r), singular parts of the base weight, saved, and `tinylora_P` (u, r, r), random. delta W = B (sum_i v_i P_i) A.
Which group a layer belongs to follows from its place in the trained model, which no file says. P was drawn from
`projection_seed` + that place (torch's CPU generator), so a saved P tells it: the place whose draw it is.
Where P is not saved (`save_projection=False`) a file is refused; on an Embedding A is (r, dim), B (num, r).
Sources: TinyLoRA, arXiv 2602.04118; PEFT `tuners/tinylora`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.factored import number
from diffadapt.algorithms.forms import Dense, Form, LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError

_SEED = 42  # PEFT's default of projection_seed


@dataclass(frozen=True, eq=False)
class TinyLoRA(Delta):
    """down (r, in), up (out, r), mixtures (u, r, r), steering (u,).

    group: which of the file's `groups` the steering is of. layers: how many the file has; seed: the config's.
    """

    algorithm: ClassVar[str] = "tinylora"

    down: Tensor
    up: Tensor
    mixtures: Tensor
    steering: Tensor
    group: int = 0
    groups: int = 1
    layers: int = field(default=1, compare=False)
    seed: int = field(default=_SEED, compare=False)

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if not any(role in group for role in ("tinylora_A", "tinylora_B", "tinylora_P")):
            return None
        down, up = group.take("tinylora_A"), group.take("tinylora_B")
        if "tinylora_P" not in group:
            raise AlgorithmError(
                f"{group.name}: the file lacks tinylora_P (save_projection=False), which PEFT draws by the layer's "
                "place in the trained model. Save the adapter again with save_projection=True."
            )
        mixtures = group.take("tinylora_P")
        if mixtures.ndim != 3 or not mixtures.numel():
            raise AlgorithmError(f"{group.name}: tinylora_P {tuple(mixtures.shape)}; expected (u, r, r).")
        steering, place, groups = _steering(group, mixtures, context)
        rank = len(down)
        if down.ndim != 2 or up.shape[1:] != (rank,) or tuple(mixtures.shape) != (len(steering), rank, rank):
            raise AlgorithmError(
                f"{group.name}: tinylora_A {tuple(down.shape)}, _B {tuple(up.shape)}, _P {tuple(mixtures.shape)} and "
                f"_v {tuple(steering.shape)} do not fit together."
            )
        layers, seed = len(context.bank.modules), int(number(group, context.config, "projection_seed", _SEED))
        return cls(down, up, mixtures, steering, place, groups, max(1, layers), seed)

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    def pair(self) -> LowRank:
        """The float32 factors of a Linear's change; an Embedding's is their product as it stands, not transposed."""
        inner = torch.einsum("i,ijk->jk", f32(self.steering), f32(self.mixtures))
        return LowRank(inner @ f32(self.down), self.up)

    def weight_delta(self, weight: Tensor) -> Tensor:
        return self.pair().dense(tuple(weight.shape), weight.device)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        if layer.kind == "embedding":
            return (Dense(self.weight_delta(weight())),)
        return (self.pair(),)

    def check(self, layer: Layer) -> None:
        if layer.kind not in ("linear", "embedding") or (len(self.up), self.down.shape[1]) != layer.shape:
            raise AlgorithmError(
                f"tinylora: tinylora_B {tuple(self.up.shape)} and _A {tuple(self.down.shape)} do not fit a "
                f"{layer.kind} of {layer.shape}. The adapter is for another model."
            )

    @property
    def bank_tensors(self) -> Mapping[str, Tensor]:
        """The trained numbers of the module's group."""
        return {f"tinylora_v.{self.group}": self.steering}

    def peft_fields(self, module: str) -> Fields | None:
        """The groups are told by their share of the layers, which is what PEFT makes their number from."""
        tying = 1 - self.groups / self.layers if self.groups > 1 else 1.0
        return {
            "peft_type": "TINYLORA", "r": self.rank, "u": len(self.steering), "weight_tying": tying,
            "projection_seed": self.seed, "save_projection": True,
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """The module's own; the trained numbers are the file's."""
        return {"tinylora_A": self.down, "tinylora_B": self.up, "tinylora_P": self.mixtures}


def _steering(group: TensorGroup, mixtures: Tensor, context: Context) -> tuple[Tensor, int, int]:
    """The trained numbers of a module's group, which it is, and of how many.

    Raises AlgorithmError where its place cannot be told.
    """
    groups = {role: t for role, t in context.bank.tensors.items() if role.startswith("tinylora_v.")}
    if not groups:
        raise AlgorithmError(f"{group.name}: the file lacks the shared tinylora_v.")
    if len(groups) == 1:
        return next(iter(groups.values())), 0, 1
    layers = len(context.bank.modules)
    seed = int(number(group, context.config, "projection_seed", _SEED))
    key = ("tinylora", seed, layers, mixtures.dtype, *mixtures.shape)
    places = context.bank.places.get(key)
    if places is None:
        places = context.bank.places[key] = {_draw(mixtures, seed + place): place for place in range(layers)}
    place = places.get(_bytes(mixtures))
    if place is not None:
        # PEFT deals its layers out in runs of equal length, the last group taking what is left.
        which = min(place // max(1, layers // len(groups)), len(groups) - 1)
        if f"tinylora_v.{which}" in groups:
            return groups[f"tinylora_v.{which}"], which, len(groups)
    raise AlgorithmError(
        f"{group.name}: tinylora_P is no draw of projection_seed {seed}, so which of the {len(groups)} groups this "
        "layer belongs to is unknown: another torch drew it, or the config belongs to another file."
    )


def _draw(like: Tensor, seed: int) -> bytes:
    """What PEFT draws for a layer, to be compared."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.normal(0.0, 1.0 / like.shape[-1] ** 0.5, tuple(like.shape), generator=generator)
    return _bytes(drawn.to(like.dtype))


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
