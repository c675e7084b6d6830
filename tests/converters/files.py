"""Small adapter files of every kind that trainers write for a tiny Stable Diffusion, and ways they are broken."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests import tiny

HEADER = {
    "ss_network_module": "lycoris.kohya", "ss_output_name": "x", "ss_tag_frequency": '{"1_ink": {"ink wash": 9}}',
    "modelspec.title": "Ink", "modelspec.license": "Apache-2.0",
}  # fmt: skip


def plain(path: Path, rank: int = 2, seed: int = 0, header: dict[str, str] | None = None) -> Path:
    """A Kohya LoRA for the attention of the tiny UNet and its text encoder."""
    random = torch.Generator().manual_seed(seed)
    pipe = tiny.sd()
    tensors: dict[str, torch.Tensor] = {}
    for prefix, model, wanted in (("lora_unet", pipe.unet, "attn"), ("lora_te", pipe.text_encoder, "_proj")):
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and wanted in name:
                level = "" if prefix == "lora_unet" or name.startswith("text_model.") else "text_model_"
                key = f"{prefix}_{level}{name.replace('.', '_')}"
                tensors[f"{key}.lora_down.weight"] = torch.randn(rank, module.in_features, generator=random).half()
                tensors[f"{key}.lora_up.weight"] = torch.randn(module.out_features, rank, generator=random).half()
                tensors[f"{key}.alpha"] = torch.tensor(float(rank) / 2).half()
    save_file(tensors, path, HEADER | {"ss_network_module": "networks.lora"} if header is None else header)
    return path


def broken(folder: Path, good: Path) -> dict[str, str]:
    """Files that nothing can be made of: name -> the kind of error."""
    data = good.read_bytes()
    lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1\n"
    tensors = load_file(good)
    files: dict[str, bytes] = {
        "truncated.safetensors": data[:-100], "empty.safetensors": b"", "page.safetensors": b"<!DOCTYPE html><html>",
        "pointer.safetensors": lfs.encode(), "header.safetensors": b"\xff" * 64,
        "code.pt": pickle.dumps(Bomb()),
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_bytes(content)
    save_file({"some.weight": torch.ones(2)}, folder / "strange.safetensors")
    halves = {key: tensor for key, tensor in tensors.items() if not key.endswith("lora_up.weight")}
    save_file(halves, folder / "halves.safetensors")
    save_file({k: v * torch.nan if "lora_up" in k else v for k, v in tensors.items()}, folder / "nan.safetensors")
    return {
        "truncated.safetensors": "SourceError", "empty.safetensors": "SourceError",
        "page.safetensors": "NotAnAdapterError", "pointer.safetensors": "NotAnAdapterError",
        "header.safetensors": "UnsafeFileError", "code.pt": "UnsafeFileError", "strange.safetensors": "DialectError",
        "halves.safetensors": "AlgorithmError", "nan.safetensors": "NonFiniteError",
    }  # fmt: skip


class Bomb:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch /tmp/diffadapt-was-here",)
