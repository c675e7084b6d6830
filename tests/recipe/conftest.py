"""Two adapter files, written once, and pipelines that they fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests import tiny


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ink.safetensors` (LoRA) and `sub/pixel.safetensors` (LoHa), for `tiny.sd()`."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "sub").mkdir()
    model = tiny.unet()
    tiny.write_lycoris(model, "lora", folder / "ink.safetensors")
    tiny.write_lycoris(model, "loha", folder / "sub" / "pixel.safetensors", seed=8)
    return folder


@pytest.fixture(scope="session")
def other(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with another `ink.safetensors`."""
    folder = tmp_path_factory.mktemp("other")
    tensors = {key: tensor * 2 for key, tensor in load_file(library / "ink.safetensors").items()}
    save_file(tensors, folder / "ink.safetensors")
    return folder
