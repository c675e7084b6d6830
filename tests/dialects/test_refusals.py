"""What is no adapter is refused by name; adapters that look alike are not."""

from __future__ import annotations

import pytest
import torch

from diffadapt.errors import DialectError, NotAnAdapterError
from diffadapt.reading import read_adapter
from tests.families import models

WHOLE = [f"layer_{i}.weight" for i in range(9)]
CASES = {
    "control-lora": ["lora_controlnet", "input_blocks.1.0.in_layers.0.weight"],
    "ControlNet-LLLite": ["lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight"],
    "an IP-Adapter": ["image_proj.norm.weight", "ip_adapter.1.to_k_ip.weight"],
    "Flux Redux": ["redux_up.weight", "redux_down.weight"],
    "a hypernetwork": ["768.0.linear.0.weight", "320.0.linear.0.weight"],
    "a whole ControlNet": ["control_model.input_blocks.0.0.weight"],
    "ControlNet": ["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"],
    "a whole checkpoint": ["model.diffusion_model.out.0.weight", "first_stage_model.decoder.conv_in.weight"],
    "a VAE": ["encoder.conv_in.weight", "decoder.up_blocks.0.resnets.0.conv1.weight"],
    "state dict": WHOLE,
    "prompt": ["prompt_embeddings"],
}


@pytest.mark.parametrize("what", list(CASES))
def test_refused_by_name(what):
    tensors = {key: torch.ones(2, 2) for key in CASES[what]}
    with pytest.raises(NotAnAdapterError, match=what) as caught:
        read_adapter(tensors)
    assert str(caught.value).startswith("state dict: ")
    assert any(repr(key) in str(caught.value) for key in tensors)


@pytest.mark.parametrize("family", list(models.UNETS))
def test_a_whole_unet_is_refused(family):
    tensors = {key: torch.zeros(1) for key in models.unet(family).state_dict()}
    with pytest.raises(NotAnAdapterError, match="from_pretrained"):
        read_adapter(tensors)


def test_unknown_adapters_are_not_called_models():
    keys = [f"double_blocks.{i}.processor.qkv_lora9.down.weight" for i in range(9)]
    with pytest.raises(DialectError, match="no dialect"):
        read_adapter({key: torch.ones(2, 2) for key in keys})


def test_adapters_of_such_models_are_read():
    for prefix in ("controlnet.", "model.diffusion_model.", "controlnet_cond_embedding."):
        key = f"{prefix}conv_in"
        pair = {f"{key}.lora_A.weight": torch.ones(2, 8), f"{key}.lora_B.weight": torch.ones(8, 2)}
        assert len(read_adapter(pair).targets) == 1
