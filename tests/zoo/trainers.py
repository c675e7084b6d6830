"""Adapter files for the zoo, written by the trainers' own code, and what their own forward gives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor, nn

import diffadapt
from diffadapt.algorithms.layer import Layer
from tests.zoo.specimen import Specimen

RANK = 3
UNCALLED = ("pooler",)
"""HunyuanDiT's attention pool reads its Linears' weights and never calls them: hooks and PEFT see nothing of it."""


def trainable(model: nn.Module) -> dict[str, nn.Module]:
    """Every Linear and undivided convolution that is called."""
    found = {}
    for path, module in model.named_modules():
        layer = Layer.of(module)
        if layer is not None and layer.kind in ("linear", "conv") and layer.groups == 1:
            found[path] = module
    return {path: module for path, module in found.items() if not set(UNCALLED) & set(path.split("."))}


def pipeline(specimen: Specimen, model: nn.Module) -> SimpleNamespace:
    """What stands for a pipeline with this one model."""
    return diffadapt.enable(SimpleNamespace(components={specimen.component: model}))


@torch.no_grad()
def peft_file(specimen: Specimen, path: Path, scale: float = 0.3) -> tuple[int, Tensor]:
    """Write a LoRA on everything as Diffusers saves it; returns how many modules it has, and PEFT's own output."""
    model = specimen.build()
    names = list(trainable(model))
    config = LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights=False, target_modules=only(names))
    model = inject_adapter_in_model(config, model)
    file = {
        f"{specimen.component}.{name.replace('.default', '')}": parameter.detach().clone().contiguous()
        for name, parameter in randomised(model, scale).items()
    }
    save_file(file, path, metadata={"format": "pt"})
    return len(names), specimen.run(model)


@torch.no_grad()
def randomised(model: nn.Module, scale: float) -> dict[str, nn.Parameter]:
    """PEFT's factors, each of which now gives a vector of its input's length: the change is about `scale` of a layer's
    output at alpha = rank."""
    torch.manual_seed(7)
    found = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    for name, parameter in found.items():
        fan = parameter[0].numel()
        parameter.normal_(0, (scale if ".lora_B." in name else 1.0) * fan**-0.5)
    return found


def only(names: list[str]) -> str:
    """What PEFT takes for exactly these modules."""
    return "|".join(name.replace(".", r"\.") for name in names)


LYCORIS = {"lokr": {"factor": 4}, "diag-oft": {}}


@torch.no_grad()
def lycoris_file(specimen: Specimen, algo: str, path: Path) -> tuple[int, Tensor]:
    """Write a LyCORIS adapter of every Linear in the blocks; returns how many modules it has, and its own output."""
    from lycoris import LycorisNetwork, create_lycoris

    model = specimen.build()
    names = [name for name, module in trainable(model).items() if isinstance(module, nn.Linear) and _in_blocks(name)]
    LycorisNetwork.apply_preset({"target_module": [], "target_name": names, "lora_prefix": "lycoris"})
    net = create_lycoris(model, 1.0, linear_dim=4, linear_alpha=2, algo=algo, **LYCORIS[algo])
    net.apply_to()
    torch.manual_seed(7)
    for parameter in net.parameters():
        parameter.normal_(0, 0.5)
    truth = specimen.run(model)
    save_file({k: v.detach().clone().contiguous() for k, v in net.state_dict().items()}, path)
    net.restore()
    return len(net.loras), truth


def _in_blocks(name: str) -> bool:
    return any(part.isdecimal() for part in name.split("."))
