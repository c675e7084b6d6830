"""What does a training step cost by algorithm, beside a LoRA of ours, PEFT's and LyCORIS' of the same algorithm?

One SDXL transformer block (1280 channels, 1024 px), an adapter on all ten Linear layers, a gradient for the input as in
the middle of a model: forward, backward, AdamW. Every variant has its own copy of the block; all take turns in every
round. Memory: what autograd keeps for the backward (each storage once, without the base's weights), and parameters
with their gradients and AdamW's two moments.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

import diffadapt
from benchmarks.forward import block, linears
from benchmarks.timing import DEVICE, alternate, median, ratio

TOKENS, BATCH, RANK, ROUNDS = 1024, 2, 16, 5
OURS: Mapping[str, dict[str, Any]] = {
    "lora": {}, "dora": {}, "loha": {"rank": 8}, "lokr": {}, "lokr_dora": {}, "oft": {}, "oft_peft": {}, "boft": {},
    "boft_peft": {"rank": 4}, "glora": {}, "ia3": {}, "dylora": {}, "adalora": {}, "tlora": {}, "vera": {},
    "vblora": {"vector_length": 256, "rank": 4}, "fourierft": {}, "hra": {}, "full": {"bias": False},
}  # fmt: skip
PEFT = ("lora", "dora", "loha", "lokr", "oft_peft", "boft_peft", "adalora", "vera", "vblora", "fourierft", "hra")
LYCORIS = {
    "lora": "lora",
    "loha": "loha",
    "lokr": "lokr",
    "oft": "diag-oft",
    "boft": "boft",
    "glora": "glora",
    "ia3": "ia3",
}


Maker = Callable[[nn.Module, str], tuple[nn.Module, list[nn.Parameter]]]


class Step:
    """A training step of one variant."""

    def __init__(self, model: nn.Module, parameters: Iterable[nn.Parameter], x: Tensor, text: Tensor) -> None:
        self.model, self.parameters = model, list(parameters)
        self.x, self.text = x, text
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-4)

    def __call__(self) -> None:
        self.x.grad = None
        torch.autograd.backward(self.loss())
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def loss(self) -> Tensor:
        out: Tensor = self.model(self.x, encoder_hidden_states=self.text)
        return out.float().square().mean()

    def kept(self) -> int:
        """Bytes that the backward needs, with parameters, gradients and moments."""
        own = {p.untyped_storage().data_ptr() for p in (*self.model.parameters(), *self.parameters)}
        seen: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = self.loss()
            total = sum(seen.values())
        del loss
        return total + 4 * sum(p.numel() * p.element_size() for p in self.parameters)


def ours(base: nn.Module, name: str) -> tuple[nn.Module, list[nn.Parameter]]:
    model: Any = diffadapt.enable(deepcopy(base))
    options = {"rank": RANK} | OURS[name]
    model.adapters.add("a", name, targets="linear", **options)
    return model, model.adapters.parameters("a")


def peft(base: nn.Module, name: str) -> tuple[nn.Module, list[nn.Parameter]]:
    import peft as library

    rank = int(({"rank": RANK} | OURS[name])["rank"])
    configs: dict[str, Callable[[list[str]], Any]] = {
        "lora": lambda t: library.LoraConfig(r=rank, lora_alpha=rank, target_modules=t),
        "dora": lambda t: library.LoraConfig(r=rank, lora_alpha=rank, target_modules=t, use_dora=True),
        "loha": lambda t: library.LoHaConfig(r=rank, alpha=rank, target_modules=t),
        "lokr": lambda t: library.LoKrConfig(r=rank, alpha=rank, target_modules=t),
        "oft_peft": lambda t: library.OFTConfig(oft_block_size=rank, r=0, target_modules=t, use_cayley_neumann=True),
        "boft_peft": lambda t: library.BOFTConfig(boft_block_size=rank, target_modules=t),
        "adalora": lambda t: library.AdaLoraConfig(init_r=rank, target_r=8, total_step=100, target_modules=t),
        "vera": lambda t: library.VeraConfig(r=rank, target_modules=t),
        "vblora": lambda t: library.VBLoRAConfig(r=rank, vector_length=256, num_vectors=256, target_modules=t),
        "fourierft": lambda t: library.FourierFTConfig(n_frequency=1000, target_modules=t),
        "hra": lambda t: library.HRAConfig(r=rank, target_modules=t),
    }  # fmt: skip
    model = library.get_peft_model(deepcopy(base), configs[name](list(linears(base))), autocast_adapter_dtype=False)
    inner: nn.Module = model.base_model.model.train()
    return inner, [p for p in inner.parameters() if p.requires_grad]


def lycoris(base: nn.Module, name: str) -> tuple[nn.Module, list[nn.Parameter]]:
    from lycoris import LycorisNetwork, create_lycoris

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    rank = int(({"rank": RANK} | OURS[name])["rank"])
    model = deepcopy(base)
    LycorisNetwork.apply_preset({"target_name": list(linears(base)), "target_module": []})
    with contextlib.redirect_stdout(io.StringIO()):
        network = create_lycoris(model, 1.0, linear_dim=rank, linear_alpha=rank, algo=LYCORIS[name])
        network.apply_to()
    network.train()
    return model, [p for p in network.parameters() if p.requires_grad]


def steps(names: Iterable[str] = OURS) -> dict[str, Step]:
    """Every variant, ready to run."""
    base = block(torch.float32)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, TOKENS, 1280, generator=generator).to(DEVICE).requires_grad_()
    text = torch.randn(BATCH, 77, 2048, generator=generator).to(DEVICE)
    made: dict[str, Step] = {}
    makers: tuple[tuple[str, Maker, Iterable[str]], ...] = (
        ("ours", ours, OURS), ("peft", peft, PEFT), ("lycoris", lycoris, LYCORIS),
    )  # fmt: skip
    for side, make, known in makers:
        for name in (n for n in names if n in known):
            model, parameters = make(base, name)
            made[f"{side} {name}"] = Step(model, parameters, x, text)
    return made


def measure(names: Iterable[str] = OURS, rounds: int = ROUNDS) -> dict[str, Any]:
    names = list(dict.fromkeys(("lora", *names)))
    made = steps(names)
    kept = {name: step.kept() for name, step in made.items()}
    taken = alternate(made, rounds, warm_up=1)
    lora, memory = taken["ours lora"], kept["ours lora"]
    rows = {
        name: {
            side: {
                "ms": float(f"{median(taken[key]) * 1e3:.4g}"),
                "by_lora": ratio(taken[key], lora),
                "memory_by_lora": float(f"{kept[key] / memory:.3g}"),
            }
            for side in ("ours", "peft", "lycoris") if (key := f"{side} {name}") in taken
        }
        for name in names
    }  # fmt: skip
    return {"channels": 1280, "tokens": TOKENS, "batch": BATCH, "rank": RANK, "kept_mib": round(memory / 2**20)} | {
        "algorithms": rows
    }
