"""What does a batch cost whose eight samples carry eight adapters, beside the same batch with one adapter?

One SDXL transformer block as in `forward`, adapters of rank 16 on all ten Linear layers. A mix of algorithms (LoRA,
LoKr, OFT) is held against the mean of batches with one of each, weighed by how many samples carry which. Peer: PEFT's
mixed batch (`adapter_names`), which is for its LoRA. Every model is a copy of the block; all take turns in every round.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.forward import RANK, Adapter, block, linears, lokr, lora, oft, ours
from benchmarks.timing import alternate, median, ratio

SAMPLES, TOKENS = 8, 256
ROUNDS = {torch.float32: 5, torch.bfloat16: 5}
KINDS = {"lora": 3, "lokr": 3, "oft": 2}
"""How many samples of the mix of algorithms carry which."""


def mixed(base: nn.Module, adapters: list[Adapter], entries: list[str]) -> nn.Module:
    """The block with all adapters loaded, each sample of a batch with its own."""
    model: Any = ours(base, *adapters)
    model.adapters.mix_batch(entries)
    made: nn.Module = model
    return made


def peft(base: nn.Module, count: int) -> Any:
    """PEFT's own model, which takes `adapter_names`."""
    from peft import LoraConfig, get_peft_model

    def config() -> LoraConfig:
        return LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(linears(base)), init_lora_weights=False)

    model = get_peft_model(deepcopy(base), config(), adapter_name="a0", autocast_adapter_dtype=False)
    for number in range(1, count):
        model.add_adapter(f"a{number}", config())
    return model.to(next(base.parameters()).dtype).requires_grad_(False).eval()


def models_of(base: nn.Module) -> dict[str, nn.Module]:
    loras = [lora(base, RANK, seed=number) for number in range(SAMPLES)]
    kinds = {"lora": loras[0], "lokr": lokr(base), "oft": oft(base)}
    of_kinds = [f"a{number}" for number, kind in enumerate(kinds) for _ in range(KINDS[kind])]
    return {
        "base": base,
        "one": ours(base, loras[0]),
        "eight": mixed(base, loras, [f"a{number}" for number in range(SAMPLES)]),
        "lokr": ours(base, kinds["lokr"]),
        "oft": ours(base, kinds["oft"]),
        "kinds": mixed(base, list(kinds.values()), of_kinds),
    }


@torch.no_grad()
def compare(dtype: torch.dtype, tokens: int = TOKENS) -> dict[str, Any]:
    base = block(dtype)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, tokens, 1280, generator=generator).to(dtype)
    text = torch.randn(SAMPLES, 77, 2048, generator=generator).to(dtype)
    calls: dict[str, Callable[[], object]] = {
        name: partial(model, x, encoder_hidden_states=text) for name, model in models_of(base).items()
    }
    calls["peft_one"] = partial(peft(base, 1), x, encoder_hidden_states=text)
    names = [f"a{number}" for number in range(SAMPLES)]
    calls["peft_eight"] = partial(peft(base, SAMPLES), x, encoder_hidden_states=text, adapter_names=names)
    taken = alternate(calls, ROUNDS[dtype])
    singles = zip(taken["one"], taken["lokr"], taken["oft"], strict=True)
    mean = [sum(n * s for n, s in zip(KINDS.values(), own, strict=True)) / SAMPLES for own in singles]
    return {
        "base_ms": float(f"{median(taken['base']) * 1e3:.4g}"),
        "one_by_base": ratio(taken["one"], taken["base"]),
        "eight_by_base": ratio(taken["eight"], taken["base"]),
        "throughput_of_eight": ratio(taken["one"], taken["eight"]),
        "throughput_of_kinds": ratio(mean, taken["kinds"]),
        "peft_throughput_of_eight": ratio(taken["peft_one"], taken["peft_eight"]),
        "peft_eight_by_base": ratio(taken["peft_eight"], taken["base"]),
        "peft_eight_by_ours": ratio(taken["peft_eight"], taken["eight"]),
    }


def measure() -> dict[str, Any]:
    setting = {"channels": 1280, "tokens": TOKENS, "samples": SAMPLES, "rank": RANK, "kinds": KINDS}
    return setting | {str(dtype).removeprefix("torch."): compare(dtype) for dtype in ROUNDS}
