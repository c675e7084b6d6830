"""Adapters into checkpoints on disk: the same weights as a merge in memory, whatever the base's names and files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import diffadapt
from diffadapt.command import main
from diffadapt.converters.merging import NOTE, merge_files
from diffadapt.errors import ConvertError
from tests import tiny
from tests.converters import files

KINDS = ("lora", "loha", "lokr", "oft", "boft", "dora", "glora", "full")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    for name in KINDS:
        tiny.write_lycoris(tiny.unet(), name, folder / f"{name}.safetensors")
    files.plain(folder / "plain.safetensors")
    return {path.stem: path for path in folder.glob("*.safetensors")}


def in_memory(adapters: dict[Path, float]) -> dict[str, dict[str, torch.Tensor]]:
    """The weights that a merge on a pipeline makes, by component."""
    pipe = diffadapt.enable(tiny.sd())
    for number, (path, weight) in enumerate(adapters.items()):
        pipe.load_adapter(path, adapter_name=str(number), weight=weight)
    pipe.adapters.merge()
    return {part: getattr(pipe, part).state_dict() for part in ("unet", "text_encoder")}


def assert_same(seen: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert seen.keys() == wanted.keys()
    for key, tensor in wanted.items():
        # float32: sums in another order
        assert torch.allclose(seen[key], tensor, rtol=1e-5, atol=1e-6), key


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_one_model(name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    base = tiny.unet().state_dict()
    save_file(base, tmp_path / "unet.safetensors", {"format": "pt"})
    adapters = {sources[name]: 0.7, sources["lora"]: -0.3}
    read = [(diffadapt.read_adapter(path), weight) for path, weight in adapters.items()]
    done = merge_files(tmp_path / "unet.safetensors", read, tmp_path / "out.safetensors")
    seen, wanted = load_file(tmp_path / "out.safetensors"), in_memory(adapters)["unet"]
    assert_same(seen, wanted)
    assert done.changed == sum(not torch.equal(seen[key], base[key]) for key in seen)
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert json.loads(file.metadata()[NOTE])["adapters"][sources["lora"].name] == -0.3


def test_a_folder_in_shards(sources: dict[str, Path], tmp_path: Path) -> None:
    for part in ("unet", "text_encoder"):
        getattr(tiny.sd(), part).save_pretrained(tmp_path / "base" / part, max_shard_size="200KB")
    (tmp_path / "base" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert len(list((tmp_path / "base" / "unet").glob("*.safetensors"))) > 1
    read = [(diffadapt.read_adapter(sources["plain"]), 0.8)]
    merge_files(tmp_path / "base", read, tmp_path / "out")
    assert (tmp_path / "out" / "model_index.json").is_file()
    wanted = in_memory({sources["plain"]: 0.8})
    pipe = tiny.sd()
    unet = type(pipe.unet).from_pretrained(tmp_path / "out" / "unet")
    assert_same(unet.state_dict(), wanted["unet"])
    encoder = type(pipe.text_encoder).from_pretrained(tmp_path / "out" / "text_encoder")
    assert_same(encoder.state_dict(), wanted["text_encoder"])


def test_a_single_file_of_the_original_code(sources: dict[str, Path], tmp_path: Path) -> None:
    """The names of the tiny UNet's attentions as the original code has them, in a file with something else beside."""
    from diffadapt.combine.checkpoints import ORIGINAL
    from diffadapt.families import family_named

    family = family_named("sd1")
    assert family is not None
    names = family.components["unet"]
    state = tiny.unet().state_dict()
    renamed: dict[str, torch.Tensor] = {"first_stage_model.x.weight": torch.ones(2)}
    for key, tensor in state.items():
        module, _, role = key.rpartition(".")
        renamed[f"{ORIGINAL}{names.native_name(module) or module}.{role}"] = tensor.clone()
    save_file(renamed, tmp_path / "model.safetensors")
    adapter = diffadapt.read_adapter(sources["lora"], pipeline=tiny.sd())

    merge_files(
        tmp_path / "model.safetensors", [(replace(adapter, candidates=("sd1",)), 1.0)], tmp_path / "out.safetensors"
    )
    seen, wanted = load_file(tmp_path / "out.safetensors"), in_memory({sources["lora"]: 1.0})["unet"]
    assert torch.equal(seen.pop("first_stage_model.x.weight"), torch.ones(2))
    for key, tensor in wanted.items():
        module, _, role = key.rpartition(".")
        assert torch.allclose(seen[f"{ORIGINAL}{names.native_name(module) or module}.{role}"], tensor, atol=1e-6), key


def open_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The layers of a CLIP as OpenCLIP names them, with q, k and v in one."""
    names = {
        "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
    }  # fmt: skip
    found = {}
    for number in range(2):
        layer = {key.partition(f"layers.{number}.")[2]: v for key, v in state.items() if f"layers.{number}." in key}
        block = f"transformer.resblocks.{number}"
        for role in ("weight", "bias"):
            found |= {f"{block}.{other}.{role}": layer[f"{name}.{role}"].clone() for name, other in names.items()}
            parts = [layer[f"self_attn.{part}_proj.{role}"] for part in "qkv"]
            found[f"{block}.attn.in_proj_{role}"] = torch.cat(parts)
    return found


def test_text_encoders_of_a_single_file(tmp_path: Path) -> None:
    """SDXL's two: one with the names of transformers, one with OpenCLIP's."""
    pipe = tiny.sdxl()
    prefixes = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")

    def as_file() -> dict[str, torch.Tensor]:
        first = {
            f"text_model.{key.removeprefix('text_model.')}": v for key, v in pipe.text_encoder.state_dict().items()
        }
        parts = (first, open_clip(pipe.text_encoder_2.state_dict()))
        pairs = zip(prefixes, parts, strict=True)
        return {prefix + key: tensor.clone() for prefix, part in pairs for key, tensor in part.items()}

    random, file = torch.Generator().manual_seed(0), {}
    for prefix, encoder in (("lora_te1", pipe.text_encoder), ("lora_te2", pipe.text_encoder_2)):
        for name, module in encoder.named_modules():
            if isinstance(module, torch.nn.Linear) and "layers" in name:
                key = f"{prefix}_text_model_{name.removeprefix('text_model.').replace('.', '_')}"
                file[f"{key}.lora_down.weight"] = torch.randn(2, module.in_features, generator=random)
                file[f"{key}.lora_up.weight"] = torch.randn(module.out_features, 2, generator=random)
    base = as_file()
    save_file(base | {"model.diffusion_model.out.2.bias": torch.ones(4)}, tmp_path / "model.safetensors")
    adapter = replace(diffadapt.read_adapter(file, pipeline=pipe), candidates=("sdxl",))
    done = merge_files(tmp_path / "model.safetensors", [(adapter, 0.7)], tmp_path / "out.safetensors")
    pipe = diffadapt.enable(pipe)
    pipe.load_adapter(adapter, adapter_name="a", weight=0.7)
    pipe.adapters.merge()
    seen = load_file(tmp_path / "out.safetensors")
    del seen["model.diffusion_model.out.2.bias"]
    assert_same(seen, as_file())
    assert done.changed == sum(not torch.equal(seen[key], base[key]) for key in seen) == 2 * 2 * 6 - 2 * 2


def test_a_bias_that_is_not_there_is_said(tmp_path: Path) -> None:
    state = tiny.unet().state_dict()
    save_file(state, tmp_path / "unet.safetensors")
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"  # has none
    assert f"{name}.bias" not in state
    rows, columns = state[f"{name}.weight"].shape
    file = {f"unet.{name}.diff": torch.ones(rows, columns), f"unet.{name}.diff_b": torch.ones(rows)}
    with pytest.raises(ConvertError, match="lack the bias"):
        merge_files(tmp_path / "unet.safetensors", [(diffadapt.read_adapter(file), 1.0)], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("case", ["another model", "no text encoder", "there already"])
def test_what_does_not_fit_writes_nothing(case: str, sources: dict[str, Path], tmp_path: Path) -> None:
    state = tiny.unet().state_dict()
    if case == "another model":
        state = {key: tensor for key, tensor in state.items() if "mid_block" not in key}
    save_file(state, tmp_path / "unet.safetensors")
    source = sources["plain"] if case == "no text encoder" else sources["lora"]
    out = tmp_path / ("unet.safetensors" if case == "there already" else "out.safetensors")
    before = out.read_bytes() if out.exists() else None
    with pytest.raises(ConvertError):
        merge_files(tmp_path / "unet.safetensors", [(diffadapt.read_adapter(source), 1.0)], out)
    assert (out.read_bytes() if out.exists() else None) == before


def test_the_commands(sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is merged in is extracted again."""
    base, out = tmp_path / "unet.safetensors", tmp_path / "out.safetensors"
    save_file(tiny.unet().state_dict(), base)
    arguments: list[Any] = ["merge", base, f"{sources['plain']}:0.5", "--only", "unet", "-o", out]
    assert main([str(one) for one in arguments]) == 0
    assert "parameters of 1 files changed" in capsys.readouterr().out
    made = tmp_path / "again.safetensors"
    assert main(["extract", str(out), str(base), "-o", str(made), "--rank", "4", "--dtype", "fp32"]) == 0
    before, after = diffadapt.read_adapter(sources["plain"]), diffadapt.read_adapter(made)
    unet = {key: delta for key, delta in before.targets.items() if key.component == "unet"}
    assert set(after.targets) == set(unet)
    for key, delta in unet.items():
        shape = delta.shape_alone
        assert shape is not None
        one, two = (d.weight_delta(torch.zeros(shape)) for d in (delta, after.targets[key]))
        # The weights were rounded to float32 in between.
        assert (0.5 * one - two).norm() <= 1e-4 * one.norm()
    assert main(["merge", str(base), str(sources["lora"]), "-o", str(out)]) == 1
    assert "there already" in capsys.readouterr().err
