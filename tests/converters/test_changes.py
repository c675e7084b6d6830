"""What a conversion changes of the numbers and of what a file says of itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

import diffadapt
from diffadapt.converters.jobs import Job
from diffadapt.converters.plan import DTYPES, Plan
from diffadapt.converters.provenance import HISTORY
from diffadapt.converters.work import DONE, FAILED, Record, convert
from diffadapt.errors import ConvertError
from diffadapt.fingerprint import fingerprint
from tests import tiny
from tests.converters import files


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return files.plain(tmp_path / "ink.safetensors", rank=4)


def made(source: Path, to: str = "kohya", **options: Any) -> Record:
    out = source.with_name("out.safetensors")
    out.unlink(missing_ok=True)
    return convert(Job(str(source), str(out)), Plan(to, **options))


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_type_of_numbers(source: Path, dtype: str) -> None:
    record = made(source, dtype=dtype, verify=True)
    assert record.status == DONE, record.message
    assert record.error is not None
    assert record.error <= {"fp16": 0.0, "fp32": 0.0, "bf16": 4e-3}[dtype]
    assert {t.dtype for key, t in load_file(record.file).items() if not key.endswith("alpha")} == {DTYPES[dtype]}


def test_a_type_that_cannot_hold_the_numbers_is_refused(source: Path) -> None:
    tensors = {key: tensor.float() * 1e6 if "up" in key else tensor for key, tensor in load_file(source).items()}
    save_file(tensors, source)
    record = made(source, dtype="fp16")
    assert (record.status, record.kind) == (FAILED, "ConvertError")
    assert "fp16" in record.message
    assert not record.file.exists()
    tiny_ones = {key: tensor.float() * 1e-15 if "up" in key else tensor for key, tensor in tensors.items()}
    save_file(tiny_ones, source)
    record = made(source, dtype="fp16", verify=True)
    assert record.kind == "ConvertError"
    assert not record.file.exists()


def test_smaller_ranks_say_what_they_cost(source: Path) -> None:
    record = made(source, rank=2)
    assert record.status == DONE
    assert 0.0 < record.losses < 1.0
    ranks = {tensor.shape[0] for key, tensor in load_file(record.file).items() if "lora_down" in key}
    assert ranks == {2}
    assert made(source, share=0.9).losses <= (1 - 0.9**2) ** 0.5 + 1e-6
    assert made(source, rank=4).losses == 0.0


def test_another_algorithm(tmp_path: Path) -> None:
    source = tmp_path / "loha.safetensors"
    tiny.write_lycoris(tiny.unet(), "loha", source)
    record = made(source, "diffusers", algorithm="lora")
    assert record.status == DONE, record.message
    before, after = diffadapt.read_adapter(source), diffadapt.read_adapter(record.file)
    assert set(after.algorithms) == {"lora"}
    for key, delta in before.targets.items():
        shape = delta.shape_alone
        assert shape is not None
        one, two = (d.weight_delta(torch.zeros(shape)) for d in (delta, after.targets[key]))
        assert (one - two).norm() <= 2e-6 * one.norm()  # float32 of both


def test_metadata_and_trigger_words_survive(source: Path) -> None:
    record = made(source, "diffusers")
    assert header(source).items() <= header(record.file).items()
    assert diffadapt.read_adapter(record.file).metadata.trigger_words == ("ink",)
    stripped = header(made(source, "diffusers", strip=True, keep=("modelspec.li*",)).file)
    assert "ss_tag_frequency" not in stripped
    assert "modelspec.title" not in stripped
    assert stripped["modelspec.license"] == "Apache-2.0"


def test_a_file_says_where_it_came_from(source: Path) -> None:
    first = made(source, "diffusers")
    (entry,) = json.loads(header(first.file)[HISTORY])
    digest = blake3(source.read_bytes()).hexdigest()
    assert entry == {"blake3": digest, "version": diffadapt.__version__, "plan": {"to": "diffusers"}}
    assert first.blake3 == digest
    again = first.file.rename(source.with_name("first.safetensors"))
    two = json.loads(header(made(again, "kohya", dtype="fp32").file)[HISTORY])
    assert [one["plan"] for one in two] == [{"to": "diffusers"}, {"to": "kohya", "dtype": "fp32"}]


@pytest.mark.parametrize("options", [{"dtype": "fp16"}, {}])
def test_hashes_that_the_source_had_are_those_of_the_result(source: Path, options: dict[str, Any]) -> None:
    """As sd-scripts works them out: of the file with the metadata that begin with ss_."""
    said = {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8, "modelspec.hash_sha256": "0x0"}
    big = load_file(source)
    big["lora_unet_conv_in.lora_down.weight"] = torch.randn(4, 4, 3, 3)
    big["lora_unet_conv_in.lora_up.weight"] = torch.randn(300_000, 4, 1, 1)  # so that the legacy hash sees some
    save_file(big, source, {**files.HEADER, **said})
    record = made(source, "kohya", **options)
    assert record.status == DONE, record.message
    found, tensors = header(record.file), load_file(record.file)
    whole = save(tensors, {key: text for key, text in found.items() if key.startswith("ss_")})
    data = whole[8 + int.from_bytes(whole[:8], "little") :]
    assert found["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert found["modelspec.hash_sha256"] == f"0x{hashlib.sha256(data).hexdigest()}"
    assert found["sshs_legacy_hash"] == hashlib.sha256(whole[0x100000:0x110000]).hexdigest()[:8]
    assert diffadapt.io.hashes.hash_data(record.file) == found["sshs_model_hash"]
    assert "sshs_model_hash" not in header(made(files.plain(source), "kohya").file)


def test_keys_that_nothing_explains_are_named(source: Path) -> None:
    save_file(load_file(source) | {"lora_unet_conv_in.strange": torch.ones(3)}, source)
    record = made(source, "diffusers")
    assert record.status == DONE
    assert list(record.left_out) == ["lora_unet_conv_in.strange"]
    strict = made(source, "diffusers", strict=True)
    assert (strict.status, strict.kind) == (FAILED, "DialectError")
    assert "lora_unet_conv_in.strange" in strict.message


def test_pickles_become_safetensors(source: Path) -> None:
    pickled = source.with_name("old.pt")
    torch.save(load_file(source), pickled)
    record = made(pickled)
    assert record.status == DONE, record.message
    one, two = diffadapt.read_adapter(source), diffadapt.read_adapter(record.file)
    assert fingerprint(one) == fingerprint(two)


@pytest.mark.parametrize(
    "options", [{"dtype": "fp8"}, {"algorithm": "loha"}, {"only": "vae"}, {"keep": ("x",)}, {"rank": 0}]
)
def test_plans_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConvertError):
        Plan("kohya", **options)
