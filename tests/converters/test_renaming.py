"""What is remembered of a structure gives the very file that reading every value gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffadapt.converters import renaming, work
from diffadapt.converters.jobs import Job
from diffadapt.converters.plan import Plan
from diffadapt.converters.work import DONE, Record, convert
from diffadapt.io.source import read_checkpoint
from tests import tiny
from tests.converters import files

DIALECTS = ("kohya", "comfy", "diffusers", "peft")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> renaming.Renamings:
    """A memory without anything in it."""
    memory = renaming.Renamings()
    monkeypatch.setattr(work, "_RENAMINGS", memory)
    return memory


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    model = tiny.unet()
    for name in tiny.LYCORIS:
        tiny.write_lycoris(model, name, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in tiny.LYCORIS}


def into(source: Path, dialect: str, out: Path) -> Record:
    path = out if dialect == "peft" else out.with_suffix(".safetensors")
    return convert(Job(str(source), str(path)), Plan(dialect))


def content(record: Record) -> dict[str, bytes]:
    if record.file == Path(record.out):
        return {"weights": record.file.read_bytes()}
    return {path.name: path.read_bytes() for path in record.file.parent.iterdir()}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", tiny.LYCORIS)
def test_the_same_bytes(name, dialect, sources, fresh, tmp_path, monkeypatch) -> None:
    first = into(sources[name], dialect, tmp_path / "first")
    again = into(sources[name], dialect, tmp_path / "again")
    with monkeypatch.context() as patched:
        patched.setattr(fresh, "find", lambda *_: None)
        plain = into(sources[name], dialect, tmp_path / "plain")
    assert (first.kind, first.message) == (plain.kind, plain.message)
    if plain.status == DONE:
        assert content(first) == content(plain) == content(again)
    for one in (first, again):
        assert replace(one, out="", seconds=0.0) == replace(plain, out="", seconds=0.0)


def test_a_plain_rename_asks_no_tensor_for_its_values(fresh, tmp_path, monkeypatch) -> None:
    source = files.plain(tmp_path / "plain.safetensors")
    raw = read_checkpoint(source)
    assert fresh.find(raw, Plan("diffusers"), False) is not None
    monkeypatch.setattr(work, "read_adapter", lambda *_, **__: pytest.fail("reads the file"))
    assert into(source, "diffusers", tmp_path / "out").status == DONE


def test_files_that_differ_in_what_decides_are_told_apart(fresh, tmp_path) -> None:
    """Alphas, and the metadata that say how numbers are meant: one structure, other results."""
    one, other = files.plain(tmp_path / "one.safetensors"), tmp_path / "other.safetensors"
    tensors = load_file(one)
    save_file({k: v * 2 if k.endswith("alpha") else v for k, v in tensors.items()}, other, files.HEADER)
    scales = []
    for number, path in enumerate((one, other, one)):
        record = into(path, "diffusers", tmp_path / f"out-{number}")
        assert record.status == DONE, record.message
        made = work.read_adapter(record.file)
        scales.append(made.targets[next(iter(made.targets))].scale)
    assert scales == [scales[0], 2 * scales[0], scales[0]]


@pytest.mark.parametrize("told", [{"ss_base_model_version": "sdxl_base_v1-0"}, {"ss_v2": "True"}])
def test_what_metadata_say_of_the_family_is_asked_again(told, fresh, tmp_path, monkeypatch) -> None:
    """The tiny UNet's keys fit several families; which it is decides the names."""
    one = files.plain(tmp_path / "one.safetensors")
    other = tmp_path / "other.safetensors"
    save_file(load_file(one), other, files.HEADER | told)
    for path in (one, other):
        seen = into(path, "diffusers", tmp_path / f"{path.stem}-seen")
        with monkeypatch.context() as patched:
            patched.setattr(fresh, "find", lambda *_: None)
            plain = into(path, "diffusers", tmp_path / f"{path.stem}-plain")
        assert (seen.family, seen.status, seen.message) == (plain.family, plain.status, plain.message)
        assert content(seen) == content(plain)


def test_metadata_are_each_files_own(fresh, tmp_path) -> None:
    titles = []
    for title in ("Ink", "Clay"):
        source = files.plain(tmp_path / f"{title}.safetensors", header=files.HEADER | {"modelspec.title": title})
        record = into(source, "diffusers", tmp_path / f"{title}-out")
        titles.append(read_checkpoint(record.file).metadata["modelspec.title"])
    assert titles == ["Ink", "Clay"]


def test_where_values_decide_they_are_looked_at(fresh, tmp_path) -> None:
    """Files of another number type are cast, so that nothing is remembered of them."""
    source = files.plain(tmp_path / "plain.safetensors")
    assert fresh.find(read_checkpoint(source), Plan("diffusers", dtype="bf16"), False) is None
    assert fresh.find(read_checkpoint(source), Plan("diffusers", check=True), False) is None
    state = {key: torch.zeros(2, 2) for key in ("a.lora_A.weight", "a.lora_B.weight")}
    assert fresh.find(read_checkpoint(state), Plan("diffusers"), False) is None
