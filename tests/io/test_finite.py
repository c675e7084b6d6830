"""NaN and infinity are found in every float dtype, at every place, and named."""

import pytest
import safetensors.torch as library
import torch

from diffadapt.errors import NonFiniteError
from diffadapt.io.checkpoint import RawCheckpoint
from diffadapt.io.finite import CHUNK, RULES, has_nonfinite
from diffadapt.io.source import read_checkpoint


@pytest.mark.parametrize("dtype", [dtype for dtype in RULES if dtype.itemsize <= 2])
def test_every_bit_pattern_agrees_with_torch(dtype):
    """All 256 or 65 536 values, one by one, against torch's own answer in float64."""
    count = 256**dtype.itemsize
    bits = torch.arange(count, dtype=torch.int64).to(torch.int32)
    values = bits.to(torch.uint8 if dtype.itemsize == 1 else torch.uint16).view(dtype)
    expected = ~torch.isfinite(values.to(torch.float32))
    step = 1 if count == 256 else 7
    mine = torch.tensor([has_nonfinite(values[i : i + 1]) for i in range(0, count, step)])
    assert torch.equal(mine, expected[::step])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_floats(dtype):
    extreme = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min, torch.finfo(dtype).tiny, -0.0], dtype=dtype)
    assert not has_nonfinite(extreme)
    for value in (float("nan"), -float("nan"), float("inf"), -float("inf")):
        assert has_nonfinite(torch.cat([extreme, torch.tensor([value], dtype=dtype)]))


@pytest.mark.parametrize("index", [0, CHUNK - 1, CHUNK, 2 * CHUNK + 4])
def test_every_chunk_is_looked_at(index):
    tensor = torch.zeros(2 * CHUNK + 5, dtype=torch.float16)
    assert not has_nonfinite(tensor)
    tensor[index] = -float("inf")
    assert has_nonfinite(tensor)


def test_odd_tensors():
    assert not has_nonfinite(torch.full((3,), 2**31 - 1, dtype=torch.int32))
    assert not has_nonfinite(torch.empty(0))
    matrix = torch.zeros(4, 6)
    matrix[3, 5] = float("nan")
    assert has_nonfinite(matrix.t())
    assert not has_nonfinite(matrix.t()[:5])
    assert has_nonfinite(torch.tensor([1j * float("nan")]))
    assert has_nonfinite(torch.tensor(float("inf"), requires_grad=True))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_names_the_first_and_counts_all(tmp_path, suffix):
    tensors = {f"k{i:02d}": torch.zeros(3, 3).half() for i in range(12)} | {
        "wide": torch.zeros(2),
        "n": torch.ones(1).int(),
    }
    for key in ("k03", "k04", "k07", "k11", "wide"):
        tensors[key].view(-1)[-1] = float("nan")
    path = tmp_path / f"bad{suffix}"
    library.save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    raw = read_checkpoint(path)
    with pytest.raises(NonFiniteError, match=rf"bad{suffix}: 5 of 14 .*'.*, \.\.\."):
        raw.check_finite()
    with pytest.raises(NonFiniteError, match=r"1 of 14 tensors .*: 'k07'\."):
        raw.check_finite(["k06", "k07", "k08"])
    raw.check_finite(["k00", "k05", "k06", "n"])
    raw.check_finite([])


def test_unaligned_file(tmp_path):
    library.save_file({"a": torch.ones(5), "b": torch.tensor([1.0, float("inf")])}, tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    odd = (length + 3).to_bytes(8, "little") + content[8 : 8 + length] + b"   " + content[8 + length :]
    (tmp_path / "odd.safetensors").write_bytes(odd)
    with pytest.raises(NonFiniteError, match="'b'"):
        read_checkpoint(tmp_path / "odd.safetensors").check_finite()


def test_state_dict():
    with pytest.raises(NonFiniteError, match="state dict: 1 of 2"):
        RawCheckpoint({"good": torch.ones(2), "bad": torch.tensor(float("nan"))}).check_finite()
