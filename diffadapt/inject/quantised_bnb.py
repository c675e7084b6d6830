"""bitsandbytes' 8-bit and 4-bit weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from diffadapt.errors import MergeError
from diffadapt.inject.quantiser import Quantiser, class_names


class BitsAndBytes8(Quantiser):
    """bitsandbytes' Int8Params. The row statistics are the parameter's until the first forward, then the module's."""

    name = "bitsandbytes (8-bit)"

    def owns(self, value: Tensor) -> bool:
        return "Int8Params" in class_names(value) and value.dtype == torch.int8

    @staticmethod
    def _statistics(module: nn.Module, value: Any) -> Tensor:
        own = getattr(value, "SCB", None)
        found = own if own is not None else getattr(getattr(module, "state", None), "SCB", None)
        if not isinstance(found, Tensor):
            raise MergeError(f"The 8-bit weight of {type(module).__name__} has no row statistics (SCB); reload it.")
        return found

    def dequantise(self, module: nn.Module, value: Tensor) -> Tensor:
        from bitsandbytes.functional import int8_vectorwise_dequant

        plain: Tensor = int8_vectorwise_dequant(value.data, self._statistics(module, value).to(value.device))
        return plain

    def parts(self, module: nn.Module, value: Tensor) -> list[Tensor]:
        return [value.data, self._statistics(module, value)]

    def take(self, module: nn.Module) -> Tensor:
        value: Any = module.weight
        value.CB, value.SCB = value.data, self._statistics(module, value)
        return value  # type: ignore[no-any-return]

    def requantise(self, module: nn.Module, value: Tensor, weight: Tensor) -> Tensor:
        from bitsandbytes.functional import int8_vectorwise_quant

        codes, rows, _ = int8_vectorwise_quant(weight.half())
        kind: Any = type(value)
        packed: Tensor = kind(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=rows)
        return packed

    def install(self, module: nn.Module, value: Tensor) -> None:
        super().install(module, value)
        state: Any = module.state
        state.CB = state.SCB = None  # the next forward takes them from the parameter


class BitsAndBytes4(Quantiser):
    """bitsandbytes' Params4bit. On processors with AVX512-BF16 a forward reorders the bytes in place."""

    name = "bitsandbytes (4-bit)"

    def owns(self, value: Tensor) -> bool:
        return "Params4bit" in class_names(value) and getattr(value, "quant_state", None) is not None

    @staticmethod
    def _ordered(value: Any) -> tuple[Tensor, Any]:
        """The bytes in the order of a file, and a state that goes with them; the parameter stays as it is."""
        state = copy.copy(value.quant_state)
        if not getattr(state, "packing_format_for_cpu", False):
            return value.data, state
        from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

        state.original_nested = False  # or the inverse would quantise the block sizes again
        state.absmax = state.absmax.T.reshape(-1).float()
        data, state = _convert_weight_packed_for_cpu_inverse(value.data, state)
        return data, state

    def dequantise(self, module: nn.Module, value: Tensor) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        data, state = self._ordered(value)
        plain: Tensor = dequantize_4bit(data, state)
        return plain

    def parts(self, module: nn.Module, value: Tensor) -> list[Tensor]:
        # The codes only: reordering rounds the block sizes to bfloat16.
        return [self._ordered(value)[0].view(torch.uint8).reshape(-1)]

    def requantise(self, module: nn.Module, value: Tensor, weight: Tensor) -> Tensor:
        from bitsandbytes.functional import quantize_4bit

        old: Any = value
        nested = bool(getattr(old.quant_state, "original_nested", False) or old.quant_state.nested)
        dtype = getattr(old.quant_state, "original_dtype", None) or old.quant_state.dtype
        codes, state = quantize_4bit(
            weight.to(dtype), blocksize=old.quant_state.blocksize, compress_statistics=nested,
            quant_type=old.quant_state.quant_type, quant_storage=old.quant_storage,
        )  # fmt: skip
        packed: Tensor = type(old)(
            codes, requires_grad=False, quant_state=state, blocksize=state.blocksize, compress_statistics=nested,
            quant_type=state.quant_type, quant_storage=old.quant_storage, module=module, bnb_quantized=True,
        )  # fmt: skip
        return packed

    def install(self, module: nn.Module, value: Tensor) -> None:
        super().install(module, value)
        module.quant_state = value.quant_state  # type: ignore[attr-defined]
