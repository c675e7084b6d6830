"""Batches whose samples carry different adapters: every row is what it would be with its own adapters alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import diffadapt
from diffadapt.algorithms.layer import Layer
from diffadapt.inject.mixed_rows import BatchLayout, MixedRows
from diffadapt.inject.slot import Entry, Slot
from tests import tiny
from tests.algorithms.samples import SAMPLES

CASES = [sample for sample in SAMPLES if sample.module != "table"]
EXACT = 2e-7
"""Of the change, in float64: a graph has its strengths in float32; rows are summed in other blocks in other batches."""


# -- one module, every algorithm -----------------------------------------------------------------------------------


def partner(sample):
    """Another algorithm's delta for the same module, so that two meet on it."""
    others = [other for other in SAMPLES if other.module == sample.module and other.algorithm != sample.algorithm]
    return (others or [sample])[0].delta(lambda t: 0.5 * t)


def hooked(sample):
    module, x = sample.build()
    slot = Slot(module, Layer.of(module), module.weight.detach)
    slot.entries = [Entry("a", sample.delta(), 1.0), Entry("b", partner(sample), 1.0)]
    slot.attach()
    torch.manual_seed(9)
    shape = (10, *x.shape[1:])
    return module, slot, torch.randn(shape).double() if x.is_floating_point() else torch.randint(30, shape)


PROMPTS = ((1.0, 0.0), (0.0, 0.7), (0.0, 0.0), (0.5, -0.3), (1.0, 0.0))


def alone(module, slot, x, strengths):
    slot.rows = None
    for entry, value in zip(slot.entries, strengths, strict=True):
        entry.multiplier = value
    slot.invalidate()
    return module(x)


def mix(slot, prompts=PROMPTS, **options):
    for entry in slot.entries:
        entry.multiplier = 1.0
    slot.rows = MixedRows(slot, BatchLayout("module", len(prompts), **options))
    slot.rows.put([dict(zip(slot.entries, own, strict=True)) for own in prompts])


@pytest.mark.parametrize("way", ["eager", "grad", "traced"])
@pytest.mark.parametrize("sample", CASES, ids=lambda s: s.name)
def test_every_row_is_its_own_adapter(sample, way, monkeypatch):
    module, slot, x = hooked(sample)
    with torch.set_grad_enabled(way == "grad"):
        base = alone(module, slot, x, (0.0, 0.0))
        mix(slot)
        with monkeypatch.context() as patch:
            if way == "traced":  # the graph's own steps, without a compiler
                patch.setattr(torch.compiler, "is_compiling", lambda: True)
            mixed = module(x)
        for row in range(10):
            own = PROMPTS[row % 5]
            if not any(own):
                assert torch.equal(mixed[row], base[row])
                continue
            one = alone(module, slot, x[row : row + 1], own)
            assert (mixed[row] - one[0]).norm() <= EXACT * (one[0] - base[row]).norm() + 1e-12 * base[row].norm()


def test_images_follow_one_another_within_guidance():
    module, slot, x = hooked(CASES[0])
    mix(slot, PROMPTS[:2], images=2)
    x = x[:8]
    with torch.no_grad():
        mixed = module(x)
        for row, prompt in enumerate((0, 0, 1, 1, 0, 0, 1, 1)):
            assert torch.allclose(mixed[row], alone(module, slot, x[row : row + 1], PROMPTS[prompt])[0], atol=1e-12)


def test_frames_folded_into_the_batch_belong_to_their_sample():
    layout = BatchLayout("unet", 2, images=1, batch=4)
    assert layout.spread(torch.tensor([1.0, 2.0]), torch.empty(12, 1)).tolist() == [1.0] * 3 + [2.0] * 3 + [
        1.0, 1.0, 1.0, 2.0, 2.0, 2.0,
    ]  # fmt: skip


# -- the stack -----------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Two Linears and a convolution over 5 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.conv, self.leave = nn.Linear(24, 32), nn.Conv1d(5, 5, 3, padding=1), nn.Linear(32, 24)

    def forward(self, x):
        return self.leave(self.conv(self.enter(x)))


def lora(rank, seed):
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "enter": ((rank, 24), (32, rank)),
        "conv": ((rank, 5, 3), (5, rank, 1)),
        "leave": ((rank, 32), (24, rank)),
    }
    return {
        f"{name}.lora_{half}.weight": 0.3 * torch.randn(shape, generator=g)
        for name, pair in shapes.items()
        for half, shape in zip("AB", pair, strict=True)
    }


def oft(seed):
    g = torch.Generator().manual_seed(seed)
    blocks = {"enter": 4, "leave": 3}
    tensors = {f"{name}.oft_blocks": 0.1 * torch.randn(count, 8, 8, generator=g) for name, count in blocks.items()}
    return tensors | {f"{name}.alpha": torch.tensor(0.0) for name in blocks}


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = diffadapt.enable(Net().requires_grad_(False).eval())
    for seed, rank in enumerate((2, 3, 4)):
        model.load_adapter(lora(rank, seed), adapter_name=f"l{seed}", weight=0.5)
    model.load_adapter(oft(5), adapter_name="turn", weight=0.5)
    return model


@pytest.fixture
def x():
    return torch.randn(8, 5, 24, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def single(net, strengths, x):
    before = net.adapters.strengths
    net.adapters.set(strengths)
    y = net(x)
    net.adapters.set(before)
    return y


@torch.no_grad()
def test_names_mappings_and_base(net, x):
    net.adapters.set({"l0": 0.5, "l1": {"model": {"enter": 0.4, "leave": 1.5}}, "l2": 0.0, "turn": 0.5})
    entries = ["l0", "l1", "l2", "__base__", {"l0": 0.3, "turn": {"model": {"enter": 1.0, "default": 0.0}}}]
    ones = [
        {"l0": 0.5}, {"l1": {"model": {"enter": 0.4, "leave": 1.5}}}, {"l2": 1.0}, {},
        {"l0": 0.3, "turn": {"model": {"enter": 1.0, "default": 0.0}}},
    ]  # fmt: skip
    x = x[:5]
    strengths, values, before = net.adapters.strengths, net.adapters.values("l1"), net(x)
    state = tiny.snapshot(net)
    with net.adapters.mixed(entries) as adapters:
        assert adapters is net.adapters
        mixed = net(x)
        assert tiny.same_bits(net, state)
        with net.adapters.disable():
            base = net(x)
        assert torch.equal(net(x), mixed)
    assert torch.equal(mixed[3], base[3])
    assert torch.equal(base, single(net, {}, x))
    for row, one in enumerate(ones):
        assert torch.allclose(mixed[row], single(net, one, x)[row], atol=1e-5)
    assert torch.equal(net(x), before)
    assert (net.adapters.strengths, net.adapters.values("l1")) == (strengths, values)
    assert tiny.same_bits(net, state)


@torch.no_grad()
def test_until_it_is_ended_and_within_one_another(net, x):
    before = net(x)
    net.adapters.mix_batch(["l0", "l1"])
    outer = net(x)
    with net.adapters.mixed(["turn", "__base__"]):
        assert not torch.equal(net(x), outer)
    assert torch.equal(net(x), outer)
    net.adapters.set({"l0": 0.1, "l1": 0.5})
    assert torch.allclose(net(x)[0], single(net, {"l0": 0.1}, x)[0], atol=1e-5)
    net.adapters.remove("l1")
    assert torch.equal(net(x)[1], single(net, {}, x)[1])
    net.adapters.mix_batch(None)
    assert not net._forward_pre_hooks
    net.load_adapter(lora(3, 1), adapter_name="l1")
    net.adapters.set({"l0": 0.5, "l1": 0.5, "l2": 0.5, "turn": 0.5})
    assert torch.allclose(net(x), before, atol=1e-6)


def test_what_cannot_be_is_refused_and_changes_nothing(net, x):
    with torch.no_grad():
        before = net(x)
    for entries, message in (
        (["l0", "nobody"], "nobody"), ("l0", "an entry for every prompt"), ([], "an entry for every prompt"),
        ([{"l0": {"model": {"nowhere": 1.0}}}], "nowhere"),
        ([{"l0": diffadapt.schedule.window(0.0, 0.5)}], "schedule"),
    ):  # fmt: skip
        with pytest.raises(diffadapt.StackError, match=message):
            net.adapters.mix_batch(entries)
    with pytest.raises(diffadapt.StackError, match="at least 1"):
        net.adapters.mix_batch(["l0"], images_per_prompt=0)
    with pytest.raises(RuntimeError, match="mine"), net.adapters.mixed(["l0", "l1"]):
        raise RuntimeError("mine")
    with pytest.raises(diffadapt.StackError, match="8 rows, which are no multiple"), net.adapters.mixed(["l0"] * 3):
        net(x)
    with net.adapters.mixed(["l0", "l1"]), pytest.raises(diffadapt.MergeError, match="mixed batch"):
        net.adapters.merge()
    net.adapters.merge()
    with pytest.raises(diffadapt.StackError, match="unmerge"):
        net.adapters.mix_batch(["l0"])
    net.adapters.unmerge()
    net.load_adapter(lora(2, 8), adapter_name="young", weight=0.0, trainable=True)
    with pytest.raises(diffadapt.StackError, match="trained"):
        net.adapters.mix_batch(["l0", "young"])
    with torch.no_grad():
        assert torch.equal(net(x), before)


@torch.no_grad()
def test_another_assignment_recompiles_nothing(net, x):
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    plain = compiled(x)
    assert counter.frame_count == 1
    for entries in (["l0", "turn", "__base__", "l1"], ["l2", "l0", "turn", "__base__"], ["l1", "l1", "turn", "l0"]):
        with net.adapters.mixed(entries):
            assert torch.allclose(compiled(x), net(x), atol=1e-5)
    assert counter.frame_count == 2  # the one that serves every mixed batch
    assert torch.allclose(compiled(x), plain, atol=1e-5)
    assert counter.frame_count == 2
