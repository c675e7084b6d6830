"""Pickles of every layout give the tensors that torch gives, without torch's loader."""

import collections
import io
import pickle

import pytest
import torch

from diffadapt.errors import NotAnAdapterError, SourceError, UnsafeFileError
from diffadapt.io.dtypes import DTYPES
from diffadapt.io.pickles import read_pickle


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request, tmp_path):
    def write(value, name="x.pt"):
        torch.save(value, tmp_path / name, _use_new_zipfile_serialization=request.param)
        return tmp_path / name

    return write


def test_reads_what_torch_writes(save, tensors, same):
    same(read_pickle(save(tensors)).tensors, tensors)


def test_zip_tensors_are_views(tmp_path):
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "x.pt")
    before = (tmp_path / "x.pt").read_bytes()
    tensor = read_pickle(tmp_path / "x.pt").tensors["a"]
    tensor.zero_()
    assert (tmp_path / "x.pt").read_bytes() == before


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES.values() if not dtype.is_complex])
def test_every_dtype(tmp_path, dtype):
    raw = torch.arange(64, dtype=torch.uint8).view(dtype) if dtype != torch.bool else torch.tensor([True, False])
    torch.save({"t": raw}, tmp_path / "x.pt")
    read = read_pickle(tmp_path / "x.pt").tensors["t"]
    assert read.dtype == dtype
    assert torch.equal(read.view(torch.uint8), raw.view(torch.uint8))


def test_views_strides_and_shared_storages(save, same):
    base = torch.arange(24.0).view(4, 6)
    value = {"base": base, "t": base.t(), "row": base[2], "every": base[::2, 1::2], "tied": base, "none": base[:0]}
    same(read_pickle(save(value)).tensors, value)


def test_parameters_and_modules_state(save, same):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    same(read_pickle(save(module.state_dict())).tensors, module.state_dict())
    parameter = torch.nn.Parameter(torch.randn(3))
    parameter.note = "an attribute makes torch write the parameter differently"
    read = read_pickle(save({"p": parameter, "q": torch.nn.Parameter(torch.ones(2))})).tensors
    assert torch.equal(read["p"], parameter.detach())
    assert not read["p"].requires_grad


def test_nested_state_dict_and_plain_values(save, tensors, same):
    read = read_pickle(save({"state_dict": tensors, "epoch": 3, "optimizer": {"lr": 0.1}}))
    same(read.tensors, tensors)
    nested = {
        "unet": {"a": torch.ones(2), 7: torch.zeros(1)},
        "epoch": 3,
        "name": "x" * 100_000,
        "ok": True,
        "none": None,
    }
    read = read_pickle(save(nested))
    assert set(read.tensors) == {"unet.a", "unet.7"}
    assert read.metadata["epoch"] == "3"
    assert len(read.metadata["name"]) < 70_000
    assert read.metadata["ok"] == "True"


def test_textual_inversion(save):
    value = {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(2, 768))}),
        "name": "style",
        "step": 500,
        "sd_checkpoint": None,
    }
    read = read_pickle(save(value))
    assert read.tensors["string_to_param.*"].shape == (2, 768)
    assert read.metadata["name"] == "style"


def test_ordered_dict_with_metadata_and_bytes(save):
    state = collections.OrderedDict(a=torch.ones(1))
    state._metadata = {"": {"version": 1}}
    assert set(read_pickle(save({"state": state, "raw": b"bytes"})).tensors) == {"state.a"}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_bare_pickles_hold_no_tensors(tmp_path, protocol):
    path = tmp_path / "x.pt"
    path.write_bytes(pickle.dumps({"a": 1, "b": [1.5, None, "x"], "c": (1, 2, 3, 4)}, protocol=protocol))
    with pytest.raises(NotAnAdapterError, match="no tensors"):
        read_pickle(path)


def test_a_foreign_global_is_named(save):
    with pytest.raises(UnsafeFileError, match=r"'fractions\.Fraction'"):
        read_pickle(save({"a": torch.ones(1), "x": __import__("fractions").Fraction(1, 2)}))


def test_big_endian_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(1)}, buffer)
    (tmp_path / "x.pt").write_bytes(buffer.getvalue().replace(b"little", b"big\n\n\n"))
    with pytest.raises(SourceError, match="little-endian"):
        read_pickle(tmp_path / "x.pt")


def test_every_cut_of_a_file_is_refused(save, tensors, tmp_path):
    content = save(tensors).read_bytes()
    path = tmp_path / "cut.pt"
    for stop in range(0, len(content) - 1, max(1, len(content) // 150)):
        path.write_bytes(content[:stop])
        with pytest.raises(SourceError):
            read_pickle(path)


def test_the_same_key_twice_after_flattening(save):
    with pytest.raises(SourceError, match="two tensors"):
        read_pickle(save({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}))
