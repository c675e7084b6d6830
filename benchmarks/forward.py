"""What do live adapters add to a forward pass of one SDXL transformer block (1280 channels, 1024 px, batch of two)?

All ten Linear layers carry adapters. One LoRA of rank 64 against four of rank 16, with diffadapt and with PEFT; LoKr
and OFT against a LoRA of as many numbers. Each variant has its own copy of the block; all take turns in every round.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

import diffadapt
from benchmarks.timing import DEVICE, alternate, median, ratio

RANK, ADAPTERS, TOKENS, BATCH = 16, 4, 1024, 2
LOKR_FACTOR, OFT_BLOCK = 8, 32
ROUNDS = {torch.float32: 7, torch.bfloat16: 15}
Adapter = dict[str, Tensor]


def block(dtype: torch.dtype) -> nn.Module:
    """The transformer block of which SDXL's UNet holds sixty at this width."""
    torch.manual_seed(0)
    made: nn.Module = BasicTransformerBlock(1280, 20, 64, cross_attention_dim=2048, activation_fn="geglu")
    return made.to(DEVICE, dtype).requires_grad_(False).eval()


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def lora(model: nn.Module, rank: int, seed: int = 0) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, m in linears(model).items():
        tensors[f"{name}.lora_A.weight"] = 0.02 * torch.randn(rank, m.in_features, generator=generator)
        tensors[f"{name}.lora_B.weight"] = 0.02 * torch.randn(m.out_features, rank, generator=generator)
    return tensors


def lokr(model: nn.Module) -> Adapter:
    generator, f = torch.Generator().manual_seed(0), LOKR_FACTOR
    tensors = {}
    for name, m in linears(model).items():
        tensors[f"{name}.lokr_w1"] = 0.1 * torch.randn(f, f, generator=generator)
        tensors[f"{name}.lokr_w2"] = 0.02 * torch.randn(m.out_features // f, m.in_features // f, generator=generator)
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    return tensors


def oft(model: nn.Module) -> Adapter:
    generator, b = torch.Generator().manual_seed(0), OFT_BLOCK
    tensors = {}
    for name, m in linears(model).items():
        tensors[f"{name}.oft_blocks"] = 0.02 * torch.randn(m.out_features // b, b, b, generator=generator)
        tensors[f"{name}.alpha"] = torch.tensor(0.0)
    return tensors


def size(adapter: Adapter) -> int:
    return sum(tensor.numel() for key, tensor in adapter.items() if not key.endswith("alpha"))


def equal_rank(model: nn.Module, adapter: Adapter) -> int:
    """The rank of the LoRA that has as many numbers as another adapter."""
    return max(1, round(size(adapter) / size(lora(model, 1))))


def ours(base: nn.Module, *adapters: Adapter) -> nn.Module:
    model: Any = diffadapt.enable(deepcopy(base))
    for number, adapter in enumerate(adapters):
        model.load_adapter(adapter, adapter_name=f"a{number}")
    made: nn.Module = model
    return made


def peft(base: nn.Module, rank: int, count: int) -> nn.Module:
    """PEFT's own layers, `count` adapters active at once, nothing merged."""
    from peft import LoraConfig, get_peft_model

    def config() -> LoraConfig:
        return LoraConfig(r=rank, lora_alpha=rank, target_modules=list(linears(base)), init_lora_weights=False)

    model = get_peft_model(deepcopy(base), config(), adapter_name="a0", autocast_adapter_dtype=False)
    names = [f"a{number}" for number in range(count)]
    for name in names[1:]:
        model.add_adapter(name, config())
    model.base_model.set_adapter(names)
    inner: nn.Module = model.base_model.model.to(DEVICE, next(base.parameters()).dtype)
    return inner.requires_grad_(False).eval()


@torch.no_grad()
def compare(dtype: torch.dtype) -> dict[str, Any]:
    base = block(dtype)
    kron, rotation = lokr(base), oft(base)
    kron_rank, rotation_rank = equal_rank(base, kron), equal_rank(base, rotation)
    models = {
        "base": base,
        "lora_1": ours(base, lora(base, RANK * ADAPTERS)),
        "lora_4": ours(base, *(lora(base, RANK, seed=i) for i in range(ADAPTERS))),
        "peft_1": peft(base, RANK * ADAPTERS, 1),
        "peft_4": peft(base, RANK, ADAPTERS),
        "lokr": ours(base, kron),
        "lora_as_lokr": ours(base, lora(base, kron_rank)),
        "oft": ours(base, rotation),
        "lora_as_oft": ours(base, lora(base, rotation_rank)),
    }
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, TOKENS, 1280, generator=generator).to(DEVICE, dtype)
    text = torch.randn(BATCH, 77, 2048, generator=generator).to(DEVICE, dtype)
    calls: dict[str, Callable[[], object]] = {
        name: partial(model, x, encoder_hidden_states=text) for name, model in models.items()
    }
    taken = alternate(calls, ROUNDS[dtype], warm_up=2)
    return {
        "base_ms": float(f"{median(taken['base']) * 1e3:.4g}"),
        "by_base": {name: ratio(values, taken["base"]) for name, values in taken.items() if name != "base"},
        "four_by_one": ratio(taken["lora_4"], taken["lora_1"]),
        "peft_four_by_one": ratio(taken["peft_4"], taken["peft_1"]),
        "peft_by_ours_four": ratio(taken["peft_4"], taken["lora_4"]),
        "lokr_by_lora": ratio(taken["lokr"], taken["lora_as_lokr"]),
        "oft_by_lora": ratio(taken["oft"], taken["lora_as_oft"]),
        "equal_ranks": {"lokr": kron_rank, "oft": rotation_rank},
    }


def measure() -> dict[str, Any]:
    setting = {"channels": 1280, "tokens": TOKENS, "batch": BATCH, "rank": RANK, "adapters": ADAPTERS}
    return setting | {str(dtype).removeprefix("torch."): compare(dtype) for dtype in (torch.float32, torch.bfloat16)}
