"""DoRA, a modifier: the changed weight V = W + delta W keeps its direction and gets learnt magnitudes.

W' = mu * V / (||V|| + eps), the norm over everything but one axis; the bias stays. Tensor: `dora_scale`
(out, 1[, 1...]) or (out,) = per output row, (1, in[, 1...]) = per input column over outputs and kernel; PEFT's
`lora_magnitude_vector` is (out,), on convolutions (1, out, 1...), on embeddings (dim,). eps: float32's epsilon in
LyCORIS and OneTrainer (unless its `norm_epsilon` is off), 0 in PEFT and ai-toolkit. LyCORIS 2.2.0 took the mean of V in
place of its norm.
Sources: DoRA, arXiv 2402.09353; LyCORIS `functional/general.py`; PEFT `tuners/lora/dora.py`; OneTrainer.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.forms import Branch, Dense, Form, InputChange, LowRank, OutputChange, Scale
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.loha import LoHa
from diffadapt.algorithms.lokr import LoKr
from diffadapt.algorithms.lora import LoRA
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.algorithms.start import Start
from diffadapt.errors import AlgorithmError

EPS32 = torch.finfo(torch.float32).eps


@dataclass(frozen=True, eq=False)
class ScaledBranch(Branch):
    """Another branch behind scaled inputs, before scaled outputs. inputs (in,), outputs (out,), or None."""

    inner: Branch
    inputs: Tensor | None = None
    outputs: Tensor | None = None

    def change(self, x: Tensor, layer: Layer) -> Tensor:
        y = self.inner.change(x if self.inputs is None else x * layer.channels(self.inputs, x), layer)
        return y if self.outputs is None else y * layer.channels(self.outputs, y)


@dataclass(frozen=True, eq=False)
class DoRA(Delta):
    """A LoRA, LoHa or LoKr with magnitudes.

    magnitude: one number per output (on_input: per input channel of the weight), in the file's shape. mean: divide by
    the mean of V (LyCORIS 2.2.0). strength, correction: what `at_strength` sets, 1 in every file: V = W + strength *
    delta W, W' = V * (correction * (mu / (||V|| + eps) - 1) + 1). detached: training takes the norm for a constant,
    as PEFT does (section 4.3 of the paper); LyCORIS lets gradients through it.
    """

    algorithm: ClassVar[str] = "dora"
    options: ClassVar[Mapping[str, Any]] = {"inner": "lora", "on_input": False, "detached": True}

    inner: Delta
    magnitude: Tensor
    on_input: bool
    eps: float
    mean: bool = False
    strength: float = 1.0
    correction: float = 1.0
    detached: bool = field(default=False, compare=False)

    @classmethod
    def fresh(cls, start: Start) -> Self:
        """Magnitudes of the base weight's own, over an untrained `inner`: "lora", "loha" or "lokr", whose options count
        too. on_input: of input channels (LyCORIS' `wd_on_out=False`). detached: see the class."""
        start.require("dora", ungrouped=True)
        name, on_input = start.option("inner", "lora"), start.option("on_input", False)
        kinds: dict[str, type[Delta]] = {"lora": LoRA, "loha": LoHa, "lokr": LoKr}
        if name not in kinds:
            raise AlgorithmError(f"dora: inner is {name!r}; expected one of {', '.join(kinds)}.")
        inner, base = kinds[name].fresh(start), f32(start.weight()).cpu()
        axis = 1 if on_input else 0
        others = [dim for dim in range(base.ndim) if dim != axis]
        magnitude = torch.linalg.vector_norm(base, dim=others, keepdim=True)
        detached = start.option("detached", True)
        return cls(inner, magnitude, on_input, 0.0 if detached else EPS32, detached=detached)

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if "dora_scale" not in group:
            return None
        magnitude = group.take("dora_scale")
        inner: Delta | None = None
        for algorithm in (LoRA, LoHa, LoKr):
            inner = inner or algorithm.parse(group, context)
        if inner is None:
            raise AlgorithmError(
                f"{group.name}: DoRA magnitudes ({group.keys.get('dora_scale', 'dora_scale')}) without the LoRA, LoHa "
                "or LoKr that they belong to. The file is incomplete."
            )
        version = str(context.config.get("lycoris_version", ""))
        on_input = _on_input(group, magnitude, context)
        mean = version == "2.2.0" and on_input
        eps = 0.0 if version.startswith("2.") else _eps(inner, context)
        return cls(inner, magnitude, on_input, eps, mean, detached=context.writer in ("peft", "diffusers"))

    @property
    def rank(self) -> int | None:
        return self.inner.rank

    @property
    def _embedding(self) -> bool:
        return isinstance(self.inner, LoRA) and self.inner.embedding

    def _axis(self, dimensions: int) -> int:
        """The axis of the weight that the magnitudes belong to: an embedding's outputs are its columns."""
        return 1 if self.on_input or (self._embedding and dimensions > 1) else 0

    def factor(self, weight: Tensor, change: Tensor) -> Tensor:
        """c (out,) or (in[/groups],) with W' = c V, from the base weight and the inner delta at full strength."""
        changed = f32(weight) + change * self.strength
        others = [dim for dim in range(weight.ndim) if dim != self._axis(weight.ndim)]
        size = changed.mean(others) if self.mean else torch.linalg.vector_norm(changed, dim=others)
        return self._factor_of(size, weight)

    def _factor_of(self, size: Tensor, weight: Tensor) -> Tensor:
        """The factor where V has this norm."""
        size = (size.detach() if self.detached else size) + self.eps
        # A dead row has no direction: V = 0 stays 0 whatever it is multiplied by.
        factor = torch.where(size == 0, 1.0, f32(self.magnitude, weight).flatten() / size)
        return factor if self.correction == 1.0 else self.correction * (factor - 1) + 1

    def weight_delta(self, weight: Tensor) -> Tensor:
        change = self.inner.weight_delta(weight)
        factor = self.factor(weight, change)
        shape = [1] * weight.ndim
        shape[self._axis(weight.ndim)] = -1
        factor = factor.view(shape)
        # (c - 1) W + c dW: subtracting W from c V would lose the digits of small changes.
        return (factor - 1) * f32(weight) + factor * (change * self.strength)

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        change = self.inner.bias_delta(bias)
        return change if change is None else change * self.strength

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        base = weight()
        parts = self.inner.forms(layer, weight, bias)
        if any(isinstance(part, Dense) for part in parts):
            # No structure to keep: one dense delta costs less than two passes.
            rest = tuple(part for part in parts if not isinstance(part, Branch))
            return (Dense(self.weight_delta(base)), *rest)
        factor = self.factor(base, self.inner.weight_delta(base))
        if self.on_input:
            scaled = tuple(self._behind_inputs(part, factor, layer) for part in parts)
            return (InputChange(Scale((factor - 1).repeat(layer.groups))), *scaled)
        scaled = tuple(self._before_outputs(part, factor) for part in parts)
        return (OutputChange(Scale(factor - 1)), *scaled)

    def training_forms(
        self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]
    ) -> tuple[Form, ...]:
        """The norms from the inner delta's structure: |V|^2 = |W|^2 + 2 <W, dW> + |dW|^2, row by row."""
        parts = self.inner.training_forms(layer, weight, bias)
        if self.on_input or self.mean or self._embedding or any(isinstance(part, Dense) for part in parts):
            return self.forms(layer, weight, bias)
        base = weight()
        if self.detached:
            with torch.no_grad():
                crossed, squared = self.inner.row_products(base)
        else:  # a backward would keep temporaries of the weight's size: they are made again
            crossed, squared = checkpoint(self.inner.row_products, base, use_reentrant=False, preserve_rng_state=False)
        own = torch.linalg.vector_norm(f32(base).flatten(1), dim=1).square()
        # A row of zeros has no gradient of its norm: the floor keeps it a number.
        norm = (own + 2 * self.strength * crossed + self.strength**2 * squared).clamp_min(1e-30).sqrt()
        factor = self._factor_of(norm, base)
        return (OutputChange(Scale(factor - 1)), *(self._before_outputs(part, factor) for part in parts))

    def _before_outputs(self, part: Form, factor: Tensor) -> Form:
        factor = factor * self.strength
        if isinstance(part, LowRank):
            return LowRank(part.down, f32(part.up, factor) * factor.view(-1, 1), part.scale)
        return ScaledBranch(part, outputs=factor) if isinstance(part, Branch) else part

    def _behind_inputs(self, part: Form, factor: Tensor, layer: Layer) -> Form:
        factor = factor * self.strength
        if isinstance(part, LowRank):
            down = f32(part.down, factor).reshape(part.rank, *layer.shape[1:])
            return LowRank(down * factor.view(1, -1, *(1,) * (down.ndim - 2)), part.up, part.scale)
        return ScaledBranch(part, inputs=factor.repeat(layer.groups)) if isinstance(part, Branch) else part

    def check(self, layer: Layer) -> None:
        self.inner.check(layer)
        channels = layer.shape[1] if self.on_input else layer.out_features
        if self.magnitude.numel() != channels:
            side = "input" if self.on_input else "output"
            raise AlgorithmError(
                f"dora: {tuple(self.magnitude.shape)} magnitudes per {side} for a {layer.kind} layer with {channels}."
            )

    def peft_fields(self, module: str) -> Fields | None:
        """PEFT has DoRA over LoRA, with a magnitude per output."""
        fields = self.inner.peft_fields(module) if isinstance(self.inner, LoRA) else None
        if fields is None or self.on_input or self.mean or (self.strength, self.correction) != (1.0, 1.0):
            return None
        return {**fields, "use_dora": True}

    def tensors(self) -> dict[str, Tensor]:
        """The inner delta's tensors and the magnitudes; `at_strength` is not part of any file."""
        return self.inner.tensors() | {"dora_scale": self.magnitude}

    def rows(self, start: int, stop: int) -> DoRA:
        if self.on_input:
            raise AlgorithmError(
                "dora: magnitudes per input column take their norms over all rows of a fused module; its rows cannot "
                "be separated. Apply the adapter to the fused module."
            )
        axis = max(range(self.magnitude.ndim), key=lambda dim: self.magnitude.shape[dim])
        magnitude = self.magnitude.narrow(axis, start, stop - start)
        return dataclasses.replace(self, inner=self.inner.rows(start, stop), magnitude=magnitude)

    def at_strength(self, multiplier: float, rule: str) -> DoRA:
        """ "lycoris": delta W in full, the magnitudes' correction times the multiplier (0 leaves W + delta W).
        "peft" (and ai-toolkit): delta W times the multiplier, the magnitudes in full (0 leaves mu * W / ||W||)."""
        if rule == "lycoris":
            return dataclasses.replace(self, correction=multiplier)
        if rule == "peft":
            return dataclasses.replace(self, strength=multiplier)
        raise AlgorithmError(f"dora knows no strength rule '{rule}'; use 'linear', 'lycoris' or 'peft'.")


def _on_input(group: TensorGroup, magnitude: Tensor, context: Context) -> bool:
    """Whether the magnitudes belong to input columns: the axis that is not of size 1 decides."""
    shape = tuple(magnitude.shape)
    wide = [dim for dim, size in enumerate(shape) if size != 1]
    if len(wide) > 1 or (wide and wide[0] > 1):
        raise AlgorithmError(
            f"{group.name}: the DoRA magnitudes have shape {shape}; expected (out, 1, ...) or (1, in, ...)."
        )
    if magnitude.ndim < 2 or not wide or wide[0] == 0:
        return False
    # PEFT writes the outputs of a convolution as (1, out, 1, ...). The key says so where there is one: OneTrainer's
    # DIFFUSERS format has PEFT's for magnitudes of outputs, and beside them its own `dora_scale` for those of inputs.
    key = group.keys.get("dora_scale")
    of_peft = "magnitude" in key if key is not None else context.writer in ("peft", "diffusers")
    return not (of_peft and magnitude.ndim > 2)


def _eps(inner: Delta, context: Context) -> float:
    if context.writer != "onetrainer":
        return 0.0 if context.writer in ("peft", "diffusers", "ai_toolkit") else EPS32
    return EPS32 if isinstance(inner, LoKr) or _has_eps(context) else 0.0


def _has_eps(context: Context) -> bool:
    """OneTrainer's `lora_decompose_norm_epsilon`, on by default: its header holds the settings if it was told to."""
    try:
        settings = json.loads(context.metadata.get("ot_config") or "{}")
    except (ValueError, RecursionError):
        return True
    return not isinstance(settings, dict) or settings.get("lora_decompose_norm_epsilon") is not False
