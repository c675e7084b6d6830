"""The very bits come back: every dtype, every memory, any stack; and nothing is overwritten in silence."""

from __future__ import annotations

import random

import pytest
import torch

import diffadapt
from diffadapt.inject.codec import pack, unpack
from diffadapt.inject.memory import CodeMemory, checksum
from diffadapt.inject.terms import Terms
from tests import tiny

STACK = ("lora", "lokr", "oft", "boft", "dora")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def stacked(lycoris_files, dtype=torch.float32, names=STACK):
    pipe = diffadapt.enable(tiny.sd())
    pipe.unet.to(dtype)
    for name in names:
        pipe.load_adapter(lycoris_files[name][0], adapter_name=name)
    return pipe


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("remember", ["copy", "code", "file"])
def test_ten_cycles_in_any_order_give_back_the_bits(dtype, remember, lycoris_files, tmp_path):
    pipe = stacked(lycoris_files, dtype)
    pipe.unet.save_pretrained(tmp_path / "unet")
    before, rng = tiny.snapshot(pipe.unet), random.Random(0)
    for _ in range(10):
        names = rng.sample(STACK, rng.randint(1, 5))
        pipe.adapters.set({name: rng.uniform(-1, 1.5) for name in names})
        report = pipe.adapters.merge(remember=remember, base=tmp_path)
        assert not tiny.same_bits(pipe.unet, before)
        pipe.adapters.unmerge()
        assert tiny.same_bits(pipe.unet, before)
    if remember == "file":
        assert report.remembered.get("file") == 0
        # Only biases would be copied, and no variant here changes one.
        assert "copy" not in report.remembered


def test_a_merged_stack_follows_set_and_remove(lycoris_files):
    pipe = stacked(lycoris_files)
    before = tiny.snapshot(pipe.unet)
    pipe.adapters.merge()
    pipe.adapters.set({"lora": 0.5})
    merged = tiny.run(pipe.unet)
    pipe.adapters.unmerge()
    assert tiny.relative(tiny.run(pipe.unet), merged, tiny.run(tiny.unet())) < 2e-5
    pipe.adapters.merge()
    pipe.adapters.remove("lora")
    assert tiny.same_bits(pipe.unet, before)


def test_an_unchanged_mix_is_no_work(lycoris_files):
    pipe = stacked(lycoris_files)
    first = pipe.adapters.merge()
    versions = {n: p._version for n, p in pipe.unet.named_parameters()}
    again = pipe.adapters.merge()
    assert again.unchanged == len(first.layers) == len(again.layers)
    assert versions == {n: p._version for n, p in pipe.unet.named_parameters()}


@pytest.mark.parametrize("remember", ["copy", "code"])
def test_a_change_by_somebody_else_is_named_and_nothing_is_overwritten(remember, lycoris_files):
    pipe = stacked(lycoris_files, names=("lora",))
    before = tiny.snapshot(pipe.unet)
    pipe.adapters.merge(remember=remember)
    weight = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight
    weight.data.view(-1)[5] += 1e-3
    mixed = tiny.snapshot(pipe.unet)
    with pytest.raises(diffadapt.MergeError, match=r"mid_block.*attn1\.to_q.*somebody else changed"):
        pipe.adapters.unmerge()
    assert tiny.same_bits(pipe.unet, mixed)
    if remember == "copy":
        pipe.adapters.unmerge(force=True)
        assert tiny.same_bits(pipe.unet, before)


def test_a_cast_in_between_restores_the_cast_base(lycoris_files):
    pipe = stacked(lycoris_files, names=("lora",))
    wanted = tiny.snapshot(tiny.unet().to(torch.bfloat16))
    pipe.adapters.merge()
    pipe.unet.to(torch.bfloat16)
    pipe.adapters.unmerge()
    assert tiny.same_bits(pipe.unet, wanted)
    pipe = stacked(lycoris_files, names=("lora",))
    pipe.adapters.merge(remember="code")
    pipe.unet.to(torch.bfloat16)
    with pytest.raises(diffadapt.MergeError, match=r"cast from torch\.float32"):
        pipe.adapters.unmerge()


def test_a_merge_that_fails_half_way_leaves_everything_as_it_was(lycoris_files, monkeypatch):
    from diffadapt.inject import merging

    pipe = stacked(lycoris_files)
    before, live = tiny.snapshot(pipe.unet), tiny.run(pipe.unet)
    calls, real = [], merging.merge_module

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            raise MemoryError("no room")
        return real(*args, **kwargs)

    monkeypatch.setattr(merging, "merge_module", failing)
    with pytest.raises(MemoryError):
        pipe.adapters.merge()
    assert tiny.same_bits(pipe.unet, before)
    assert not pipe.adapters.merged
    assert torch.equal(tiny.run(pipe.unet), live)
    pipe.adapters.merge()  # calls beyond the seventh succeed
    merged = tiny.snapshot(pipe.unet)
    calls.clear()
    with pytest.raises(MemoryError):
        pipe.adapters.set({"lora": 0.1, "oft": 0.2})
    assert tiny.same_bits(pipe.unet, merged)
    assert pipe.adapters.active == dict.fromkeys(STACK, 1.0)


def test_save_pretrained_writes_the_merged_weights(lycoris_files, tmp_path):
    pipe = stacked(lycoris_files, names=("lora",))
    pipe.adapters.merge()
    pipe.unet.save_pretrained(tmp_path)
    again = type(pipe.unet).from_pretrained(tmp_path)
    assert torch.equal(tiny.run(again), tiny.run(pipe.unet))


def test_weak_adapters_are_reported_and_stay_live_in_auto_mode(lycoris_files):
    pipe = stacked(lycoris_files, torch.bfloat16, ("lora",))
    strong = pipe.adapters.merge()
    assert strong.survived > 0.9
    pipe.adapters.unmerge()
    pipe.adapters.set({"lora": 1e-4})
    weak = pipe.adapters.merge()
    assert weak.survived < 0.5
    assert "keep less than 90%" in str(weak)
    pipe.adapters.unmerge()
    auto = pipe.adapters.merge(mode="auto")
    assert len(auto.live) > 0
    assert not set(auto.live) & set(auto.layers)
    assert "would be lost" in next(iter(auto.live.values()))
    float32 = stacked(lycoris_files, torch.float32, ("lora",))
    float32.adapters.set({"lora": 1e-4})
    assert not float32.adapters.merge(mode="auto").live


def test_float8_weights_merge_and_come_back(lycoris_files):
    pipe = stacked(lycoris_files, names=("lora",))
    pipe.unet.to(torch.float8_e4m3fn)
    before = tiny.snapshot(pipe.unet)
    report = pipe.adapters.merge()
    assert report.survived < 1
    assert not tiny.same_bits(pipe.unet, before)
    pipe.adapters.unmerge()
    assert tiny.same_bits(pipe.unet, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_code_takes_at_most_a_quarter_and_is_exact(dtype):
    torch.manual_seed(0)
    weight = (torch.randn(512, 640) * 0.02).to(dtype)
    weight.view(-1)[:4] = torch.tensor([0.0, -0.0, torch.finfo(dtype).tiny, -torch.finfo(dtype).smallest_normal])
    before = weight.clone()
    terms = Terms(512, 640, torch.randn(512, 8) * 0.02, torch.randn(8, 640) * 0.02, None)
    memory = CodeMemory.merge(weight, terms)
    assert memory is not None
    assert memory.nbytes <= before.numel() * before.element_size() / 4
    assert checksum(memory.base(weight)) == checksum(before)
    assert torch.equal(memory.base(weight).view(torch.uint8), before.view(torch.uint8))


def test_a_change_far_larger_than_the_weight_falls_back_to_a_copy(lycoris_files):
    pipe = stacked(lycoris_files, names=("lora",))
    before = tiny.snapshot(pipe.unet)
    pipe.adapters.set({"lora": 500.0})
    report = pipe.adapters.merge(remember="code")
    assert report.remembered["copy"] > 0
    pipe.adapters.unmerge()
    assert tiny.same_bits(pipe.unet, before)


@pytest.mark.parametrize("integer", [torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("count", [1, 7, 64, 1001])
def test_packed_steps_unpack(integer, count):
    steps = torch.randint(-20, 20, (count,)).to(integer)
    packed, far = pack(steps.clone())
    seen = unpack(packed, count, integer)
    seen[far] = steps[far]
    assert torch.equal(seen, steps)
    assert packed.numel() <= count * (2 if integer.itemsize < 4 else 4) // 8 + 4


def test_checksum_sees_one_bit():
    weight = torch.randn(33, 7).bfloat16()
    before = checksum(weight)
    weight.view(torch.int16).view(-1)[-1] ^= 1
    assert checksum(weight) != before


def test_a_bias_that_the_module_lacks_is_refused_before_anything_changes():
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"  # a Linear without a bias
    other = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {
        f"{name}.diff_b": torch.ones(64),
        f"{other}.lora_down.weight": torch.ones(2, 64),
        f"{other}.lora_up.weight": torch.ones(64, 2),
    }
    pipe = diffadapt.enable(tiny.sd())
    before = tiny.snapshot(pipe.unet)
    pipe.load_adapter(tensors, adapter_name="a")
    live = tiny.run(pipe.unet)
    with pytest.raises(diffadapt.MergeError, match=r"to_q: the adapter changes a bias that the module does not have"):
        pipe.adapters.merge()
    assert tiny.same_bits(pipe.unet, before)
    report = pipe.adapters.merge(mode="auto")
    assert [key.module.rsplit(".", 1)[-1] for key in report.live] == ["to_q"]
    assert len(report.layers) == 1
    assert tiny.relative(tiny.run(pipe.unet), live, tiny.run(tiny.unet())) < 2e-5


def test_disabling_that_fails_leaves_the_stack_enabled(lycoris_files):
    pipe = stacked(lycoris_files, names=("lora",))
    pipe.adapters.merge()
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.data.add_(1)
    now = tiny.snapshot(pipe.unet)
    with pytest.raises(diffadapt.MergeError, match="somebody else changed"):
        pipe.adapters.disable()
    assert pipe.adapters.enabled
    assert pipe.adapters.active == {"lora": 1.0}
    assert tiny.same_bits(pipe.unet, now)
