"""One file of every LyCORIS variant, written once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import tiny


@pytest.fixture(scope="session")
def lycoris_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, torch.Tensor]]:
    """Variant -> (file, output of the trainer's own forward), for `tiny.unet(0)`."""
    folder = tmp_path_factory.mktemp("lycoris")
    model = tiny.unet()
    return {
        name: (folder / f"{name}.safetensors", tiny.write_lycoris(model, name, folder / f"{name}.safetensors"))
        for name in tiny.LYCORIS
    }
