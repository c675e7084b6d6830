"""One file of every LyCORIS variant, written once; and two models with three adapters each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import diffadapt
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


@pytest.fixture(params=["unet", "transformer"])
def case(request, lycoris_files):
    """A UNet and a transformer: (owner with the adapters a, b and c, the model, its run)."""
    if request.param == "unet":
        owner = diffadapt.enable(tiny.sd())
        for name, kind in zip("abc", ("lora", "oft", "lokr"), strict=True):
            owner.load_adapter(lycoris_files[kind][0], adapter_name=name)
        return owner, owner.unet, lambda: tiny.run(owner.unet)
    model = diffadapt.enable(tiny.flux())
    g = torch.Generator().manual_seed(0)
    for name in "abc":
        file = {}
        for path in ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp"):
            layer = model.get_submodule(path)
            file[f"transformer.{path}.lora_A.weight"] = torch.randn(2, layer.in_features, generator=g)
            file[f"transformer.{path}.lora_B.weight"] = torch.randn(layer.out_features, 2, generator=g)
        model.load_adapter(file, adapter_name=name)
    shapes = {"hidden_states": (1, 4, 4), "encoder_hidden_states": (1, 5, 32), "pooled_projections": (1, 32)}
    arguments = {key: torch.randn(shape, generator=g) for key, shape in shapes.items()}
    arguments |= {"timestep": torch.tensor([0.5]), "img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(5, 3)}
    with torch.no_grad():
        return model, model, torch.no_grad()(lambda: model(**arguments).sample)
