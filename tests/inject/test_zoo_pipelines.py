"""Whole pipelines of transformers: the same file through Diffusers' own `load_lora_weights` gives the same latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

import diffadapt
from tests import tiny
from tests.zoo.pipelines import PIPELINES, latents
from tests.zoo.trainers import only, randomised, trainable

# Two steps of a scheduler repeat the forward's float32 rounding.
TOLERANCE = 5e-5
ENCODERS = {"flux": ("text_encoder",), "sd3": ("text_encoder", "text_encoder_2")}
"""The text encoders that Diffusers loads LoRAs for."""
T5 = {"flux": "text_encoder_2", "sd3": "text_encoder_3"}
CASES = [(name, parts) for name in PIPELINES for parts in [("transformer",), ("transformer", *ENCODERS.get(name, ()))]]
CASES = list(dict.fromkeys(CASES))


def layers(model: nn.Module) -> dict[str, Tensor]:
    """Give the model a LoRA of PEFT's on every Linear, alpha twice the rank; returns its tensors."""
    config = LoraConfig(r=3, lora_alpha=6, init_lora_weights=False, target_modules=only(list(trainable(model))))
    inject_adapter_in_model(config, model)
    randomised(model, 0.15)
    return get_peft_model_state_dict(model)


def saved(pipe: Any, parts: tuple[str, ...], folder: Path) -> Path:
    """A file of Diffusers' own `save_lora_weights`."""
    options: dict[str, Any] = {}
    for part in parts:
        model = getattr(pipe, part)
        options[f"{part}_lora_layers"] = layers(model)
        options[f"{part}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    pipe.save_lora_weights(folder, **options)
    return folder / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(("name", "parts"), CASES)
def test_the_same_file_through_diffusers(name, parts, merged, tmp_path):
    path = saved(PIPELINES[name](), parts, tmp_path)
    theirs, ours = PIPELINES[name](), PIPELINES[name]()
    base = latents(name, theirs)
    theirs.load_lora_weights(path)
    truth = latents(name, theirs)
    assert (truth - base).norm() > 0.05 * base.norm()
    before = {part: tiny.snapshot(getattr(ours, part)) for part in parts}
    diffadapt.enable(ours)
    report = ours.load_adapter(path, adapter_name="a")
    assert report.complete
    assert {key.component for key in report.applied} == set(parts)
    if merged:
        ours.adapters.merge()
    assert tiny.relative(latents(name, ours), truth, base) < TOLERANCE
    ours.adapters.clear()
    assert all(tiny.same_bits(getattr(ours, part), bits) for part, bits in before.items())
    assert torch.equal(latents(name, ours), base)


@pytest.mark.parametrize("name", T5)
def test_t5_against_peft_alone(name, tmp_path):
    """Diffusers loads nothing for a T5: PEFT on the encoder itself is the oracle."""
    theirs, ours = PIPELINES[name](), PIPELINES[name]()
    base = latents(name, theirs)
    tensors = layers(getattr(theirs, T5[name]))
    truth = latents(name, theirs)
    file = {f"{T5[name]}.{key}": tensor for key, tensor in tensors.items()}
    save_file({key: tensor.contiguous() for key, tensor in file.items()}, tmp_path / "t5.safetensors")
    diffadapt.enable(ours)
    report = ours.load_adapter(tmp_path / "t5.safetensors", adapter_name="a", weight=2.0)  # alpha is twice the rank
    assert report.complete
    assert tiny.relative(latents(name, ours), truth, base) < TOLERANCE


@pytest.mark.parametrize("name", PIPELINES)
def test_taken_over(name, tmp_path):
    """An existing script, its calls Diffusers' own."""
    path = saved(PIPELINES[name](), ("transformer",), tmp_path)
    theirs, ours = PIPELINES[name](), diffadapt.enable(PIPELINES[name](), take_over=True)
    base = latents(name, theirs)
    for pipe in (theirs, ours):
        pipe.load_lora_weights(path, adapter_name="a")
        pipe.set_adapters(["a"], [0.6])
    assert tiny.relative(latents(name, ours), latents(name, theirs), base) < TOLERANCE
    for pipe in (theirs, ours):
        pipe.fuse_lora()
    assert tiny.relative(latents(name, ours), latents(name, theirs), base) < TOLERANCE
