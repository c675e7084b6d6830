"""Weights that a quantiser has packed: what they are as numbers, and how its own functions pack them again.

A quantised weight is recognised by the name of its class; its library is imported only where the class shows that it is
loaded. Every number comes from the library's own functions, so that a delta sees the weight that the module's forward
computes with. What one of them cannot pack again is never packed by anybody else's code: merging is then refused.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from diffadapt.errors import MergeError
from diffadapt.inject.quantised_bnb import BitsAndBytes4, BitsAndBytes8
from diffadapt.inject.quantiser import Quantiser, class_names


class TorchAO(Quantiser):
    """torchao's tensor subclasses. Packed again: Int8Tensor, Float8Tensor, IntxUnpackedToInt8Tensor; the packing of the
    int4 layouts runs on their GPUs only, where the project cannot try it."""

    name = "torchao"
    REPACKED = ("Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor")

    def owns(self, value: Tensor) -> bool:
        return type(value).__module__.startswith("torchao.")

    def dequantise(self, module: nn.Module, value: Tensor) -> Tensor:
        try:
            plain: Tensor = value.detach().dequantize()
        except (NotImplementedError, RuntimeError) as error:
            raise MergeError(
                f"torchao cannot dequantise its {type(value).__name__} ({error}). Use a plain LoRA, or load the model "
                "unquantised."
            ) from error
        return plain

    def refusal(self, module: nn.Module, value: Tensor) -> str | None:
        kind = type(value).__name__
        if kind not in self.REPACKED:
            return f"torchao's {kind} is not one of those that can be packed again here ({', '.join(self.REPACKED)})"
        if getattr(value, "act_pre_scale", None) is not None:
            return "its inputs are scaled before the product (SmoothQuant), so that the weight is not the module's own"
        if kind != "IntxUnpackedToInt8Tensor" and self._granularity(value) is None:
            return f"torchao quantised it in blocks of {list(value.block_size)}"  # type: ignore[attr-defined]
        return None

    @staticmethod
    def _granularity(value: Any) -> Any:
        from torchao.quantization.granularity import PerGroup, PerRow, PerTensor

        block, shape = list(value.block_size), list(value.shape)
        if block == shape:
            return PerTensor()
        if block == [1, *shape[1:]]:
            return PerRow()
        return PerGroup(block[-1]) if all(size == 1 for size in block[:-1]) else None

    def requantise(self, module: nn.Module, value: Tensor, weight: Tensor) -> Tensor:
        from torchao.quantization.quant_primitives import MappingType

        old: Any = value.detach()
        kind = type(old).__name__
        zero = getattr(old, "zero_point", None)
        mapping = MappingType.SYMMETRIC if zero is None or not bool(zero.any()) else MappingType.ASYMMETRIC
        packed: Tensor
        if kind == "IntxUnpackedToInt8Tensor":
            # Its scales have the weight's dtype: codes made for unrounded ones would not fit them.
            packed = type(old).from_hp(
                weight.to(old.dtype), tuple(old.block_size), old.target_dtype, mapping_type=mapping,
                activation_quantization=old.activation_quantization,
            )  # fmt: skip
        elif kind == "Float8Tensor":
            packed = type(old).from_hp(
                weight, float8_dtype=old.qdata.dtype, granularity=self._granularity(old), mm_config=old.mm_config,
                kernel_preference=old.kernel_preference, act_quant_kwargs=old.act_quant_kwargs,
            ).to(old.dtype)  # fmt: skip
        else:
            packed = type(old).from_hp(
                weight, self._granularity(old), mapping_type=mapping, act_quant_kwargs=old.act_quant_kwargs,
                act_quant_scale=old.act_quant_scale, act_quant_zero_point=old.act_quant_zero_point,
                reduce_range=old.reduce_range,
            ).to(old.dtype)  # fmt: skip
        return packed


class Quanto(Quantiser):
    """optimum-quanto's QModules, frozen."""

    name = "optimum-quanto"

    def owns(self, value: Tensor) -> bool:
        return type(value).__module__.startswith("optimum.quanto.")

    def dequantise(self, module: nn.Module, value: Tensor) -> Tensor:
        plain: Tensor = value.detach().dequantize()
        return plain

    def refusal(self, module: nn.Module, value: Tensor) -> str | None:
        if getattr(module, "weight_qtype", None) is None or not hasattr(module, "optimizer"):
            return f"{type(module).__name__} is not a module of optimum-quanto that knows how its weight was quantised"
        return None

    def requantise(self, module: nn.Module, value: Tensor, weight: Tensor) -> Tensor:
        # `qweight` quantises a weight that is not frozen, with the module's own settings: let a shadow of it do that.
        shadow: Any = copy.copy(module)
        shadow._parameters = {**module._parameters, "weight": nn.Parameter(weight.to(value.dtype), False)}
        packed: Tensor = shadow.qweight
        return packed.detach()


class GGUF(Quantiser):
    """Diffusers' GGUFParameter: blocks of bytes. The `gguf` package packs the plain block types, no K-quants."""

    name = "GGUF"

    def owns(self, value: Tensor) -> bool:
        return "GGUFParameter" in class_names(value) and getattr(value, "quant_type", None) is not None

    def dequantise(self, module: nn.Module, value: Tensor) -> Tensor:
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        plain: Tensor = dequantize_gguf_tensor(value)
        return plain.detach()

    def parts(self, module: nn.Module, value: Tensor) -> list[Tensor]:
        return [value.as_tensor().detach()]  # type: ignore[attr-defined]

    def refusal(self, module: nn.Module, value: Tensor) -> str | None:
        import numpy
        from gguf import GGML_QUANT_SIZES, quants

        kind: Any = value.quant_type  # type: ignore[attr-defined]
        try:
            quants.quantize(numpy.zeros((1, GGML_QUANT_SIZES[kind][0]), numpy.float32), kind)
        except NotImplementedError:
            return f"the gguf package can read {kind.name} but not write it"
        return None

    def requantise(self, module: nn.Module, value: Tensor, weight: Tensor) -> Tensor:
        from gguf import quants

        old: Any = value
        data = torch.from_numpy(quants.quantize(weight.cpu().numpy(), old.quant_type))
        packed: Tensor = type(old)(data.to(old.device), quant_type=old.quant_type)
        return packed


QUANTISERS: tuple[Quantiser, ...] = (TorchAO(), Quanto(), GGUF(), BitsAndBytes8(), BitsAndBytes4())


def quantiser_of(value: object) -> Quantiser | None:
    """Who packed a parameter, or None for plain ones."""
    if type(value) in (Tensor, nn.Parameter) or not isinstance(value, Tensor):
        return None
    return next((quantiser for quantiser in QUANTISERS if quantiser.owns(value)), None)


def refusal(module: nn.Module) -> str | None:
    """Why deltas cannot be merged into a quantised module, or None (also for one that is not quantised)."""
    weight = getattr(module, "weight", None)
    quantiser = quantiser_of(weight)
    if not isinstance(weight, Tensor) or quantiser is None:
        if isinstance(weight, Tensor) and not weight.is_floating_point():
            return f"the weight is quantised ({weight.dtype}) in a way that is not known here"
        return None
    reason = quantiser.refusal(module, weight)
    return None if reason is None else f"the weight is quantised by {quantiser.name}, and {reason}"


def dequantised(module: nn.Module, value: Tensor, name: str = "weight") -> Tensor:
    """A parameter as plain numbers; plain ones as they are. Raises MergeError for those packed by unknown hands."""
    quantiser = quantiser_of(value)
    if quantiser is not None:
        return quantiser.dequantise(module, value)
    if not value.is_floating_point():
        raise MergeError(
            f"The {name} of {type(module).__name__} is quantised ({value.dtype}) in a way that is not known here; an "
            "adapter that needs the base weight cannot act on it. Load the model unquantised, or use a plain LoRA."
        )
    return value.detach()
