"""Training a tiny pipeline in one process or in several, the same steps: what `test_spread` compares.

Several: `python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.training.spread FOLDER` trains the
cases of `WAYS` under DDP and under FSDP2, each process on its share of the batch, and leaves in FOLDER the losses of
all of them and the file that each process saved.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import diffadapt
from tests import tiny

BATCH, STEPS = 4, 3
BLOCK = "BasicTransformerBlock"
UNET = {
    "block_out_channels": (32,), "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """How an adapter is added, and what else is special. learning_rate: so that the loss falls within a few steps.

    merged: how the weights remember their base under a merged LoRA; "" for none. checkpointed: gradients are.
    """

    algorithm: str
    learning_rate: float
    options: dict[str, Any] = field(default_factory=dict)
    merged: str = ""
    checkpointed: bool = False
    dtype: torch.dtype = torch.float32


CASES = {
    "lora": Case("lora", 10.0),
    "lokr": Case("lokr", 30.0),
    "oft": Case("oft", 30.0),
    "dora": Case("dora", 30.0),
    "vblora": Case("vblora", 100.0, {"vector_length": 16, "num_vectors": 16, "bank_bound": 0.2}),
    "oft on merged weights": Case("oft", 30.0, merged="copy"),
    "dora on merged weights, checkpointed": Case("dora", 30.0, merged="code", checkpointed=True),
    "lora on a bfloat16 base": Case("lora", 30.0, dtype=torch.bfloat16),
}


def pipeline(case: Case) -> Any:
    """A pipeline with the adapter "a" in training."""
    pipe = diffadapt.enable(tiny.sd(**UNET).to(dtype=case.dtype))
    if case.merged:
        pipe.adapters.add("other", "lora", rank=4, trainable=False)
        generator = torch.Generator().manual_seed(5)
        for placement in pipe.adapters._loaded["other"].placements:
            placement.delta.up.normal_(0.0, 0.1, generator=generator)
        pipe.adapters.merge(["other"], remember=case.merged)
    pipe.adapters.add("a", case.algorithm, rank=4, **case.options)
    if case.checkpointed:
        pipe.unet.enable_gradient_checkpointing()
        pipe.unet.train()
    return pipe


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(latents, timesteps, text states, goal) of the whole batch."""
    generator = torch.Generator().manual_seed(1)
    latents, goal = torch.randn(2, BATCH, 4, 8, 8, generator=generator)
    text = torch.randn(BATCH, 5, tiny.WIDTH, generator=generator)
    return latents.to(dtype), torch.tensor([3, 200, 500, 900]), text.to(dtype), goal


def train(case: Case, path: Path, prepare: Callable[[Any, Any], Any], accelerator: Accelerator) -> list[float]:
    """The losses of a few steps on this process' share of the batch, averaged over all; the adapter is saved."""
    pipe = pipeline(case)
    model = pipe.adapters.as_module("a")
    optimizer = torch.optim.SGD(pipe.adapters.parameters("a"), lr=case.learning_rate, momentum=0.5)
    model, optimizer = prepare(model, optimizer)
    share = BATCH // accelerator.num_processes
    mine = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
    latents, timesteps, text, goal = (part[mine] for part in batch(case.dtype))
    losses = []
    for _ in range(STEPS):
        loss = (model(latents, timesteps, text).sample.float() - goal).square().mean()
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        losses.append(float(accelerator.reduce(loss.detach(), "mean")))
    pipe.adapters.save("a", path)  # of all processes: where the parameters are spread, it gathers them
    return losses


def sharding_accelerator() -> Accelerator:
    """Accelerate with its FSDP2 on processors. It takes FSDP for accelerators only: on a CPU it leaves the plugin that
    it was given out without a word. Told that this is FSDP all the same, its own code prepares and trains."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=[BLOCK],
        reshard_after_forward=True, cpu_ram_efficient_loading=False,
    )  # fmt: skip
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    assert accelerator.distributed_type == DistributedType.MULTI_CPU
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    return accelerator


def _ddp(case: Case, path: Path) -> list[float]:
    accelerator = Accelerator(cpu=True)

    def prepare(model: Any, optimizer: Any) -> Any:
        model, optimizer = accelerator.prepare(model, optimizer)
        assert isinstance(model, DistributedDataParallel)
        return model, optimizer

    return train(case, path, prepare, accelerator)


def _fsdp(case: Case, path: Path) -> list[float]:
    accelerator = sharding_accelerator()

    def prepare(model: Any, optimizer: Any) -> Any:
        model, optimizer = accelerator.prepare(model, optimizer)
        _check_spread(model, optimizer)
        return model, optimizer

    return train(case, path, prepare, accelerator)


def _fsdp_from_one(case: Case, path: Path) -> list[float]:
    """As many read a large model: the first process has the weights, and gives the others their parts."""
    accelerator = sharding_accelerator()
    accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = True
    return train(case, path, accelerator.prepare, accelerator)


def _fully_shard(case: Case, path: Path) -> list[float]:
    """No accelerate in it: `fully_shard` on the blocks and the whole, both given back between forward and backward."""
    accelerator = Accelerator(cpu=True)

    def prepare(model: Any, optimizer: Any) -> Any:
        for module in list(model.modules()):
            if type(module).__name__ == BLOCK:
                fully_shard(module, reshard_after_forward=True)
        fully_shard(model, reshard_after_forward=True)
        optimizer = torch.optim.SGD(model.adapter.parameters(), lr=case.learning_rate, momentum=0.5)
        _check_spread(model, optimizer)
        return model, optimizer

    return train(case, path, prepare, accelerator)


def _check_spread(model: Any, optimizer: Any) -> None:
    """Base weights and the adapter's parameters are in parts, and the optimizer has the adapter's."""
    assert isinstance(model, FSDPModule)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert sum(isinstance(module, FSDPModule) for module in model.modules()) == 5  # four blocks, and the whole
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.adapter.parameters()}


PLAIN = ("lora", "lokr", "oft", "dora", "vblora")
WAYS: dict[str, tuple[Callable[[Case, Path], list[float]], tuple[str, ...]]] = {
    "ddp": (_ddp, PLAIN),
    "fsdp": (_fsdp, tuple(CASES)),
    "fsdp from one": (_fsdp_from_one, ("dora",)),
    "fully_shard": (_fully_shard, ("lora", "dora on merged weights, checkpointed")),
}
"""Way -> (how it trains, the cases that run so)."""


def main(folder: Path) -> None:
    """Run all of them in this process and the ones beside it."""
    torch.set_num_threads(1)
    losses: dict[str, list[float]] = {}
    for way, (run, names) in WAYS.items():
        for name in names:
            AcceleratorState._reset_state(reset_partial_state=True)  # else the kind of the first way stays
            losses[f"{way}: {name}"] = run(CASES[name], folder / f"{way} {name} {os.environ['RANK']}.safetensors")
    if os.environ["RANK"] == "0":
        (folder / "losses.json").write_text(json.dumps(losses))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
