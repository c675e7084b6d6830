"""A difference of two checkpoints as an adapter: files, shards, folders, models, and what has no counterpart."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

import diffadapt
from diffadapt.adapter import TargetKey
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.lora import LoRA
from diffadapt.combine import extracting
from diffadapt.errors import CombineError, SourceError
from diffadapt.io.safetensors import write_safetensors
from tests.combine.made import error

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.1.resnets.0.conv1"
NORM = "down_blocks.1.resnets.0.norm1"


def state(seed: int) -> dict[str, torch.Tensor]:
    """Some parameters of a UNet."""
    random = torch.Generator().manual_seed(seed)
    shapes = {f"{ATTENTION}.weight": (24, 20), f"{CONV}.weight": (16, 8, 3, 3), f"{CONV}.bias": (16,),
              f"{NORM}.weight": (8,), f"{NORM}.bias": (8,), "conv_out.weight": (4, 8, 3, 3)}  # fmt: skip
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def changed(base: dict[str, torch.Tensor], rank: int = 2) -> dict[str, torch.Tensor]:
    """The base with changes of a rank in its matrices, and others in its vectors; conv_out stays."""
    random = torch.Generator().manual_seed(9)
    new = dict(base)
    for name, tensor in base.items():
        if name.startswith("conv_out"):
            continue
        flat = tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None]
        change = torch.randn(flat.shape[0], rank, generator=random) @ torch.randn(rank, flat.shape[1], generator=random)
        new[name] = tensor + 0.1 * change.reshape(tensor.shape)
    return new


def write(path, tensors) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, tensors, {})


@pytest.fixture
def folders(tmp_path):
    """The base as one file, the tuned model in two shards."""
    base, tuned = state(0), changed(state(0))
    write(tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors", base)
    names = [*tuned]
    where = {name: f"diffusion_pytorch_model-0000{1 + (n > 2)}-of-00002.safetensors" for n, name in enumerate(names)}
    folder = tmp_path / "tuned" / "unet"
    for file in sorted(set(where.values())):
        write(folder / file, {name: tuned[name] for name in names if where[name] == file})
    index = json.dumps({"weight_map": where})
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
    return tmp_path / "tuned", tmp_path / "base", base, tuned


def test_a_change_of_the_rank_comes_back_whole(folders):
    tuned_path, base_path, base, tuned = folders
    made = diffadapt.extract(tuned_path, base_path, 2)
    assert set(made.targets) == {TargetKey("unet", name) for name in (ATTENTION, CONV, NORM)}
    for name in (ATTENTION, CONV, NORM):
        delta = made.targets[TargetKey("unet", name)]
        truth = tuned[f"{name}.weight"] - base[f"{name}.weight"]
        assert error(delta.weight_delta(base[f"{name}.weight"]), truth) < 1e-5
        if f"{name}.bias" in base:
            torch.testing.assert_close(
                delta.bias_delta(base[f"{name}.bias"]), tuned[f"{name}.bias"] - base[f"{name}.bias"]
            )
    assert isinstance(made.targets[TargetKey("unet", ATTENTION)], LoRA)
    assert isinstance(made.targets[TargetKey("unet", NORM)], Full)
    assert all(lost < 1e-5 for lost in made.losses.values())
    assert not made.ignored


def test_the_error_of_a_smaller_rank_is_the_tail(folders):
    tuned_path, base_path, base, tuned = folders
    made = diffadapt.extract(tuned_path / "unet", base_path / "unet", 1, vectors=False)
    change = (tuned[f"{CONV}.weight"] - base[f"{CONV}.weight"]).double().flatten(1)
    values = torch.linalg.svdvals(change)
    best = float(values[1:].norm() / values.norm())
    assert made.losses[TargetKey("unet", CONV)] == pytest.approx(best, rel=1e-4)
    assert made.targets[TargetKey("unet", CONV)].down.shape == (1, 8, 3, 3)
    assert TargetKey("unet", NORM) not in made.targets
    assert made.ignored[f"unet.{NORM}.weight"] == "left out, because vectors=False"


def test_single_files_and_models_go_together(folders, tmp_path):
    _, base_path, _, tuned = folders
    write(tmp_path / "alone.safetensors", tuned)
    made = diffadapt.extract(tmp_path / "alone.safetensors", base_path, 2)
    assert TargetKey("unet", CONV) in made.targets

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm, self.table = nn.Linear(24, 32), nn.LayerNorm(32), nn.Embedding(30, 8)

    one, two = UNet(), UNet()
    two.load_state_dict(one.state_dict())
    with torch.no_grad():
        one.layer.weight += torch.outer(torch.ones(32), torch.arange(24.0))
        one.table.weight[3] += 1
    made = diffadapt.extract(one, two, 4)
    assert set(made.targets) == {TargetKey("unet", "layer"), TargetKey("unet", "table")}
    assert isinstance(made.targets[TargetKey("unet", "table")], Full)
    change = made.targets[TargetKey("unet", "layer")].weight_delta(two.layer.weight)
    assert error(change, (one.layer.weight - two.layer.weight).detach()) < 1e-5


def test_what_has_no_counterpart_is_named(tmp_path):
    base = state(0)
    tuned = changed(base) | {"extra.weight": torch.ones(2, 2)}
    tuned["conv_out.weight"] = torch.zeros(5, 8, 3, 3)
    del tuned[f"{CONV}.bias"]
    write(tmp_path / "tuned.safetensors", tuned)
    write(tmp_path / "base.safetensors", base)
    made = diffadapt.extract(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors", 2)
    assert made.ignored["unet.extra.weight"] == "only in tuned.safetensors"
    assert made.ignored[f"unet.{CONV}.bias"] == "only in base.safetensors"
    assert made.ignored["unet.conv_out.weight"] == "its shape is (5, 8, 3, 3), the base's (4, 8, 3, 3)"


def test_clip_with_and_without_its_level(tmp_path):
    old = {"text_model.encoder.layers.0.mlp.fc1.weight": torch.randn(16, 8)}
    new = {"encoder.layers.0.mlp.fc1.weight": old["text_model.encoder.layers.0.mlp.fc1.weight"] + 1}
    write(tmp_path / "old" / "text_encoder" / "model.safetensors", old)
    write(tmp_path / "new" / "text_encoder" / "model.safetensors", new)
    made = diffadapt.extract(tmp_path / "new", tmp_path / "old", 1, components=("text_encoder",))
    assert set(made.targets) == {TargetKey("text_encoder", "text_model.encoder.layers.0.mlp.fc1")}


def test_a_single_file_of_the_original_code(tmp_path):
    name = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q"
    base = {f"{name}.weight": torch.randn(640, 640), "first_stage_model.decoder.conv_in.weight": torch.ones(4, 4, 3, 3)}
    change = torch.outer(torch.randn(640), torch.randn(640))
    tuned = base | {f"{name}.weight": base[f"{name}.weight"] + change}
    write(tmp_path / "tuned.safetensors", tuned)
    write(tmp_path / "base.safetensors", base)
    made = diffadapt.extract(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors", 4)
    target = TargetKey("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    assert set(made.targets) == {target}
    assert error(made.targets[target].weight_delta(base[f"{name}.weight"]), change) < 1e-4
    assert "only the denoiser" in made.ignored["first_stage_model.decoder.conv_in.weight"]


def test_saved_and_loaded(folders, tmp_path):
    tuned_path, base_path, _, _ = folders
    made = diffadapt.extract(tuned_path, base_path, 2, dtype=torch.float16)
    again = diffadapt.read_adapter(made.save(tmp_path / "made.safetensors"))
    assert len(again.targets) + len(again.foreign) == len(made.targets)


def test_what_is_wrong_is_said(tmp_path):
    write(tmp_path / "one.safetensors", state(0))
    write(tmp_path / "other.safetensors", {"something.weight": torch.ones(2, 2)})
    path = tmp_path / "one.safetensors"
    with pytest.raises(CombineError, match="rank is 0"):
        diffadapt.extract(path, path, 0)
    with pytest.raises(CombineError, match="do not differ"):
        diffadapt.extract(path, path, 2)
    with pytest.raises(SourceError, match="no such file or folder"):
        diffadapt.extract(tmp_path / "none", path, 2)
    with pytest.raises(SourceError, match="does not say which model"):
        diffadapt.extract(tmp_path / "other.safetensors", path, 2)
    with pytest.raises(CombineError, match="no parameter of one name in common"):
        diffadapt.extract(tmp_path / "other.safetensors", path, 2, components=("unet",))
    with pytest.raises(SourceError, match="is no checkpoint"):
        diffadapt.extract(3, path, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of memory")
def test_neither_model_is_ever_in_memory(tmp_path, monkeypatch):
    """Anonymous memory while it runs: pages of mapped files can be dropped, and are not counted."""
    layers = [f"down_blocks.1.resnets.{n}.conv1.weight" for n in range(24)]
    for number, name in enumerate(("tuned", "base")):
        write(tmp_path / f"{name}.safetensors", {layer: torch.full((1024, 1024), float(number)) for layer in layers})

    def anonymous() -> int:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) >> 10

    seen: list[int] = []
    keep = extracting._Extraction._keep

    def noted(self, target, delta):
        seen.append(anonymous())
        keep(self, target, delta)

    monkeypatch.setattr(extracting._Extraction, "_keep", noted)
    before = anonymous()
    diffadapt.extract(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors", 1)
    assert len(seen) == len(layers)
    assert max(seen) - before < 64  # MiB; each of the files has 96
