"""From any dialect to any other and back: the same tensors, bit for bit, or an error that says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffadapt.converters.jobs import Job
from diffadapt.converters.plan import Plan
from diffadapt.converters.work import DONE, FAILED, Record, convert
from tests import tiny
from tests.converters import files
from tests.families import models

DIALECTS = ("kohya", "lycoris", "comfy", "diffusers", "peft", "bare")
LORA_ONLY = {"diffusers", "peft", "bare"}
"""Layouts that hold what PEFT has names for."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    model = tiny.unet()
    for name in tiny.LYCORIS:
        tiny.write_lycoris(model, name, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in tiny.LYCORIS}


def there(source: Path, dialect: str, out: Path, **options: object) -> Record:
    path = out if dialect == "peft" else out.with_suffix(".safetensors")
    return convert(Job(str(source), str(path)), Plan(dialect, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", tiny.LYCORIS)
def test_there_and_back(name: str, dialect: str, sources: dict[str, Path], tmp_path: Path) -> None:
    first = there(sources[name], dialect, tmp_path / "there", verify=True)
    if first.status == FAILED:
        assert dialect in LORA_ONLY, first.message
        assert first.kind == "DialectError"
        assert first.message.startswith(f"{dialect}: ")
        assert not first.file.exists()
        return
    assert first.error == 0.0
    back = there(first.file, "kohya", tmp_path / "back", verify=True)
    assert back.status == DONE, back.message
    ours, theirs = load_file(sources[name]), load_file(back.file)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        if key.endswith(".alpha") and name.startswith("lokr") and dialect in LORA_ONLY:
            continue  # beside two full factors it means nothing, and a config has one for all
        assert theirs[key].dtype == tensor.dtype or tensor.numel() == 1, key
        assert torch.equal(theirs[key].squeeze(), tensor.squeeze()), key


def test_lora_goes_everywhere(sources: dict[str, Path], tmp_path: Path) -> None:
    for dialect in DIALECTS:
        assert there(sources["lora"], dialect, tmp_path / dialect).status == DONE


@pytest.mark.parametrize("one", DIALECTS)
@pytest.mark.parametrize("other", DIALECTS)
def test_between_any_two(one: str, other: str, sources: dict[str, Path], tmp_path: Path) -> None:
    first = there(sources["lora"], one, tmp_path / "one")
    second = there(first.file, other, tmp_path / "other")
    direct = there(sources["lora"], other, tmp_path / "direct")
    assert second.status == direct.status == DONE, (second.message, direct.message)
    ours, theirs = load_file(second.file), load_file(direct.file)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_bytes_are_copied_and_not_made_anew(sources: dict[str, Path], tmp_path: Path) -> None:
    """The data of the same names in the same order are the source's own, and the file is what the library writes."""
    record = there(sources["loha"], "kohya", tmp_path / "same")
    assert record.status == DONE
    assert record.file.read_bytes()[-1000:] == sources["loha"].read_bytes()[-1000:]


def test_what_is_trained_on_the_text_encoder_is_kept(tmp_path: Path) -> None:
    source = files.plain(tmp_path / "plain.safetensors")
    record = there(source, "diffusers", tmp_path / "out", verify=True)
    assert record.status == DONE, record.message
    keys = load_file(record.file).keys()
    assert {key.partition(".")[0] for key in keys} == {"unet", "text_encoder"}
    for only, part in (("unet", "unet"), ("te", "text_encoder")):
        record = there(source, "diffusers", tmp_path / only, only=only)
        assert {key.partition(".")[0] for key in load_file(record.file)} == {part}


@pytest.mark.parametrize("name", ["sd15-kohya-locon", "sdxl-kohya-lora-te1-te2", "sdxl-kohya-lora-sgm"])
def test_the_keys_of_real_files_come_back(name: str, tmp_path: Path) -> None:
    tensors = models.random_file(models.manifest(name))
    save_file(tensors, tmp_path / "source.safetensors")
    for dialect in ("diffusers", "comfy"):
        first = there(tmp_path / "source.safetensors", dialect, tmp_path / dialect)
        back = there(first.file, "kohya", tmp_path / f"{dialect}-back")
        assert back.status == DONE, back.message or first.message
        theirs = load_file(back.file)
        assert theirs.keys() == tensors.keys()
        assert all(torch.equal(theirs[key], tensor) for key, tensor in tensors.items())
