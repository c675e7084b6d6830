"""The oracles: real LyCORIS and PEFT modules with random parameters, their saved tensors, and their own forward."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffadapt.algorithms import Context, Delta, TensorGroup, parse_group

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(24, 40), (3, 5, 24)),
    "linear_square": (lambda: nn.Linear(36, 36, bias=False), (4, 36)),
    "conv1x1": (lambda: nn.Conv2d(24, 32, 1), (2, 24, 5, 6)),
    "conv3x3s2": (lambda: nn.Conv2d(16, 24, 3, stride=2, padding=1), (2, 16, 9, 7)),
    "conv1d": (lambda: nn.Conv1d(16, 24, 3, padding=1), (2, 16, 9)),
    "conv3d": (lambda: nn.Conv3d(8, 12, 3, padding=1), (2, 8, 4, 5, 3)),
    "grouped": (lambda: nn.Conv2d(16, 24, 3, padding=1, groups=4), (2, 16, 6, 6)),
    "embedding": (lambda: nn.Embedding(30, 20), (4, 7)),
}
UNGROUPED = [name for name in LAYERS if name not in ("grouped", "embedding")]
CONVOLUTIONS = [name for name in LAYERS if name.startswith("conv") or name == "grouped"]
MODULES = [name for name in LAYERS if name != "embedding"]

ROLES = {
    "lora_A": "lora_down", "lora_B": "lora_up", "lora_magnitude_vector": "dora_scale", "lora_B.bias": "lora_up_bias",
}  # fmt: skip


@dataclass
class Case:
    """A base module in float64, an adapter file's tensors of it by role, and the trainer's forward on inputs x."""

    module: nn.Module
    x: Tensor
    truth: Tensor
    roles: dict[str, Tensor]
    writer: str
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def context(self) -> Context:
        return Context(writer=self.writer, config=self.config)

    def delta(self) -> Delta:
        return parse_group(TensorGroup("module", dict(self.roles)), self.context)

    @property
    def base(self) -> Tensor:
        with torch.no_grad():
            return self.module(self.x)


def base_module(layer: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """The module in float64 and inputs for it. Its weights are float32 numbers, so that no reader rounds them."""
    torch.manual_seed(seed)
    make, shape = LAYERS[layer]
    module = make().requires_grad_(False).double()
    x = torch.randint(30, shape) if layer == "embedding" else torch.randn(shape, dtype=torch.float64)
    return module, x


def randomise(parameters: Any, seed: int = 1, scale: float = 0.3) -> None:
    """Random, non-degenerate float32 numbers in every parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def lycoris_case(cls: type, layer: str, m: float = 1.0, prepare: Callable[[Any], None] | None = None, **options: Any):
    """A case of a LyCORIS module class, computed in float64."""
    module, x = base_module(layer)
    trained = cls("name", deepcopy(module), multiplier=m, **options).double()
    randomise(p for name, p in trained.named_parameters() if "dora_scale" not in name)
    for name, p in trained.named_parameters():
        if "dora_scale" in name:
            p.mul_(1 + 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)).double())
            p.copy_(p.float())
    if prepare is not None:
        prepare(trained)
    trained.eval()
    truth = trained(x)
    roles = {name.removesuffix(".weight"): t.detach().clone() for name, t in trained.state_dict().items()}
    if options.get("train_on_input") is not None or "on_input" in roles:
        roles["weight"] = trained.weight.detach().clone()
    return Case(module, x, truth, roles, "lycoris")


@torch.no_grad()
def peft_case(layer: str, config: Any, m: float = 1.0, method: str = "lora"):
    """A case of a PEFT config on one module, computed in float64. Files carry no alpha: the config does."""
    from peft import get_peft_model, get_peft_model_state_dict

    module, x = base_module(layer)
    holder = nn.Module()
    holder.target = deepcopy(module)
    config.target_modules = {"target"}
    model = get_peft_model(holder, config).double().eval()
    tuned = holder.target if hasattr(holder.target, "base_layer") else model.base_model.model.target
    for name, p in tuned.named_parameters():
        generator = torch.Generator().manual_seed(len(name))
        noise = torch.randn(p.shape, generator=generator)
        if "magnitude" in name or "ia3" in name:
            p.copy_((p * (1 + 0.3 * noise)).float())
        elif "base_layer" not in name:
            p.copy_(0.3 * noise)
    if m != 1.0:
        tuned.scaling["default"] *= m  # what `scale_layer` does, except that it skips embeddings
    truth = tuned(x)
    roles = {}
    for key, tensor in get_peft_model_state_dict(model).items():
        name = key.removeprefix("base_model.model.target.").removesuffix(".weight")
        roles[ROLES.get(name, name)] = tensor.detach().clone()
    return Case(module, x, truth, roles, "peft", config.to_dict())
