"""Combinations and analyses on a base whose weights hold adapters now: to the bit what they are without them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import diffadapt
from diffadapt.adapter import Adapter, Foreign, TargetKey
from diffadapt.algorithms.full import Full
from diffadapt.combine.ground import Ground
from tests import tiny
from tests.algorithms.samples import SAMPLES
from tests.combine.made import KEY, adapter, base, lora, of_sample

MERGING = [sample for sample in SAMPLES if sample.delta().live_only is None]
CASES = [
    pytest.param(sample, dtype, id=f"{sample.name}-{dtype}".replace("torch.", ""))
    for sample in MERGING
    for dtype in (torch.bfloat16, torch.float32)
    if dtype == torch.bfloat16 or sample.delta().shape_alone is None
]
LOOKS = ["oft_rescaled", "dora"]
"""Files whose changes depend on the base weights: a rotation, and what a weight is decomposed for."""


def bits(made: Adapter) -> dict:
    """Every tensor of an adapter's deltas."""
    return {
        (name, role): tensor
        for name, delta in {**made.targets, **made.foreign}.items()
        for role, tensor in delta.tensors().items()
    }


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


@pytest.mark.parametrize(("sample", "dtype"), CASES)
def test_every_algorithm_sees_the_base(sample, dtype):
    module, delta = of_sample(sample)
    owner = diffadapt.enable(base(module))
    owner.components["unet"].to(dtype)
    before = tiny.snapshot(owner.components["unet"])
    pair = [(adapter(delta, "one"), 0.7), (adapter(delta, "two"), -0.2)]

    def results():
        found = diffadapt.compare([one for one, _ in pair], base=owner)
        assert not found.similarity.left_out
        return bits(diffadapt.combine(pair, base=owner)), found

    made, compared = results()
    owner.load_adapter(pair[0][0], adapter_name="one")
    assert_same(results()[0], made)
    owner.adapters.merge()
    assert not tiny.same_bits(owner.components["unet"], before)
    again, compared_again = results()
    assert_same(again, made)
    assert compared_again == compared
    owner.adapters.unmerge()
    assert tiny.same_bits(owner.components["unet"], before)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merged")
    model = tiny.unet()
    for name in (*LOOKS, "lora"):
        tiny.write_lycoris(model, name, folder / f"{name}.safetensors")
    return {name: diffadapt.read_adapter(folder / f"{name}.safetensors") for name in (*LOOKS, "lora")}


@pytest.mark.parametrize(
    ("remember", "loaded"),
    [("copy", (*LOOKS, "lora")), ("code", ("lora",))],  # a code is made of low-rank changes only
    ids=["copy", "code"],
)
def test_whole_pipelines(remember, loaded, files):
    pipe = diffadapt.enable(tiny.sd())
    pipe.unet.to(torch.bfloat16)
    before = tiny.snapshot(pipe.unet)

    def results():
        return bits(diffadapt.combine({files["oft_rescaled"]: 0.6, files["dora"]: 0.5}, base=pipe))

    truth, similar = results(), diffadapt.similarity([*files.values()], base=pipe)
    assert not similar.left_out
    for name in loaded:
        pipe.load_adapter(files[name], adapter_name=name, weight=0.5)
    assert set(pipe.adapters.merge(remember=remember).remembered) == {remember}
    assert not tiny.same_bits(pipe.unet, before)
    assert_same(results(), truth)
    assert diffadapt.similarity([*files.values()], base=pipe) == similar
    pipe.adapters.set({"lora": 0.3})
    assert_same(results(), truth)
    pipe.adapters.clear()
    assert tiny.same_bits(pipe.unet, before)


def test_what_the_stack_says_of_a_weight():
    module = nn.Linear(24, 32).requires_grad_(False)
    owner = diffadapt.enable(base(module))
    weight, bias = module.weight.clone(), module.bias.clone()
    stack = owner.adapters
    owner.load_adapter(adapter(Full(torch.ones(32, 24), diff_b=torch.ones(32))), adapter_name="a")
    owner.load_adapter(adapter(lora(4, 1)), adapter_name="b")
    assert stack.base_weight(KEY) is stack.base_bias(KEY) is stack.merge_of("a", KEY) is None
    stack.merge(["a"])
    assert torch.equal(stack.base_weight(KEY), weight)
    assert torch.equal(stack.base_bias(KEY), bias)
    assert torch.equal(module.bias, bias + 1)
    assert (stack.merge_of("a", KEY).survived, stack.merge_of("a", KEY).loss) == (1.0, 0.0)
    assert stack.merge_of("b", KEY) is None  # live beside it
    assert stack.base_weight(TargetKey("unet", "other")) is None
    stack.unmerge()
    assert stack.base_weight(KEY) is stack.base_bias(KEY) is stack.merge_of("a", KEY) is None


def test_a_final_merge_is_the_new_base():
    module = nn.Linear(24, 32).requires_grad_(False)
    owner = diffadapt.enable(base(module))
    replaced = adapter(Full(new_weight=torch.zeros(32, 24)))
    before = diffadapt.similarity([replaced], base=owner).norms[0]
    owner.load_adapter(adapter(Full(torch.ones(32, 24))), adapter_name="a")
    owner.adapters.merge()
    assert diffadapt.similarity([replaced], base=owner).norms[0] == before
    owner.adapters.keep_merged()
    after = diffadapt.similarity([replaced], base=owner).norms[0]
    assert after == pytest.approx(float(module.weight.norm()), rel=1e-6)
    assert after != before


class WithTable(nn.Module):
    """A model with a parameter that belongs to no layer: what adapters do to it is always in it."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.arange(12.0).reshape(3, 4))


def test_a_table_under_a_live_adapter():
    owner = diffadapt.enable(SimpleNamespace(components={"transformer": WithTable()}))
    model, key = owner.components["transformer"], TargetKey("transformer", "modulation")
    before = model.modulation.detach().clone()
    replaced = Adapter("new", "kohya", {key: Full(new_weight=torch.zeros(3, 4))})
    truth = diffadapt.similarity([replaced], base=owner)
    assert truth.norms[0] == pytest.approx(float(before.norm()))
    owner.load_adapter(Adapter("a", "kohya", {key: Full(torch.ones(3, 4))}), adapter_name="a")
    assert torch.equal(model.modulation, before + 1)
    assert torch.equal(owner.adapters.base_weight(key), before)
    assert diffadapt.similarity([replaced], base=owner) == truth
    assert owner.adapters.merge_of("a", key).survived == 1.0


def test_a_module_that_no_family_knows_is_found_in_the_base():
    """As a load finds it: by its name in any component, where the file does not say in which."""
    owner = base(nn.Linear(24, 32))
    ground = Ground(owner, ())
    for name in (Foreign(None, "layer", True), Foreign(None, "layer", False), Foreign("unet", "layer", True)):
        assert ground.place(name) == KEY
        assert ground.shape(name) == (32, 24)
        assert torch.equal(ground.weight(name, "a", lora(4, 1)), owner.components["unet"].layer.weight)
    for name in (Foreign("text_encoder", "layer", True), Foreign(None, "other", True)):
        assert ground.place(name) is ground.shape(name) is ground.bias(name) is None
