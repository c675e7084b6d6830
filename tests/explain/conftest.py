"""Adapter files written tensor by tensor, and a header as it would come without its data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ATTENTION = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def kohya(tmp_path: Path):
    """Make a Kohya LoRA of one cross-attention projection; width 2048 is SDXL's, 768 is SD 1's."""

    def make(name="a.safetensors", width=2048, rank=4, alpha=2.0, metadata=None, **more) -> Path:
        chance = torch.Generator().manual_seed(0)
        tensors = {f"{ATTENTION}.lora_down.weight": torch.randn(rank, width, generator=chance), **more}
        tensors[f"{ATTENTION}.lora_up.weight"] = torch.randn(640, rank, generator=chance)
        if alpha is not None:
            tensors[f"{ATTENTION}.alpha"] = torch.tensor(alpha)
        save_file(tensors, tmp_path / name, metadata)
        return tmp_path / name

    return make
