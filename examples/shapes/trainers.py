"""The trainers that write the adapters: PEFT, lycoris-lora and diffadapt itself, each in its own format.

A trainer puts an untrained adapter onto a pipeline, says which parameters to train, and writes them when asked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Trained:
    """An adapter in training. model holds the parameters; save writes the file and returns its path."""

    model: nn.Module
    parameters: list[Tensor]
    save: Callable[[Path, Mapping[str, str]], Path]


Trainer = Callable[[Any], Trained]

PRESET = Path(__file__).with_name("lycoris.toml")

ATTENTION = r".*\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
LAYERS = ATTENTION[:-1] + r"|proj|ff\.net\.2|proj_in|proj_out|conv1|conv2|conv_shortcut|linear_[12]|net\.2)"
"""Attention, feed-forward and convolutions, of either pipeline."""


def denoiser(pipe: Any) -> nn.Module:
    """The UNet or the transformer."""
    found: nn.Module = getattr(pipe, "unet", None) or pipe.transformer
    return found


def diffusers(config: Callable[[], Any]) -> Trainer:
    """PEFT's LoRA (or DoRA) by Diffusers' `add_adapter` and `save_lora_weights`."""

    def start(pipe: Any) -> Trained:
        from peft.utils import get_peft_model_state_dict

        model: Any = denoiser(pipe)
        part = "unet" if hasattr(pipe, "unet") else "transformer"
        model.add_adapter(config())

        def save(path: Path, metadata: Mapping[str, str]) -> Path:
            half = {key: value.to(torch.float16) for key, value in get_peft_model_state_dict(model).items()}
            about = model.peft_config["default"].to_dict()
            parts = {f"{part}_lora_layers": half, f"{part}_lora_adapter_metadata": about}
            pipe.save_lora_weights(path.parent, weight_name=f"{path.name}.safetensors", **parts)
            return path.with_name(f"{path.name}.safetensors")

        return Trained(model, [p for p in model.parameters() if p.requires_grad], save)

    return start


def peft(config: Callable[[], Any]) -> Trainer:
    """Any method of PEFT by `get_peft_model` and `save_pretrained`: a folder with adapter_config.json."""

    def start(pipe: Any) -> Trained:
        from peft import get_peft_model

        model = get_peft_model(denoiser(pipe), config())

        def save(path: Path, metadata: Mapping[str, str]) -> Path:
            model.half().save_pretrained(str(path))
            (path / "README.md").unlink(missing_ok=True)  # an empty form
            return path

        return Trained(model, [p for p in model.parameters() if p.requires_grad], save)

    return start


def lycoris(algo: str, rank: int, text: bool = False, **options: Any) -> Trainer:
    """lycoris-lora as Kohya's scripts call it. text: the text encoders are trained, too."""

    def start(pipe: Any) -> Trained:
        from lycoris.kohya import create_network

        logging.getLogger("LyCORIS").setLevel(logging.ERROR)
        encoders = [encoder for name, encoder in pipe.components.items() if encoder and name.startswith("text_encoder")]
        network = create_network(
            1.0, rank, rank, None, encoders if len(encoders) > 1 else encoders[0], denoiser(pipe),
            algo=algo, conv_dim=rank, conv_alpha=rank, warn_on_unmatched=False, preset=str(PRESET), **options,
        )  # fmt: skip
        network.apply_to(None, None, text, True)
        network.requires_grad_(True)

        def save(path: Path, metadata: Mapping[str, str]) -> Path:
            file = path.with_name(f"{path.name}.safetensors")
            network.save_weights(str(file), torch.float16, dict(metadata) | {"ss_network_module": "lycoris.kohya"})
            return file

        return Trained(network, [p for p in network.parameters() if p.requires_grad], save)

    return start


def diffadapt(rank: int) -> Trainer:
    """diffadapt's own training: a fresh LoRA, loaded with `trainable=True`, saved as Kohya's scripts name it."""

    def start(pipe: Any) -> Trained:
        import re

        import diffadapt as package

        part = "unet" if hasattr(pipe, "unet") else "transformer"
        fresh: dict[str, Tensor] = {}
        for name, layer in denoiser(pipe).named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and re.fullmatch(LAYERS, name):
                out, fan_in, *kernel = layer.weight.shape
                fresh[f"{part}.{name}.lora_A.weight"] = nn.init.kaiming_uniform_(
                    torch.empty(rank, fan_in, *kernel), 5**0.5
                )
                fresh[f"{part}.{name}.lora_B.weight"] = torch.zeros(out, rank, *(1 for _ in kernel))
        enabled = package.enable(pipe)
        enabled.load_adapter(fresh, adapter_name="new", trainable=True)
        parameters = list(enabled.adapters.parameters("new"))

        def save(path: Path, metadata: Mapping[str, str]) -> Path:
            file = enabled.adapters.save("new", path.with_name(f"{path.name}.safetensors"), dialect="kohya")
            trained = package.read_adapter(file)
            halves = {key: delta.map_tensors(lambda t: t.to(torch.float16)) for key, delta in trained.targets.items()}
            return replace(trained, targets=halves).save(file, dialect="kohya")

        return Trained(nn.ParameterList(parameters), parameters, save)

    return start
