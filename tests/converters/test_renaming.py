"""What is remembered of a structure gives the very file that reading every value gives."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffadapt.converters import renaming, work
from diffadapt.converters.jobs import Job
from diffadapt.converters.plan import Plan
from diffadapt.converters.work import DONE, Record, convert
from diffadapt.io import safetensors_writer
from diffadapt.io.headers import HeaderText
from diffadapt.io.source import read_checkpoint
from diffadapt.io.structures import Structures
from tests import tiny
from tests.converters import files
from tests.families import models

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


def into(source: Path, dialect: str, out: Path, **plan: Any) -> Record:
    path = out if dialect == "peft" else out.with_suffix(".safetensors")
    return convert(Job(str(source), str(path)), Plan(dialect, **plan))


@contextmanager
def values_read(memory: renaming.Renamings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every file is read in full, as if no structure could be remembered."""
    with monkeypatch.context() as patched:
        patched.setattr(memory, "made", lambda *_: None)
        yield


@contextmanager
def no_header_parsed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only files of known structures can be converted, by what is remembered."""
    with monkeypatch.context() as patched:
        patched.setattr(HeaderText, "parse", lambda _: pytest.fail("parses the header"))
        patched.setattr(work, "read_checkpoint", lambda *_, **__: pytest.fail("reads the file"))
        yield


def alike(one: Record, other: Record) -> bool:
    return replace(one, source="", out="", seconds=0.0) == replace(other, source="", out="", seconds=0.0)


def content(record: Record) -> dict[str, bytes]:
    if record.file == Path(record.out):
        return {"weights": record.file.read_bytes()}
    return {path.name: path.read_bytes() for path in record.file.parent.iterdir()}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", tiny.LYCORIS)
def test_the_same_bytes(name, dialect, sources, fresh, tmp_path, monkeypatch) -> None:
    first = into(sources[name], dialect, tmp_path / "first")
    again = into(sources[name], dialect, tmp_path / "again")
    with values_read(fresh, monkeypatch):
        plain = into(sources[name], dialect, tmp_path / "plain")
    assert (first.kind, first.message) == (plain.kind, plain.message)
    if plain.status == DONE:
        assert content(first) == content(plain) == content(again)
    assert alike(first, plain)
    assert alike(again, plain)


def test_a_plain_rename_asks_no_tensor_for_its_values(fresh, tmp_path, monkeypatch) -> None:
    source = files.plain(tmp_path / "plain.safetensors")
    assert fresh.made(source, Plan("diffusers"), False) is not None
    monkeypatch.setattr(work, "read_checkpoint", lambda *_, **__: pytest.fail("reads the file"))
    assert into(source, "diffusers", tmp_path / "out").status == DONE


SAID = {
    "none": None,
    "other": files.HEADER | {"modelspec.title": "Clay"},
    "not in ASCII": files.HEADER | {"modelspec.title": "T\u00f6pferei \U0001f3fa"},
    "hashes": files.HEADER | {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8, "modelspec.hash_sha256": "0x"},
    "converted before": files.HEADER | {"diffadapt.history": '[{"blake3": "1", "version": "0", "plan": {}}]'},
}


def written(path: Path, seed: int, header: dict[str, str] | None) -> Path:
    save_file(load_file(files.plain(path, seed=seed)), path, header)
    return path


@pytest.mark.parametrize("plan", [{}, {"strip": True, "keep": ("*.title",)}, {"only": "te"}, {"strict": True}])
@pytest.mark.parametrize("said", SAID)
def test_a_file_of_a_known_structure_is_not_parsed(said, plan, fresh, tmp_path, monkeypatch) -> None:
    """Other numbers and other metadata: the file and the report are those of a file that is read in full."""
    # Without metadata the whole header is what is compared, so that only another such file can be known.
    first = written(tmp_path / "first.safetensors", 0, SAID[said] and files.HEADER)
    other = written(tmp_path / "other.safetensors", 1, SAID[said])
    assert into(first, "diffusers", tmp_path / "first-out", **plan).status == DONE
    with no_header_parsed(monkeypatch):
        known = into(other, "diffusers", tmp_path / "known", **plan)
    with values_read(fresh, monkeypatch):
        plain = into(other, "diffusers", tmp_path / "plain", **plan)
    assert known.status == DONE, known.message
    assert alike(known, plain)
    assert content(known) == content(plain)
    assert content(known) != content(into(first, "diffusers", tmp_path / "again", **plan))


def test_keys_that_are_left_out_are_told_of_every_file(fresh, tmp_path, monkeypatch) -> None:
    source = files.plain(tmp_path / "plain.safetensors")
    save_file(load_file(source) | {"strange.thing": torch.ones(3)}, source, files.HEADER)
    records = [into(source, "peft", tmp_path / "first", only="unet")]
    with no_header_parsed(monkeypatch):
        records.append(into(source, "peft", tmp_path / "known", only="unet"))
    with values_read(fresh, monkeypatch):
        records.append(into(source, "peft", tmp_path / "plain", only="unet"))
    assert [record.left_out.keys() for record in records] == 3 * [{"strange.thing"}]
    assert alike(records[1], records[2])
    assert content(records[0]) == content(records[1]) == content(records[2])
    assert into(source, "peft", tmp_path / "strict", only="unet", strict=True).kind == "DialectError"


@pytest.mark.parametrize("change", ["cut", "longer", "header cut", "another offset", "metadata twice"])
def test_what_is_wrong_with_a_file_is_said_as_ever(change, fresh, tmp_path, monkeypatch) -> None:
    """Of a structure that is known, or nearly."""
    good = files.plain(tmp_path / "good.safetensors")
    assert into(good, "diffusers", tmp_path / "out").status == DONE
    data = good.read_bytes()
    stop = 8 + struct.unpack("<Q", data[:8])[0]
    text = data[8:stop]
    twice = text.rstrip()[:-1] + b',"__metadata__":{}}'
    changed = {
        "cut": data[:-1], "longer": data + b"\0", "header cut": data[: stop - 9],
        "another offset": data[:8] + text.replace(b'"data_offsets":[0,', b'"data_offsets":[1,') + data[stop:],
        "metadata twice": struct.pack("<Q", len(twice)) + twice + data[stop:],
    }  # fmt: skip
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(changed[change])
    seen = into(bad, "diffusers", tmp_path / "seen")
    with values_read(fresh, monkeypatch):
        plain = into(bad, "diffusers", tmp_path / "plain")
    assert seen.status == "failed"
    assert alike(seen, plain)
    assert not seen.file.exists()


def test_a_name_that_cannot_be_shown_is_refused_of_any_structure(fresh, tmp_path) -> None:
    good = files.plain(tmp_path / "good.safetensors")
    assert into(good, "diffusers", tmp_path / "one").status == DONE
    named = into(good.rename(tmp_path / "go\nod.safetensors"), "diffusers", tmp_path / "two")
    assert "plain text" in named.message


def test_a_header_of_odd_length_and_in_any_order(fresh, tmp_path, monkeypatch) -> None:
    """Data at odd bytes are copied as any others; metadata behind the tensors are found."""
    data = files.plain(tmp_path / "plain.safetensors").read_bytes()
    stop = 8 + struct.unpack("<Q", data[:8])[0]
    entries = json.loads(data[8:stop])
    last = json.dumps({key: entries[key] for key in reversed(entries)}).encode()
    texts = (data[8:stop].rstrip() + b" " * (1 + len(data[8:stop].rstrip()) % 2), last + b" " * (1 + len(last) % 2))
    for number, text in enumerate(texts):
        odd = tmp_path / f"odd-{number}.safetensors"
        odd.write_bytes(struct.pack("<Q", len(text)) + text + data[stop:])
        records = [into(odd, "diffusers", tmp_path / f"{number}-{name}") for name in ("first", "known")]
        with values_read(fresh, monkeypatch):
            records.append(into(odd, "diffusers", tmp_path / f"{number}-plain"))
        assert len(text) % 2
        assert content(records[0]) == content(records[1]) == content(records[2])


def test_runs_are_copied_block_by_block_and_stored_as_they_are_written(fresh, tmp_path, monkeypatch) -> None:
    """As files of many blocks are."""
    source = files.plain(tmp_path / "plain.safetensors")
    whole = [into(source, dialect, tmp_path / f"{dialect}-whole") for dialect in DIALECTS[:3]]
    monkeypatch.setattr(safetensors_writer, "_BLOCK", 100)
    parts = [into(source, dialect, tmp_path / f"{dialect}-parts") for dialect in DIALECTS[:3]]
    assert [content(record) for record in parts] == [content(record) for record in whole]


def test_the_parts_of_a_fused_layer_are_rows_of_the_source(fresh, tmp_path, monkeypatch) -> None:
    """FLUX's q, k and v, which Diffusers has apart."""
    shapes = models.manifest("flux1-kohya-lora-te1")
    fused = {key: shape for key, shape in shapes.items() if "blocks_0_" in key and ("qkv" in key or "linear1" in key)}
    source = tmp_path / "flux.safetensors"
    save_file(models.random_file(fused), source)
    assert fresh.made(source, Plan("diffusers"), False) is not None
    known = into(source, "diffusers", tmp_path / "known")
    with values_read(fresh, monkeypatch):
        assert content(into(source, "diffusers", tmp_path / "plain")) == content(known)
    ours, up = load_file(known.file), load_file(source)["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"]
    parts = [ours[f"transformer.transformer_blocks.0.attn.to_{part}.lora_B.weight"] for part in "qkv"]
    assert torch.equal(torch.cat(parts), up)


def test_pefts_folder_and_its_file_are_told_apart(fresh, tmp_path) -> None:
    """A config lies beside the one and is in the header of the other."""
    source = files.plain(tmp_path / "plain.safetensors")
    for number in range(2):
        folder, file = tmp_path / f"folder-{number}", tmp_path / f"file-{number}.safetensors"
        for out in (folder, file):
            assert convert(Job(str(source), str(out)), Plan("peft", only="unet")).status == DONE
        assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
        assert "lora_adapter_metadata" in read_checkpoint(file).metadata


def test_files_that_differ_in_what_decides_are_told_apart(fresh, tmp_path) -> None:
    """Alphas, and the metadata that say how numbers are meant: one structure, other results."""
    one, other = written(tmp_path / "one.safetensors", 0, files.HEADER), tmp_path / "other.safetensors"
    tensors = load_file(one)
    save_file({k: v * 2 if k.endswith("alpha") else v for k, v in tensors.items()}, other, files.HEADER)
    scales = []
    for number, path in enumerate((one, other, one)):
        record = into(path, "diffusers", tmp_path / f"out-{number}")
        assert record.status == DONE, record.message
        made = work.read_adapter(record.file)
        scales.append(made.targets[next(iter(made.targets))].scale)
    assert scales == [scales[0], 2 * scales[0], scales[0]]


def test_the_config_beside_a_file_is_asked_again(fresh, tmp_path) -> None:
    """PEFT's alpha, which lies beside the weights."""
    source = into(files.plain(tmp_path / "plain.safetensors"), "peft", tmp_path / "peft", only="unet").file
    beside = source.with_name("adapter_config.json")
    config = json.loads(beside.read_text())
    scales = []
    for alpha in (1, 3, 1):
        beside.write_text(json.dumps(config | {"lora_alpha": alpha}))
        made = work.read_adapter(into(source, "kohya", tmp_path / f"{len(scales)}").file)
        scales.append(made.targets[next(iter(made.targets))].scale)
    assert scales == [scales[0], 3 * scales[0], scales[0]]


@pytest.mark.parametrize("told", [{"ss_base_model_version": "sdxl_base_v1-0"}, {"ss_v2": "True"}])
def test_what_metadata_say_of_the_family_is_asked_again(told, fresh, tmp_path, monkeypatch) -> None:
    """The tiny UNet's keys fit several families; which it is decides the names."""
    one = files.plain(tmp_path / "one.safetensors")
    other = tmp_path / "other.safetensors"
    save_file(load_file(one), other, files.HEADER | told)
    for path in (one, other):
        seen = into(path, "diffusers", tmp_path / f"{path.stem}-seen")
        with values_read(fresh, monkeypatch):
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
    assert fresh.made(source, Plan("diffusers", dtype="bf16"), False) is None
    assert fresh.made(source, Plan("diffusers", check=True), False) is None
    assert fresh.made(tmp_path, Plan("diffusers"), False) is None
    assert fresh.made(tmp_path / "missing.safetensors", Plan("diffusers"), False) is None


def test_what_is_not_used_is_forgotten(fresh, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(fresh, "_structures", Structures(1, 1))
    one, other = (files.plain(tmp_path / f"{rank}.safetensors", rank=rank) for rank in (2, 4))
    first = content(into(one, "diffusers", tmp_path / "first"))
    for number in range(2):
        assert content(into(other, "diffusers", tmp_path / f"other-{number}")) != first
        for dialect in ("kohya", "diffusers"):
            again = into(one, dialect, tmp_path / f"{dialect}-{number}")
    assert content(again) == first
