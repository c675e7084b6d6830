"""`pipe.adapters.fit`: what a load would apply, from the header of a file alone, and with nothing changed."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import diffadapt
from diffadapt.adapter import Adapter, TargetKey
from diffadapt.algorithms.lora import LoRA
from diffadapt.explain.recogniser import read
from diffadapt.io import headers
from tests import tiny


@pytest.fixture(scope="module")
def pipe():
    return diffadapt.enable(tiny.sd())


def stand_in(path) -> Adapter:
    """The adapter of a file by its header; only scalars have values."""
    text = headers.read_text(path)
    parsed = text.parse()
    small = headers.small_tensors(parsed.tensors)
    return read(text.checkpoint(parsed, small.by_key(headers.read_small(path, parsed.data_start, small))))


@pytest.fixture
def small_is_large(monkeypatch):
    """Every stand-in is on the meta device, as those of the largest tensors are."""
    monkeypatch.setattr(headers, "_LARGE", 1)
    headers.stand_in.cache_clear()
    yield
    headers.stand_in.cache_clear()


@pytest.mark.parametrize(
    ("kind", "on_meta"), [*((kind, True) for kind in tiny.LYCORIS), ("lora", False), ("lokr_dora", False)]
)
def test_a_header_says_what_a_load_applies(kind, on_meta, pipe, lycoris_files, request):
    if on_meta:
        request.getfixturevalue("small_is_large")
    path = lycoris_files[kind][0]
    adapter = stand_in(path)
    # The largest of each module: the small factor of a LoKr has no more bytes than a scalar may have, and is read.
    largest = [max(delta.tensors().values(), key=torch.Tensor.numel) for delta in adapter.targets.values()]
    assert all(tensor.is_meta or not tensor.any() for tensor in largest if tensor.numel() > 16)
    assert any(tensor.is_meta for tensor in largest) == on_meta
    before, hooks = tiny.snapshot(pipe.unet), hooking(pipe)
    found = pipe.adapters.fit(adapter)
    assert (pipe.adapters.names, hooking(pipe)) == ((), hooks)
    assert tiny.same_bits(pipe.unet, before)
    loaded = pipe.load_adapter(path, adapter_name=adapter.name)
    pipe.adapters.remove(adapter.name)
    assert found.complete
    assert found == loaded


def hooking(pipe) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in pipe.unet.modules())


def test_what_is_left_over_is_counted_without_a_warning_or_a_change(pipe, lycoris_files, tmp_path):
    tensors = load_file(lycoris_files["lora"][0])
    names = [key for key in tensors if "down_blocks_1" in key]
    extra = {key.replace("down_blocks_1", "down_blocks_7"): tensors[key].clone() for key in names}
    save_file({**tensors, **extra, "something.else": torch.zeros(1)}, tmp_path / "more.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pipe.adapters.fit(stand_in(tmp_path / "more.safetensors"))
    assert not found.complete
    assert len(found.applied) < found.total
    assert set(found.unmatched) == {*extra, "something.else"}
    assert all(".down_blocks.7." in name for name in found.unmatched_targets)
    with pytest.warns(diffadapt.UnmatchedKeysWarning, match=f"{len(extra) + 1} keys match nothing") as seen:
        loaded = pipe.load_adapter(tmp_path / "more.safetensors", adapter_name="more")
    pipe.adapters.remove("more")
    assert [warning.filename for warning in seen] == [__file__]
    assert loaded == found


def test_what_does_not_fit_is_an_error(pipe, lycoris_files, tmp_path):
    tensors = load_file(lycoris_files["lora"][0])
    wide = next(key for key in tensors if key.endswith("attn1_to_q.lora_down.weight"))
    save_file({**tensors, wide: torch.randn(4, 7)}, tmp_path / "wide.safetensors")
    with pytest.raises(diffadapt.TargetError, match=r"wide\.safetensors: .*attn1\.to_q does not fit"):
        pipe.adapters.fit(stand_in(tmp_path / "wide.safetensors"))
    elsewhere = {
        f"lora_unet_double_blocks_0_img_attn_proj.{key}": tensors[wide.replace("lora_down.weight", key)]
        for key in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    save_file(elsewhere, tmp_path / "flux.safetensors")
    with pytest.raises(diffadapt.TargetError, match="none of its 1 modules is in this pipeline"):
        pipe.adapters.fit(stand_in(tmp_path / "flux.safetensors"))
    assert pipe.adapters.names == ()


def test_beside_merged_adapters(pipe, lycoris_files):
    """The base weights that a fit looks at are those without what is merged."""
    pipe.load_adapter(lycoris_files["oft"][0], adapter_name="a")
    pipe.adapters.merge()
    before = tiny.snapshot(pipe.unet)
    for kind in ("oft", "dora", "lora"):
        assert pipe.adapters.fit(stand_in(lycoris_files[kind][0])).complete
    assert tiny.same_bits(pipe.unet, before)
    pipe.adapters.clear()


def test_two_names_of_one_module_leave_nothing_over(pipe):
    """A model's text encoder has one of the names; both deltas are applied, and no key is without a module."""
    delta = LoRA(torch.randn(2, 32), torch.randn(37, 2), 2.0)
    path = "encoder.layers.0.mlp.fc1"
    keys = [TargetKey("text_encoder", level + path) for level in ("", "text_model.")]
    adapter = Adapter("twice", "kohya", dict.fromkeys(keys, delta))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = pipe.load_adapter(adapter, strict=True)
    pipe.adapters.remove("twice")
    assert report.unmatched == report.unmatched_targets == ()
    assert dataclasses.replace(pipe.adapters.fit(adapter), name=report.name) == report
