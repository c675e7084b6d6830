"""Folders that the real PEFT writes for a small model, loaded whole, against PEFT's own forward."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftConfig, get_peft_model, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

import diffadapt
from tests.algorithms.reference import change_error


class Net(nn.Module):
    """One module of every kind, each with an input of its own: PEFT's methods differ in what they take."""

    def __init__(self) -> None:
        super().__init__()
        self.tall = nn.Linear(16, 32)
        self.wide = nn.Linear(32, 16)
        self.square = nn.Linear(24, 24)
        self.bare = nn.Linear(16, 32, bias=False)
        self.conv1 = nn.Conv2d(8, 16, 1)
        self.conv3 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.conv1d = nn.Conv1d(8, 16, 3, padding=1)
        self.conv3d = nn.Conv3d(4, 8, 3, padding=1)
        self.embedding = nn.Embedding(20, 16)
        self.normed = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(self.tall(x))


LINEARS = ("tall", "wide", "square", "bare")
INPUTS = {
    "tall": (3, 5, 16), "wide": (3, 5, 32), "square": (3, 5, 24), "bare": (3, 5, 16), "conv1": (2, 8, 6, 5),
    "conv3": (2, 8, 7, 7), "conv1d": (2, 8, 9), "conv3d": (2, 4, 4, 5, 4), "normed": (3, 5, 16),
}  # fmt: skip


def build(seed: int = 0) -> Net:
    """The model in float32."""
    torch.manual_seed(seed)
    return Net().requires_grad_(False)


def sample_input(name: str) -> Tensor:
    if name == "embedding":
        return torch.arange(20)[None]
    generator = torch.Generator().manual_seed(len(name))
    return torch.randn(INPUTS[name], generator=generator, dtype=torch.float64)


@torch.no_grad()
def write(folder: Path, config: PeftConfig, around_one: tuple[str, ...] = (), size: float = 0.3) -> nn.Module:
    """Save a PEFT adapter with random parameters; gives the model in float64, with the numbers of the file."""
    model = get_peft_model(build(), config)
    _randomise(model, around_one, size)
    model.save_pretrained(str(folder))
    return model.eval().double().base_model.model


@torch.no_grad()
def write_injected(folder: Path, config: PeftConfig, around_one: tuple[str, ...] = (), size: float = 0.3) -> nn.Module:
    """The same without PEFT's wrapper around the model, whose names have no prefix then."""
    model = inject_adapter_in_model(config, build())
    _randomise(model, around_one, size)
    tensors = get_peft_model_state_dict(model)
    config.save_pretrained(str(folder))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return model.eval().double()


def _randomise(model: nn.Module, around_one: tuple[str, ...], size: float) -> None:
    """Every trained parameter random."""
    torch.manual_seed(1)
    parameters = dict(model.named_parameters())
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    for name in sorted(trained):
        mean = 1.0 if any(part in name for part in around_one) else 0.0
        parameters[name].copy_(mean + size * torch.randn_like(parameters[name]))


@torch.no_grad()
def errors(folder: Path, model: nn.Module, modules: tuple[str, ...], merged: bool = True) -> dict[str, float]:
    """The error of each module's change against PEFT's, live and merged, by "module, mode"; load_adapter reads all."""
    base, plain = build().double(), build().double()
    owner = diffadapt.enable(base)
    owner.load_adapter(folder, adapter_name="a", strict=True)
    found: dict[str, float] = {}
    for mode in ("live", "merged") if merged else ("live",):
        if mode == "merged":
            owner.adapters.merge()
        for name in modules:
            x = sample_input(name)
            truth, before = model.get_submodule(name)(x), plain.get_submodule(name)(x)
            assert change_error(before, truth) > 1e-3  # the adapter does something
            found[f"{name}, {mode}"] = change_error(base.get_submodule(name)(x), truth, before)
    if merged:
        owner.adapters.unmerge()
        assert all(torch.equal(a, b) for a, b in zip(base.parameters(), plain.parameters(), strict=True))
    return found
