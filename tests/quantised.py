"""`tiny.unet`, quantised by the real libraries, and the same with its weights dequantised by them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from diffadapt.inject.quantised import quantiser_of
from tests import tiny


def unet(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """A tiny UNet in one of FORMATS; its Linears are quantised. Skips where the library is missing."""
    library, make = FORMATS[name]
    if library is not None:
        pytest.importorskip(library, reason=f"the library that writes {name} is not installed")
    return make(folder, dtype).eval()


def _configured(folder: Path, dtype: torch.dtype, config: Any) -> UNet2DConditionModel:
    tiny.unet().save_pretrained(folder)
    return UNet2DConditionModel.from_pretrained(folder, quantization_config=config, torch_dtype=dtype)


def _torchao(config: str, **options: Any) -> Callable[[Path, torch.dtype], UNet2DConditionModel]:
    def make(folder: Path, dtype: torch.dtype) -> UNet2DConditionModel:
        import torchao.quantization as ao
        from diffusers import TorchAoConfig

        return _configured(folder, dtype, TorchAoConfig(getattr(ao, config)(**options)))

    return make


def _quanto(weights: str) -> Callable[[Path, torch.dtype], UNet2DConditionModel]:
    def make(folder: Path, dtype: torch.dtype) -> UNet2DConditionModel:
        from diffusers import QuantoConfig

        return _configured(folder, dtype, QuantoConfig(weights_dtype=weights))

    return make


def _gguf(kind: str) -> Callable[[Path, torch.dtype], UNet2DConditionModel]:
    def make(folder: Path, dtype: torch.dtype) -> UNet2DConditionModel:
        import gguf
        from diffusers import GGUFQuantizationConfig

        plain = tiny.unet()
        plain.save_config(folder)
        writer = gguf.GGUFWriter(folder / "unet.gguf", "tiny")
        linears = {f"{path}.weight" for path, module in plain.named_modules() if isinstance(module, nn.Linear)}
        quantised = gguf.GGMLQuantizationType[kind]
        for key, tensor in plain.state_dict().items():
            values = tensor.numpy()
            if key in linears:
                writer.add_tensor(key, gguf.quants.quantize(values, quantised), raw_dtype=quantised)
            else:
                writer.add_tensor(key, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return UNet2DConditionModel.from_single_file(
            str(folder / "unet.gguf"), config=str(folder), torch_dtype=dtype,
            quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
        )  # fmt: skip

    return make


def _bitsandbytes(bits: int, **options: Any) -> Callable[[Path, torch.dtype], UNet2DConditionModel]:
    """Diffusers' own quantiser insists on a GPU; the modules it would put in place also run without."""

    def make(folder: Path, dtype: torch.dtype) -> UNet2DConditionModel:
        import bitsandbytes as bnb

        model = tiny.unet().to(dtype)
        for path, module in list(model.named_modules()):
            # The 4-bit kernel for processors with AVX512-BF16 refuses rows shorter than a block.
            if not isinstance(module, nn.Linear) or (bits == 4 and module.in_features % 64):
                continue
            sizes, bias = (module.in_features, module.out_features), module.bias is not None
            if bits == 8:
                packed = bnb.nn.Linear8bitLt(*sizes, bias, has_fp16_weights=False)
                packed.weight = bnb.nn.Int8Params(module.weight.data, requires_grad=False, has_fp16_weights=False)
            else:
                packed = bnb.nn.Linear4bit(*sizes, bias, compute_dtype=dtype, **options)
                packed.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False, module=packed, **options)
            packed.bias = module.bias
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, packed.to("cpu"))
        return model.requires_grad_(False)

    return make


def _layerwise(storage: torch.dtype) -> Callable[[Path, torch.dtype], UNet2DConditionModel]:
    def make(folder: Path, dtype: torch.dtype) -> UNet2DConditionModel:
        model = tiny.unet().to(dtype)
        model.enable_layerwise_casting(storage_dtype=storage, compute_dtype=dtype)
        return model

    return make


FORMATS: dict[str, tuple[str | None, Callable[[Path, torch.dtype], UNet2DConditionModel]]] = {
    "torchao int8": ("torchao", _torchao("Int8WeightOnlyConfig")),
    "torchao int8 dynamic": ("torchao", _torchao("Int8DynamicActivationInt8WeightConfig")),
    "torchao float8": ("torchao", _torchao("Float8WeightOnlyConfig")),
    "torchao intx": ("torchao", _torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4)),
    "quanto int8": ("optimum.quanto", _quanto("int8")),
    "quanto float8": ("optimum.quanto", _quanto("float8")),
    "quanto int4": ("optimum.quanto", _quanto("int4")),
    "quanto int2": ("optimum.quanto", _quanto("int2")),
    "gguf Q8_0": ("gguf", _gguf("Q8_0")),
    "gguf Q5_1": ("gguf", _gguf("Q5_1")),
    "gguf Q4_0": ("gguf", _gguf("Q4_0")),
    "gguf BF16": ("gguf", _gguf("BF16")),
    "bitsandbytes 8 bit": ("bitsandbytes", _bitsandbytes(8)),
    "bitsandbytes nf4": ("bitsandbytes", _bitsandbytes(4, quant_type="nf4", compress_statistics=False)),
    "bitsandbytes nf4 nested": ("bitsandbytes", _bitsandbytes(4, quant_type="nf4", compress_statistics=True)),
    "bitsandbytes fp4": ("bitsandbytes", _bitsandbytes(4, quant_type="fp4", compress_statistics=False)),
    "layerwise float8": (None, _layerwise(torch.float8_e4m3fn)),
}
"""Name -> (the library it needs, what makes it)."""

ROUNDED_INPUTS = ("torchao int8 dynamic", "bitsandbytes 8 bit")
"""These quantise their inputs as well: what is compared is only as exact as that."""


def dequantised(model: UNet2DConditionModel, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """The plain UNet with the weights of a quantised one, as the library's own functions give them."""
    plain = tiny.unet().to(dtype)
    for path, module in model.named_modules():
        twin = plain.get_submodule(path)
        if isinstance(getattr(twin, "weight", None), Tensor):
            twin.weight.data = library_weight(module).to(dtype)
            if getattr(twin, "bias", None) is not None:
                twin.bias.data = module.bias.data.to(dtype)
    return plain


def library_weight(module: nn.Module) -> Tensor:
    """A module's weight, dequantised by its library."""
    weight, kind = module.weight, type(module.weight).__name__
    if kind == "GGUFParameter":
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        return dequantize_gguf_tensor(weight)
    if kind in ("Int8Params", "Params4bit"):
        from diffusers.quantizers.bitsandbytes.utils import dequantize_bnb_weight

        return dequantize_bnb_weight(weight, getattr(module, "state", None))
    return weight.detach().dequantize() if hasattr(weight, "__tensor_flatten__") else weight.data


def packed_parts(model: nn.Module) -> dict[str, list[Tensor]]:
    """The bits of all weights, by module."""
    found = {}
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            own = quantiser_of(weight)
            parts = [weight.detach()] if own is None else own.parts(module, weight)
            found[path] = [part.contiguous().reshape(-1).view(torch.uint8).clone() for part in parts]
    return found


def same(one: dict[str, list[Tensor]], other: dict[str, list[Tensor]]) -> bool:
    """Whether two of them hold the very bits."""
    return list(one) == list(other) and all(
        torch.equal(a, b) for path in one for a, b in zip(one[path], other[path], strict=True)
    )
