"""Sums, concatenations and best low-rank approximations: identities over the whole registry."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import diffadapt
from diffadapt.adapter import Adapter, Embedding, Metadata, TargetKey
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.lora import LoRA
from diffadapt.errors import CombineError
from tests.algorithms.samples import SAMPLES
from tests.combine.made import KEY, adapter, base, dense, error, lora, of_sample

MERGING = [sample for sample in SAMPLES if sample.delta().live_only is None]
every = pytest.mark.parametrize("sample", MERGING, ids=lambda s: s.name)

TOLERANCE = 3e-6
"""Of the change: float32 sums of some hundred terms, and an SVD of them."""


@every
def test_one_adapter_with_weight_one_is_itself(sample):
    delta = sample.delta()
    assert diffadapt.combine({adapter(delta): 1.0}).targets[KEY].algorithm == delta.algorithm
    module, _ = of_sample(sample)
    mix = diffadapt.combine({adapter(delta): 1.0}, base=base(module))
    weight = module.weight.detach()
    assert torch.equal(mix.targets[KEY].weight_delta(weight), delta.weight_delta(weight))


@every
def test_the_sum_is_the_weighted_sum(sample):
    module, delta = of_sample(sample)
    weight, bias = module.weight.detach(), getattr(module, "bias", None)
    bias = None if bias is None else bias.detach()
    one, two = adapter(delta, "one"), adapter(delta, "two")
    mix = diffadapt.combine([(one, 0.7), (two, -0.2)], base=base(module)).targets[KEY]
    truth = 0.5 * delta.weight_delta(weight)
    if truth.norm() > 0:
        assert error(mix.weight_delta(weight), truth) < TOLERANCE
    change = delta.bias_change(bias, lambda: weight)
    if change is None:
        assert mix.bias_delta(bias) is None
    else:
        torch.testing.assert_close(mix.bias_delta(bias), 0.5 * change, atol=1e-6, rtol=1e-5)


@every
def test_a_weight_and_its_negative_cancel(sample):
    module, delta = of_sample(sample)
    mix = diffadapt.combine([(adapter(delta, "one"), 0.6), (adapter(delta, "two"), -0.6)], base=base(module))
    assert dense(mix, module).abs().max() <= 1e-6 * max(
        1.0, float(delta.weight_delta(module.weight.detach()).abs().max())
    )


@every
def test_what_shape_alone_says_is_true(sample):
    module, delta = of_sample(sample)
    weight = module.weight.detach()
    if delta.shape_alone is not None:
        assert delta.shape_alone[0] == weight.shape[0]
        assert torch.Size(delta.shape_alone).numel() == weight.numel()
        nothing = torch.zeros(()).expand(weight.shape)
        torch.testing.assert_close(delta.weight_delta(nothing), delta.weight_delta(weight))


def test_what_depends_on_the_base_asks_for_it():
    needy = [sample for sample in MERGING if sample.delta().shape_alone is None and sample.delta().rank is None]
    assert needy
    two = [(adapter(needy[0].delta(), "turn"), 0.5), (adapter(needy[0].delta(), "other"), 0.5)]
    with pytest.raises(CombineError, match="base=pipe"):
        diffadapt.combine(two)


@pytest.mark.parametrize("method", ["sum", "cat", "svd"])
def test_order_does_not_matter_and_a_zero_weight_leaves_the_first(method):
    module = nn.Linear(24, 32)
    one, two = adapter(lora(4, 1), "one"), adapter(lora(6, 2), "two")
    rank = {"rank": 10} if method == "svd" else {}
    ahead = diffadapt.combine({one: 0.8, two: -0.5}, method, **rank)
    back = diffadapt.combine({two: -0.5, one: 0.8}, method, **rank)
    assert error(dense(ahead, module), dense(back, module)) < TOLERANCE
    alone = diffadapt.combine({one: 1.0, two: 0.0}, method, **rank)
    assert error(dense(alone, module), dense(one, module)) < TOLERANCE


def test_svd_at_full_rank_is_cat_and_below_it_the_best_there_is():
    module = nn.Linear(24, 32)
    pair = {adapter(lora(4, 1), "one"): 0.8, adapter(lora(6, 2), "two"): -0.5}
    whole = dense(diffadapt.combine(pair, "cat"), module)
    assert error(dense(diffadapt.combine(pair, "svd", rank=10), module), whole) < TOLERANCE
    mix = diffadapt.combine(pair, "svd", rank=3)
    values = torch.linalg.svdvals(whole.double())
    best = float(values[3:].square().sum().sqrt() / values.norm())
    assert error(dense(mix, module), whole) == pytest.approx(best, rel=1e-4)
    assert mix.losses[KEY] == pytest.approx(best, rel=1e-4)
    assert mix.targets[KEY].rank == 3
    assert json.loads(mix.metadata.raw["diffadapt.combine"])["relative_error"]["largest"] == mix.losses[KEY]


def test_cat_adds_the_ranks_and_refuses_what_has_none():
    mix = diffadapt.combine({adapter(lora(4, 1)): 0.8, adapter(lora(6, 2)): 0.3}, "cat")
    assert mix.targets[KEY].rank == 10
    with pytest.raises(CombineError, match="full of b has no low-rank pair"):
        diffadapt.combine({adapter(lora(4, 1)): 1.0, adapter(Full(torch.randn(32, 24)), "b"): 1.0}, "cat")


def test_sums_of_large_ranks_are_kept_dense():
    mix = diffadapt.combine({adapter(lora(12, 1)): 0.8, adapter(lora(9, 2)): 0.3})
    assert isinstance(mix.targets[KEY], Full)


def test_layers_that_only_some_adapters_have():
    other = TargetKey("unet", "other")
    one = Adapter("one", "kohya", {KEY: lora(4, 1), other: lora(2, 5)})
    mix = diffadapt.combine({one: 0.5, adapter(lora(4, 2)): 1.0})
    module = nn.Linear(24, 32)
    truth = 0.5 * lora(2, 5).weight_delta(module.weight)
    assert error(mix.targets[other].weight_delta(module.weight), truth) < TOLERANCE
    assert set(mix.targets) == {KEY, other}


def test_saved_and_read_again(tmp_path):
    key = TargetKey("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    pair = [
        Adapter(name, "kohya", {key: lora(4, seed, 640, 640)}, candidates=("sdxl",)) for seed, name in enumerate("ab")
    ]
    mix = diffadapt.combine({pair[0]: 0.7, pair[1]: 0.6})
    for dialect in ("kohya", "diffusers", "peft"):
        again = diffadapt.read_adapter(mix.save(tmp_path / f"{dialect}.safetensors", dialect=dialect))
        weight = torch.zeros(640, 640)
        assert error(again.targets[key].weight_delta(weight), mix.targets[key].weight_delta(weight)) < TOLERANCE
    twice = diffadapt.combine({mix: 1.0, pair[0]: -0.7})
    truth = 0.6 * pair[1].targets[key].weight_delta(torch.zeros(640, 640))
    assert error(twice.targets[key].weight_delta(torch.zeros(640, 640)), truth) < 1e-5


def test_what_does_not_go_together():
    one, two = adapter(lora(4, 1), "one"), adapter(lora(4, 2, rows=16), "two")
    with pytest.raises(CombineError, match="unet layer: changes of the shapes"):
        diffadapt.combine({one: 1.0, two: 1.0})
    sdxl, flux = (Adapter(name, "kohya", {KEY: lora(4, 1)}, candidates=(name,)) for name in ("sdxl", "flux"))
    with pytest.raises(CombineError, match="different models: sdxl for sdxl; flux for flux"):
        diffadapt.combine({sdxl: 1.0, flux: 1.0})
    with pytest.raises(CombineError, match="no method is called 'magic'"):
        diffadapt.combine({one: 1.0}, "magic")
    with pytest.raises(CombineError, match="no option 'density'"):
        diffadapt.combine({one: 1.0}, "sum", density=0.5)
    with pytest.raises(CombineError, match="nothing to combine"):
        diffadapt.combine({})
    with pytest.raises(CombineError, match="rank is 0"):
        diffadapt.combine({one: 1.0}, rank=0)


def test_words_and_vectors_are_kept():
    vector = {"text_encoder": torch.randn(2, 8)}
    one = Adapter("one", "kohya", {KEY: lora(4, 1)}, embeddings={"sks": Embedding("sks", vector)},
                  metadata=Metadata(trigger_words=("sks",)))  # fmt: skip
    two = Adapter("two", "kohya", {KEY: lora(4, 2)}, metadata=Metadata(trigger_words=("ink", "sks")))
    mix = diffadapt.combine({one: 0.5, two: 0.5})
    assert mix.metadata.trigger_words == ("sks", "ink")
    assert set(mix.embeddings) == {"sks"}
    clash = Adapter(
        "clash", "kohya", {KEY: lora(4, 2)}, embeddings={"sks": Embedding("sks", {"text_encoder": torch.randn(2, 8)})}
    )
    with pytest.raises(CombineError, match="clash: another adapter means something else by the word 'sks'"):
        diffadapt.combine({one: 1.0, clash: 1.0})


def test_half_precision_on_demand():
    mix = diffadapt.combine({adapter(lora(4, 1)): 0.8, adapter(lora(6, 2)): 0.3}, dtype=torch.float16)
    delta = mix.targets[KEY]
    assert isinstance(delta, LoRA)
    assert delta.down.dtype == delta.up.dtype == torch.float16


def test_a_square_embedding_is_not_turned_over():
    random = torch.Generator().manual_seed(1)
    one = LoRA(torch.randn(3, 24, generator=random), torch.randn(24, 3, generator=random), 3.0, embedding=True,
               transposed=True)  # fmt: skip
    mix = diffadapt.combine([(adapter(one), 0.7), (adapter(one, "b"), 0.3)])
    weight = torch.zeros(24, 24)
    assert error(mix.targets[KEY].weight_delta(weight), one.weight_delta(weight)) < TOLERANCE


def test_a_replaced_bias_wants_the_base():
    one = Full(torch.randn(32, 24), new_bias=torch.randn(32))
    with pytest.raises(CombineError, match="replaces the bias; give the pipeline"):
        diffadapt.combine([(adapter(one), 0.5), (adapter(one, "b"), 0.2)])
