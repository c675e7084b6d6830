"""Mutated files: never another exception than the package's own, and what is accepted is what others read too."""

import contextlib
import json
import pickletools
import struct

import pytest
import safetensors
import safetensors.torch as library
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffadapt.errors import DiffAdaptError
from diffadapt.io.pickles import read_pickle
from diffadapt.io.source import read_checkpoint
from tests.attacks.files import archive, entry, rebuild
from tests.attacks.files import safetensors as build

RELAXED = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

numbers = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**32, 2**53, 2**62, 2**63, 2**64, -(2**63)]),
    st.booleans(),
    st.floats(),
)
scalars = st.one_of(st.none(), numbers, st.text(max_size=4))
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)
dtypes = st.sampled_from(["F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "Q", ""])
entries = st.one_of(
    st.builds(
        entry, dtypes, st.lists(st.integers(0, 4), max_size=3), st.tuples(st.integers(0, 24), st.integers(0, 24))
    ),
    st.builds(entry, dtypes, st.lists(numbers, max_size=4), st.lists(numbers, max_size=3)),
    values,
)
keys = st.one_of(st.sampled_from(["a", "b", "__metadata__", ""]), st.text(max_size=5))


def check(path):
    """Read the file; whatever is accepted must equal what the safetensors library reads."""
    try:
        raw = read_checkpoint(path)
        mine = dict(raw.tensors)
    except DiffAdaptError:
        return
    theirs = library.load_file(path)
    assert set(mine) == set(theirs)
    for key, tensor in theirs.items():
        assert mine[key].dtype == tensor.dtype
        assert mine[key].shape == tensor.shape
        assert torch.equal(mine[key].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    with safetensors.safe_open(path, "pt") as opened:
        assert (opened.metadata() or {}) == dict(raw.metadata)


@RELAXED
@given(st.dictionaries(keys, entries, max_size=4), st.binary(max_size=24), st.sampled_from([0, 0, 0, 1, -1, 2**40]))
def test_safetensors_headers(tmp_path, header, data, lie):
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(build(text, data, max(len(text) + lie, 0)))
    check(path)


@RELAXED
@given(st.lists(st.tuples(dtypes, st.lists(st.integers(0, 3), max_size=3)), max_size=5), keys, st.integers(0, 7))
def test_well_formed_files_are_accepted(tmp_path, tensors, prefix, padding):
    """Tight layouts of known dtypes, at any alignment."""
    header, end = {}, 0
    for index, (dtype, shape) in enumerate(tensors):
        width = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}.get(dtype, 1)
        start, end = end, end + width * torch.Size(shape).numel()
        header[f"{prefix}{index}"] = entry(dtype, shape, (start, end))
    path = tmp_path / "x.safetensors"
    path.write_bytes(build(json.dumps(header).encode() + b" " * padding, bytes(i % 2 for i in range(end))))
    known = all(dtype not in ("F4", "Q", "") for dtype, _ in tensors)
    if tensors and known and f"{prefix}0".isprintable():
        assert len(read_checkpoint(path).tensors) == len(tensors)
    check(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One small adapter in three formats."""
    folder = tmp_path_factory.mktemp("saved")
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3).half(), "c": torch.tensor(2)}
    library.save_file(tensors, folder / "x.safetensors", metadata={"k": "v"})
    torch.save(tensors, folder / "zip.pt")
    torch.save(tensors, folder / "stream.pt", _use_new_zipfile_serialization=False)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@RELAXED
@given(st.data())
@pytest.mark.parametrize("name", ["x.safetensors", "zip.pt", "stream.pt"])
def test_flipped_bytes(tmp_path, saved, name, data):
    content = bytearray(saved[name])
    for _ in range(data.draw(st.integers(1, 3))):
        # The head holds the header or the pickle, the tail a zip archive's directory.
        near = data.draw(st.integers(0, min(700, len(content) - 1)))
        content[near if data.draw(st.booleans()) else -1 - near] = data.draw(st.integers(0, 255))
    path = tmp_path / name
    path.write_bytes(content)
    if name == "x.safetensors":
        check(path)
        return
    with contextlib.suppress(DiffAdaptError):
        read_checkpoint(path).check_finite()


@RELAXED
@given(st.lists(st.sampled_from(pickletools.opcodes), max_size=30), st.binary(max_size=40))
def test_random_opcodes(tmp_path, opcodes, filler):
    path = tmp_path / "x.pt"
    body = b"".join(code.code.encode("latin-1") + filler[: 1 + index % 5] for index, code in enumerate(opcodes))
    path.write_bytes(b"\x80\x02}" + body + b".")
    with pytest.raises(DiffAdaptError):
        read_pickle(path)


@RELAXED
@given(
    st.integers(-2, 20),
    st.lists(st.integers(-1, 5), max_size=3),
    st.lists(st.integers(-1, 8), max_size=3),
    st.integers(-1, 20),
)
def test_tensor_windows(tmp_path, offset, shape, stride, size):
    """A window is given exactly as torch cuts it, or refused; never memory outside the storage."""
    storage = torch.arange(16.0)
    path = tmp_path / "x.pt"
    opcodes = b"}X\1\0\0\0a" + rebuild(("FloatStorage", "0", size), offset, shape, stride) + b"s"
    path.write_bytes(archive(opcodes, storage.numpy().tobytes()))
    try:
        read = read_pickle(path).tensors["a"]
    except DiffAdaptError:
        return
    assert torch.equal(read, torch.as_strided(storage, shape, stride, offset) if read.numel() else torch.empty(shape))


def test_length_prefix_sweep(tmp_path, saved):
    path = tmp_path / "x.safetensors"
    body = saved["x.safetensors"][8:]
    for length in range(len(body) + 4):
        path.write_bytes(struct.pack("<Q", length) + body)
        check(path)
