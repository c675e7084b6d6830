"""How long does it take to make one SDXL LoRA of two?

Two files of rank 32 for 722 layers as in `load`, brought to rank 32 by the best approximation of the sum (`svd`) and by
`ties_svd`. Peer: PEFT's `add_weighted_adapter` of the same names, with `svd_full_matrices=False`, which is faster than
its default. It decomposes every full matrix, which takes too long for a whole file: both take turns on one layer of
every shape, and a file's time is the layers' times how many there are of the shape. Ours is taken over the file too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import diffadapt
from benchmarks import sdxl
from benchmarks.timing import alternate, median, ratio, seconds
from diffadapt.adapter import Adapter, TargetKey
from diffadapt.algorithms.lora import LoRA

WEIGHTS = (0.8, 0.6)
METHODS: dict[str, dict[str, Any]] = {"svd": {}, "ties_svd": {"density": 0.5}}
ROUNDS = 2


def shapes(model: nn.Module) -> dict[tuple[int, int], list[str]]:
    """The names of the layers of every shape, smallest first."""
    found: dict[tuple[int, int], list[str]] = {}
    for name, layer in sdxl.targets(model).items():
        found.setdefault((layer.out_features, layer.in_features), []).append(name)
    return dict(sorted(found.items(), key=lambda item: item[0][0] * item[0][1]))


def on_one(adapters: Sequence[Adapter], name: str) -> list[tuple[Adapter, float]]:
    """The adapters, on one layer alone, with their weights."""
    key = TargetKey("unet", name)
    alone = [replace(adapter, targets={key: adapter.targets[key]}) for adapter in adapters]
    return list(zip(alone, WEIGHTS, strict=True))


@torch.no_grad()
def peft(pairs: list[tuple[Adapter, float]]) -> Any:
    """PEFT's model of the one layer, with both adapters."""
    from peft import LoraConfig, get_peft_model

    model: Any = None
    for number, (adapter, _) in enumerate(pairs):
        (delta,) = adapter.targets.values()
        if not isinstance(delta, LoRA):
            raise TypeError("these files hold LoRAs")
        config = LoraConfig(r=delta.rank, lora_alpha=round(delta.alpha), target_modules=["layer"])
        if model is None:
            base = nn.ModuleDict({"layer": nn.Linear(delta.down.shape[1], delta.up.shape[0], bias=False)})
            model = get_peft_model(base, config, adapter_name="a0")
        else:
            model.add_adapter(f"a{number}", config)
        layer = model.base_model.model["layer"]
        layer.lora_A[f"a{number}"].weight.copy_(delta.down)
        layer.lora_B[f"a{number}"].weight.copy_(delta.up)
    return model


@torch.no_grad()
def theirs(model: Any, method: str) -> Tensor:
    """The change that PEFT's combination makes."""
    model.add_weighted_adapter(
        ["a0", "a1"], list(WEIGHTS), "mix", combination_type=method, svd_rank=sdxl.RANK, svd_full_matrices=False,
        **METHODS[method],
    )  # fmt: skip
    change: Tensor = model.base_model.model["layer"].get_delta_weight("mix")
    model.delete_adapter("mix")
    return change


def turns(pairs: list[tuple[Adapter, float]]) -> dict[str, list[float]]:
    """Seconds of every method by both, on one layer."""
    model = peft(pairs)
    calls: dict[str, Callable[[], object]] = {}
    for method, options in METHODS.items():
        calls[method] = partial(diffadapt.combine, pairs, method, rank=sdxl.RANK, **options)
        calls[f"peft_{method}"] = partial(theirs, model, method)
    return alternate(calls, ROUNDS, warm_up=0)


def apart(pairs: list[tuple[Adapter, float]], method: str) -> float:
    """How far the two results are from each other, relative to PEFT's."""
    truth = theirs(peft(pairs), method)
    (delta,) = diffadapt.combine(pairs, method, rank=sdxl.RANK, **METHODS[method]).targets.values()
    return float(f"{float((delta.weight_delta(truth) - truth).norm() / truth.norm()):.2g}")


def measure(largest: int = 1 << 40) -> dict[str, Any]:
    """largest: layers with more numbers are left out of the comparison."""
    model = sdxl.blank()
    by_shape = {shape: names for shape, names in shapes(model).items() if shape[0] * shape[1] <= largest}
    with tempfile.TemporaryDirectory() as folder:
        paths = [sdxl.kohya_file(model, Path(folder) / f"{seed}.safetensors", seed=seed) for seed in range(2)]
        adapters = [diffadapt.read_adapter(path) for path in paths]
        smallest = on_one(adapters, next(iter(by_shape.values()))[0])
        distance = {method: apart(smallest, method) for method in METHODS}  # and a warm-up
        taken = {shape: turns(on_one(adapters, names[0])) for shape, names in by_shape.items()}
        pairs = list(zip(adapters, WEIGHTS, strict=True))
        whole = seconds(partial(diffadapt.combine, pairs, "svd", rank=sdxl.RANK))
    made: dict[str, Any] = {
        "rank": sdxl.RANK,
        "layers": sum(len(names) for names in by_shape.values()),
        "compared": [f"{rows} x {columns}: {len(names)}" for (rows, columns), names in by_shape.items()],
        "whole_svd_s": float(f"{whole:.4g}"),
    }
    for method in METHODS:
        ours, peers = (
            [sum(len(by_shape[shape]) * times[way][turn] for shape, times in taken.items()) for turn in range(ROUNDS)]
            for way in (method, f"peft_{method}")
        )
        made[method] = {
            "s": median(ours), "peft_s": median(peers), "peft_by_ours": ratio(peers, ours), "apart": distance[method],
        }  # fmt: skip
    return made
