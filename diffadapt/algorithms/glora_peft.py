"""GLoRA as PEFT trains it: W' = W + W * A + B and b' = b + b * D + E + W C, with * elementwise.

Five paths, each in one of four shapes by the config (`config_A_B`, `config_C`, `config_D_E`):
`glora_A`, `glora_B` (out, in): a product `.Xd` (out, r) @ `.Xu` (r, in), a vector `.X` (out, 1), a number `.X` (1,);
`glora_C` (in, 1): `.Xd` (in, r) @ `.Xu` (r, 1), or `.X` (in, 1);
`glora_D`, `glora_E` (out,): `.X` (out,) or (1,). Where a path is off PEFT saves `.zeros` in its full shape.
C, D and E are there only on a Linear with a bias. There is no scale.
Sources: GLoRA, arXiv 2306.07967; PEFT `tuners/glora`. LyCORIS' GLoRA is another method (W a + b, a matrix product).
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
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields, Otherwise
from diffadapt.errors import AlgorithmError

_PATHS = ("glora_A", "glora_B", "glora_C", "glora_D", "glora_E")


@dataclass(frozen=True, eq=False)
class Path:
    """One path: a product down @ up, or one tensor `whole`; neither where it is off.

    off: the shape of the zeros that PEFT saves in place of a path.
    """

    down: Tensor | None = None
    up: Tensor | None = None
    whole: Tensor | None = None
    off: tuple[int, ...] = ()

    @classmethod
    def take(cls, group: TensorGroup, name: str) -> Path:
        """Take a path's tensors from the group. Raises AlgorithmError for half a product or zeros that are none."""
        zeros = group.take_optional(f"{name}.zeros")
        if zeros is not None:
            if bool(zeros.any()):
                raise AlgorithmError(f"{group.name}: {name}.zeros holds numbers other than 0.")
            return cls(off=tuple(zeros.shape))
        if f"{name}.Xd" not in group and f"{name}.Xu" not in group:
            return cls(whole=group.take(f"{name}.X"))
        down, up = group.take(f"{name}.Xd"), group.take(f"{name}.Xu")
        if down.ndim != 2 or up.ndim != 2 or down.shape[1] != up.shape[0]:
            raise AlgorithmError(
                f"{group.name}: {name}.Xd {tuple(down.shape)} and .Xu {tuple(up.shape)} do not make a product; "
                "expected (n, r) and (r, m)."
            )
        return cls(down, up)

    @property
    def trained(self) -> bool:
        return self.down is not None or self.whole is not None

    @property
    def form(self) -> str | None:
        """What PEFT's config calls its shape; None where it is off."""
        if self.down is not None:
            return "lora"
        return None if self.whole is None else "constant" if self.whole.numel() == 1 else "vector"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its value."""
        if self.down is not None and self.up is not None:
            return (self.down.shape[0], self.up.shape[1])
        return self.off if self.whole is None else tuple(self.whole.shape)

    def value(self, like: Tensor) -> Tensor | None:
        """The path's float32 value, to broadcast; None where it is off."""
        if self.down is not None and self.up is not None:
            return f32(self.down, like) @ f32(self.up, like)
        return None if self.whole is None else f32(self.whole, like)

    def rows(self, start: int, stop: int) -> Path:
        """The rows of the value; a number serves all rows."""
        cut = self.whole if self.whole is None or self.whole.numel() == 1 else self.whole[start:stop]
        off = (stop - start, *self.off[1:]) if self.off else ()
        return Path(None if self.down is None else self.down[start:stop], self.up, cut, off)

    def map(self, change: Callable[[Tensor], Tensor]) -> Path:
        down, up, whole = (None if t is None else change(t) for t in (self.down, self.up, self.whole))
        return Path(down, up, whole, self.off)

    def tensors(self, name: str) -> dict[str, Tensor]:
        named = {f"{name}.Xd": self.down, f"{name}.Xu": self.up, f"{name}.X": self.whole}
        if not self.trained:
            named = {f"{name}.zeros": torch.zeros(self.off)}
        return {role: t for role, t in named.items() if t is not None}


@dataclass(frozen=True, eq=False)
class PeftGLoRA(Delta):
    """The five paths as in the module's docstring; None where the file has none of a path's tensors."""

    algorithm: ClassVar[str] = "glora_peft"

    paths: tuple[Path, ...]

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if not any(role.startswith(_PATHS) for role in group):
            return None
        return cls(tuple(Path.take(group, name) for name in _PATHS))

    @property
    def rank(self) -> int | None:
        down = next((path.down for path in self.paths if path.down is not None), None)
        return None if down is None else int(down.shape[1])

    def weight_delta(self, weight: Tensor) -> Tensor:
        factor, addition = self.paths[0].value(weight), self.paths[1].value(weight)
        base = f32(weight)
        total = base.new_zeros(base.shape)
        total = total if factor is None else total + base * factor
        return total if addition is None else total + addition

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        """The part of the bias' change that needs no weight: b * D + E."""
        if bias is None:
            return None
        factor, addition = self.paths[3].value(bias), self.paths[4].value(bias)
        if factor is None and addition is None:
            return None
        base = f32(bias)
        total = base.new_zeros(base.shape)
        total = total if factor is None else total + base * factor
        return total if addition is None else total + addition

    def bias_change(self, bias: Tensor | None, weight: Callable[[], Tensor]) -> Tensor | None:
        change = self.bias_delta(bias)
        if bias is None or not self.paths[2].trained:
            return change
        base = weight()
        column = self.paths[2].value(base)
        if column is None:
            return change
        moved = (f32(base) @ column).squeeze(-1)
        return moved if change is None else change.to(moved.device) + moved

    def check(self, layer: Layer) -> None:
        require_linear(self.algorithm, layer)
        out, inputs = layer.shape
        allowed = (
            *(((out, inputs), (out, 1), (1,)),) * 2, ((inputs, 1),), *(((out,), (1,)),) * 2,
        )  # fmt: skip
        for name, path, shapes in zip(_PATHS, self.paths, allowed, strict=True):
            if path.shape not in shapes:
                raise AlgorithmError(
                    f"{self.algorithm}: {name} has shape {path.shape}, the layer is {layer.shape}: expected one of "
                    f"{list(shapes)}. The adapter is for another model."
                )

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Self:
        return dataclasses.replace(self, paths=tuple(path.map(change) for path in self.paths))

    def peft_fields(self, module: str) -> Fields | None:
        """C, D and E are off on a Linear without a bias, whatever the others have."""
        forms = [path.form for path in self.paths]
        ab, de = ({form for form in pair if form is not None} for pair in (forms[:2], forms[3:]))
        if len(ab) > 1 or len(de) > 1 or not ab:
            return None
        off = Otherwise("none")
        return {
            "peft_type": "GLORA", "r": Otherwise(1) if self.rank is None else self.rank, "config_A_B": ab.pop(),
            "config_C": forms[2] or off, "config_D_E": de.pop() if de else off,
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for name, path in zip(_PATHS, self.paths, strict=True):
            named |= path.tensors(name)
        return named

    def rows(self, start: int, stop: int) -> PeftGLoRA:
        factor, addition, column, *biases = self.paths
        cut = [path.rows(start, stop) for path in (factor, addition, *biases)]
        return PeftGLoRA((cut[0], cut[1], column, cut[2], cut[3]))
