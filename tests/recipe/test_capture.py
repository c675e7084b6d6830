"""What a recipe says of files that are on no pipeline, and of the pipeline around the mix."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import diffadapt
from diffadapt.errors import SourceError
from diffadapt.recipe import Part, Recipe
from diffadapt.recipe.capture import pinned, surroundings
from tests import tiny

KEY = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def peft(tmp_path: Path) -> Path:
    """A PEFT folder's file: the JSON beside it is part of what it means."""
    folder = tmp_path / "peft"
    folder.mkdir()
    pair = {f"{KEY}.lora_A.weight": torch.randn(4, 64), f"{KEY}.lora_B.weight": torch.randn(64, 4)}
    save_file(pair, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    return folder / "adapter_model.safetensors"


def test_a_file_is_pinned_as_a_pipeline_says_it(library: Path, peft: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "ink.pt"
    torch.save(load_file(library / "ink.safetensors"), pickled)
    for path in (library / "ink.safetensors", library / "sub" / "pixel.safetensors", peft, pickled):
        pipe = diffadapt.enable(tiny.sd())
        pipe.load_adapter(path, adapter_name="a", weight=0.4)
        (captured,) = Recipe.of(pipe).adapters
        part = Part(name="a", source=str(path), weight=0.4)
        assert not part.has_hash
        assert pinned(part, path) == captured
        assert captured.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (captured.config is not None) == (path == peft)


def test_a_pinned_part_keeps_what_it_said(library: Path, tmp_path: Path) -> None:
    path = library / "ink.safetensors"
    part = Part(name="other", file="old.safetensors", sha256="ab" * 32, autov3="12345678", size=3, config="cd" * 32,
                tag="<lora:other:0.5>", at=2, triggers=("x",), alpha=3.0, extra={"later": 1})  # fmt: skip
    found = pinned(part, path)
    assert (found.file, found.source) == ("ink.safetensors", str(path))
    assert (found.size, found.config) == (path.stat().st_size, None)
    assert (found.name, found.tag, found.at, found.triggers) == (part.name, part.tag, part.at, part.triggers)
    assert (found.alpha, found.extra) == (part.alpha, part.extra)
    assert pinned(found, path) == found
    changed = tmp_path / "ink.safetensors"
    save_file({key: tensor + 1 for key, tensor in load_file(path).items()}, changed)
    assert pinned(found, changed).sha256 != found.sha256
    with pytest.raises(SourceError, match=r"gone\.safetensors: cannot be read"):
        pinned(part, tmp_path / "gone.safetensors")


def test_a_pinned_recipe_finds_its_files_under_other_names(library: Path, tmp_path: Path) -> None:
    shutil.copy(library / "ink.safetensors", tmp_path / "renamed.safetensors")
    shutil.copy(library / "sub" / "pixel.safetensors", tmp_path / "ink.safetensors")
    recipe = Recipe(adapters=(pinned(Part(name="ink", weight=0.7), library / "ink.safetensors"),)).without_paths()
    pipe, want = (diffadapt.enable(tiny.sd()) for _ in range(2))
    recipe.apply(pipe, tmp_path)
    want.load_adapter(library / "ink.safetensors", weight=0.7)
    assert torch.equal(tiny.run(pipe.unet), tiny.run(want.unet))
    assert pipe.adapters["ink"].path == tmp_path / "renamed.safetensors"


def test_the_config_beside_a_file_counts(peft: Path) -> None:
    before = pinned(Part(name="a"), peft).config
    (peft.parent / "adapter_config.json").write_text(
        json.dumps({"lora_alpha": 8, "peft_type": "LORA", "r": 4}, indent=2)
    )
    assert pinned(Part(name="a"), peft).config == before  # its layout does not
    (peft.parent / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 16}))
    assert pinned(Part(name="a"), peft).config != before


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("owner/model", "owner/model"),
        ("/home/somebody/models/mine", "mine"),
        ("C:\\somebody\\mine\\", "mine"),
        ("", None),
        (None, None),
    ],
)
def test_surroundings_name_no_place_on_this_machine(name: str | None, base: str | None) -> None:
    class Euler:
        pass

    pipe = SimpleNamespace(config=SimpleNamespace(_name_or_path=name), scheduler=Euler())
    assert surroundings(pipe) == {"base": base, "sampler": "Euler"}


def test_surroundings_of_pipelines(library: Path) -> None:
    pipe = diffadapt.enable(tiny.sd())
    assert surroundings(pipe) == {"base": None, "sampler": "DDIMScheduler"}
    assert surroundings(torch.nn.Linear(1, 1)) == {"base": None, "sampler": None}
    pipe.load_adapter(library / "ink.safetensors")
    recipe = Recipe.of(pipe)
    assert surroundings(pipe) == {"base": recipe.base, "sampler": recipe.sampler}
