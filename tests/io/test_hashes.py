"""The hashes that sites and trainers use, against their definitions."""

import hashlib

import pytest
import torch

from diffadapt.errors import SourceError
from diffadapt.io.hashes import hash_data, hash_file, hash_tensors
from diffadapt.io.safetensors import write_safetensors


def test_by_definition(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": torch.randn(300_000), "b": torch.randn(3).half()}, {"k": "v"})
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    hashes = hash_file(path)
    assert hashes.sha256 == hashlib.sha256(content).hexdigest()
    assert hashes.autov2 == hashes.sha256[:10]
    assert hashes.data_sha256 == hashlib.sha256(content[start:]).hexdigest() == hash_data(path)
    assert hashes.autov3 == hashes.data_sha256[:12]
    assert hashes.autov1 == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]


def test_metadata_change_only_the_whole_file(tmp_path):
    tensors = {"a": torch.randn(8)}
    write_safetensors(tmp_path / "one.safetensors", tensors, {"k": "v"})
    write_safetensors(tmp_path / "two.safetensors", tensors, {"k": "a longer value"})
    one, two = hash_file(tmp_path / "one.safetensors"), hash_file(tmp_path / "two.safetensors")
    assert one.autov3 == two.autov3
    assert one.autov2 != two.autov2
    assert one.autov1 == "e3b0c442"


def test_pickles_have_no_data_hash(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    assert hash_file(tmp_path / "x.pt").autov3 is None
    with pytest.raises(SourceError):
        hash_data(tmp_path / "x.pt")
    with pytest.raises(SourceError):
        hash_file(tmp_path / "missing.pt")


def test_tensor_hash_sees_content_and_not_storage():
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1)}
    value = hash_tensors(tensors)
    assert value == hash_tensors(dict(reversed(tensors.items())))
    assert value == hash_tensors(tensors | {"a": torch.arange(6.0).view(2, 3).t().contiguous().t()})
    assert value != hash_tensors(tensors | {"a": torch.arange(6.0).view(3, 2)})
    assert value != hash_tensors(tensors | {"a": tensors["a"].double()})
    assert value != hash_tensors({"a": tensors["a"], "c": tensors["b"]})
