"""Safetensors: read what the library writes, write what the library reads, in the same bytes every time."""

import os
import stat

import pytest
import safetensors.torch as library
import torch

from diffadapt.errors import SourceError
from diffadapt.io.dtypes import DTYPES
from diffadapt.io.safetensors import read_header, read_safetensors, write_safetensors


def test_reads_what_the_library_writes(tmp_path, tensors, same):
    library.save_file(tensors, tmp_path / "x.safetensors", metadata={"ss_network_dim": "4", "note": "ä\n"})
    read, metadata = read_safetensors(tmp_path / "x.safetensors")
    same(read, tensors)
    assert metadata == {"ss_network_dim": "4", "note": "ä\n"}
    assert len(read) == len(tensors)
    assert "nope" not in read


def test_views_are_lazy_own_their_storage_and_never_reach_the_file(tmp_path, tensors):
    path = tmp_path / "x.safetensors"
    library.save_file(tensors, path)
    before = path.read_bytes()
    read, _ = read_safetensors(path)
    weight = read["a.lora_down.weight"]
    assert weight is read["a.lora_down.weight"]
    assert weight.untyped_storage().nbytes() == weight.numel() * 4
    weight.zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", list(DTYPES))
def test_every_dtype_round_trips(tmp_path, name):
    dtype = DTYPES[name]
    raw = torch.arange(64, dtype=torch.uint8).view(dtype) if dtype != torch.bool else torch.tensor([True, False])
    write_safetensors(tmp_path / "x.safetensors", {"t": raw.clone(), "scalar": raw[0].clone()})
    read, _ = read_safetensors(tmp_path / "x.safetensors")
    assert read["t"].dtype == dtype
    assert torch.equal(read["t"].view(torch.uint8), raw.view(torch.uint8))
    assert read["scalar"].shape == ()
    if name in library._TYPES:
        assert torch.equal(library.load_file(tmp_path / "x.safetensors")["t"].view(torch.uint8), raw.view(torch.uint8))


def test_unaligned_data_are_copied_and_right(tmp_path, tensors, same):
    library.save_file(tensors, tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    shifted = (length + 1).to_bytes(8, "little") + content[8 : 8 + length] + b" " + content[8 + length :]
    (tmp_path / "odd.safetensors").write_bytes(shifted)
    same(read_safetensors(tmp_path / "odd.safetensors")[0], tensors)


def test_header_alone(tmp_path, tensors):
    library.save_file(tensors, tmp_path / "x.safetensors", metadata={"k": "v"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.metadata == {"k": "v"}
    assert {key: (info.dtype, info.shape) for key, info in header.tensors.items()} == {
        key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()
    }
    assert header.file_bytes == (tmp_path / "x.safetensors").stat().st_size


def test_writes_the_bytes_of_the_library(tmp_path, tensors):
    write_safetensors(tmp_path / "mine.safetensors", tensors, {"only": "one"})
    library.save_file(tensors, tmp_path / "theirs.safetensors", metadata={"only": "one"})
    assert (tmp_path / "mine.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_equal_content_gives_equal_bytes(tmp_path, tensors):
    metadata = {f"k{i}": str(i) for i in range(20)}
    write_safetensors(tmp_path / "one", tensors, metadata)
    write_safetensors(tmp_path / "two", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_writes_strided_and_tied_tensors(tmp_path, same):
    base = torch.arange(12.0).view(3, 4)
    write_safetensors(tmp_path / "x.safetensors", {"base": base, "tied": base, "t": base.t(), "row": base[1]})
    expected = {"base": base, "tied": base, "t": base.t().contiguous(), "row": base[1].clone()}
    same(library.load_file(tmp_path / "x.safetensors"), expected)


def test_writing_over_a_mapped_source_keeps_its_tensors(tmp_path, tensors, same):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, tensors)
    read, _ = read_safetensors(path)
    write_safetensors(path, {key: read[key] for key in ("a.alpha", "b.counts")})
    same(read, tensors)
    assert set(read_header(path).tensors) == {"a.alpha", "b.counts"}


def test_mode_follows_the_umask_and_nothing_is_left_behind(tmp_path, tensors):
    old = os.umask(0o027)
    try:
        write_safetensors(tmp_path / "x.safetensors", tensors)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(
    ("content", "metadata"),
    [
        ({"a": torch.zeros(2, device="meta")}, {}),
        ({"a": [1.0]}, {}),
        ({"a": torch.eye(2).to_sparse()}, {}),
        ({"__metadata__": torch.zeros(1)}, {}),
        ({"\ud800": torch.zeros(1)}, {}),
        ({"a": torch.zeros(1)}, {"k": 1}),
    ],
)
def test_refuses_what_a_file_cannot_hold(tmp_path, content, metadata):
    with pytest.raises(SourceError):
        write_safetensors(tmp_path / "x.safetensors", content, metadata)
    assert not list(tmp_path.iterdir())


def test_failed_write_keeps_the_old_file(tmp_path, tensors, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, tensors)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SourceError, match="No space left"):
        write_safetensors(path, {"a": torch.zeros(1)})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]
    with pytest.raises(SourceError):
        write_safetensors(tmp_path / "no" / "folder.safetensors", tensors)
