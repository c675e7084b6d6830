"""Methods that decide number by number: identities, what is kept, what is drawn, what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

import diffadapt
from diffadapt.adapter import Adapter
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.lora import LoRA
from diffadapt.algorithms.norm import Norm
from diffadapt.combine.methods import METHODS, method_named
from diffadapt.combine.methods.elementwise import AtRank, Elementwise, mark_of
from diffadapt.combine.methods.peft_factors import Factorwise
from diffadapt.combine.methods.pruning import largest
from diffadapt.errors import CombineError
from tests.algorithms.samples import SAMPLES
from tests.combine.made import KEY, adapter, base, dense, error, lora, of_sample

BY_NUMBER = [name for name, method in METHODS.items() if issubclass(method, Elementwise)]
ON_CHANGES = [name for name in BY_NUMBER if not issubclass(METHODS[name], Factorwise)]
EXACT = [name for name in ON_CHANGES if not issubclass(METHODS[name], AtRank)]
SUMS = ["magnitude_prune", "dare_linear", "breadcrumbs", "della_linear"]
MEANS = ["ties", "dare_ties", "della"]
SEEDED = ["dare_linear", "dare_ties", "della_linear", "della"]
MERGING = [sample for sample in SAMPLES if sample.delta().live_only is None]
LINEAR = nn.Linear(24, 32)
TOLERANCE = 3e-6


def pruned(name, change, mark=b"a", **options):
    """What a method leaves of one change."""
    method = method_named(name, options)
    assert isinstance(method, Elementwise)
    return method.prune(change.clone(), mark)


def test_the_lists_above_hold_every_method():
    assert set(EXACT) == {*SUMS, *MEANS}
    assert {name.removesuffix("_svd") for name in ON_CHANGES} == set(EXACT)


@pytest.mark.parametrize("sample", MERGING, ids=lambda s: s.name)
def test_density_one_is_the_sum(sample):
    module, delta = of_sample(sample)
    pair = [(adapter(delta, "one"), 0.7), (adapter(delta, "two"), -0.2)]
    truth = diffadapt.combine(pair, base=base(module)).targets[KEY]
    weight, bias = module.weight.detach(), getattr(module, "bias", None)
    bias = None if bias is None else bias.detach()
    for name in SUMS:
        mix = diffadapt.combine(pair, name, base=base(module), density=1.0).targets[KEY]
        torch.testing.assert_close(mix.weight_delta(weight), truth.weight_delta(weight), atol=2e-6, rtol=1e-5)
        assert (mix.bias_delta(bias) is None) == (truth.bias_delta(bias) is None)
        if truth.bias_delta(bias) is not None:
            torch.testing.assert_close(mix.bias_delta(bias), truth.bias_delta(bias), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", MEANS)
def test_where_all_agree_an_election_gives_the_mean(name):
    one = adapter(lora(4, 1))
    mix = diffadapt.combine([(one, 0.7), (one, 0.5)], name, density=1.0)
    assert error(dense(mix, LINEAR), 0.6 * dense(one, LINEAR)) < TOLERANCE


@pytest.mark.parametrize("name", BY_NUMBER)
def test_one_adapter_of_weight_one_at_density_one_is_itself(name):
    one = adapter(lora(4, 1))
    options = {} if name == "peft_linear" else {"density": 1.0}
    mix = diffadapt.combine({one: 1.0}, name, **options)
    assert error(dense(mix, LINEAR), dense(one, LINEAR)) < TOLERANCE


@pytest.mark.parametrize("name", BY_NUMBER)
def test_neither_order_nor_names_matter(name):
    three = [(adapter(lora(4, seed), f"a{seed}"), weight) for seed, weight in ((1, 0.8), (2, -0.5), (3, 0.3))]
    ahead = dense(diffadapt.combine(three, name), LINEAR)
    renamed = [(dataclasses.replace(one, name="x"), weight) for one, weight in reversed(three)]
    assert error(dense(diffadapt.combine(renamed, name), LINEAR), ahead) < 1e-5


@pytest.mark.parametrize("name", BY_NUMBER)
def test_a_weight_and_its_negative_cancel(name):
    mix = diffadapt.combine([(adapter(lora(4, 1), "one"), 0.6), (adapter(lora(4, 1), "two"), -0.6)], name)
    assert dense(mix, LINEAR).abs().max() < 1e-6


@pytest.mark.parametrize("name", EXACT)
def test_adapters_are_left_as_they_were_and_results_are_dense(name):
    generator = torch.Generator().manual_seed(2)
    deltas = [Full(torch.randn(32, 24, generator=generator), torch.randn(32, generator=generator)) for _ in range(2)]
    kept = [(delta.diff.clone(), delta.diff_b.clone()) for delta in deltas]
    mix = diffadapt.combine([(adapter(delta), 0.5) for delta in deltas], name)
    assert isinstance(mix.targets[KEY], Full)
    for delta, (diff, diff_b) in zip(deltas, kept, strict=True):
        assert torch.equal(delta.diff, diff)
        assert torch.equal(delta.diff_b, diff_b)


def test_largest_keeps_exactly_as_many_also_of_equal_numbers():
    generator = torch.Generator().manual_seed(1)
    for change in (
        torch.randn(31, 17, generator=generator),
        torch.randint(-3, 4, (31, 17), generator=generator).float(),
        torch.zeros(31, 17),
    ):
        before = torch.zeros_like(change, dtype=torch.bool)
        for count in (0, 1, 100, 263, 526, 527):
            mask = largest(change, count)
            assert int(mask.sum()) == count
            assert not (before & ~mask).any()  # the larger mask holds the smaller one
            if 0 < count < change.numel():
                assert change[mask].abs().min() >= change[~mask].abs().max()
            before = mask


def test_breadcrumbs_drops_both_ends():
    change = torch.arange(1.0, 101.0)[torch.randperm(100, generator=torch.Generator().manual_seed(0))].reshape(10, 10)
    change[::2] *= -1
    left = pruned("breadcrumbs", change, density=0.6, gamma=0.1).abs()
    assert sorted(left[left > 0].tolist()) == list(range(31, 91))
    left = pruned("breadcrumbs", change, density=0.95, gamma=0.1).abs()
    assert sorted(left[left > 0].tolist()) == list(range(1, 96))


@pytest.mark.parametrize("name", SEEDED)
def test_draws_have_the_density_and_the_mean(name):
    generator = torch.Generator().manual_seed(4)
    large = torch.randn(200, 150, generator=generator)
    kept = pruned(name, large, density=0.3, seed=9) != 0
    assert float(kept.float().mean()) == pytest.approx(0.3, abs=0.015)
    assert torch.equal(kept, pruned(name, large, density=0.3, seed=9) != 0)
    for other in (pruned(name, large, density=0.3, seed=10), pruned(name, large, b"b", density=0.3, seed=9)):
        assert float((kept & (other != 0)).float().mean()) == pytest.approx(0.09, abs=0.02)
    small = large[:12, :16]
    mean = torch.stack([pruned(name, small, density=0.5, seed=seed) for seed in range(400)]).mean(0)
    assert error(mean, small) < 0.08  # sqrt(1 / density - 1) / sqrt(400) = 0.05


def test_della_keeps_large_numbers_more_often():
    change = torch.randn(300, 100, generator=torch.Generator().manual_seed(6))
    kept = pruned("della", change, density=0.5, epsilon=0.8) != 0
    by_rank = kept.gather(1, change.abs().argsort(1)).float().mean(0)
    assert float(by_rank[:10].mean()) == pytest.approx(0.1 + 0.8 * 4.5 / 99, abs=0.05)
    assert float(by_rank[-10:].mean()) == pytest.approx(0.9 - 0.8 * 4.5 / 99, abs=0.05)


def test_marks_tell_tensors_apart_in_any_type():
    one, two = torch.randn(40, 50, generator=torch.Generator().manual_seed(1)), torch.zeros(40, 50)
    assert mark_of([one]) != mark_of([two]) != mark_of([one, two])
    assert mark_of([one.half()]) == mark_of([one.half().float()])
    assert mark_of([one.bfloat16()]) == mark_of([one.bfloat16().double()])


def test_a_rank_is_the_best_there_is_and_says_its_loss():
    pair = {adapter(lora(4, 1), "one"): 0.8, adapter(lora(6, 2), "two"): 0.5}
    whole = dense(diffadapt.combine(pair, "ties", density=0.4), LINEAR)
    values = torch.linalg.svdvals(whole.double())
    for name, rank in (("ties", 3), ("ties_svd", 3), ("ties_svd", None)):
        mix = diffadapt.combine(pair, name, rank=rank, density=0.4)
        best = float(values[rank or 6 :].norm() / values.norm())
        assert mix.targets[KEY].rank == (rank or 6)
        assert error(dense(mix, LINEAR), whole) == pytest.approx(best, rel=1e-4)
        assert mix.losses[KEY] == pytest.approx(best, rel=1e-4)
    assert json.loads(mix.metadata.raw["diffadapt.combine"])["options"] == {"density": 0.4}


def test_norms_and_biases_follow_the_rule():
    one, two = torch.tensor([4.0, -3.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 3.0, -4.0])
    norms = [(adapter(Norm(one, None)), 1.0), (adapter(Norm(two, two)), 2.0)]
    mix = diffadapt.combine(norms, "magnitude_prune", density=0.5).targets[KEY]
    assert isinstance(mix, Norm)
    assert mix.diff.tolist() == [4.0, -3.0, 6.0, -8.0]
    assert mix.diff_b.tolist() == [0.0, 0.0, 6.0, -8.0]
    assert diffadapt.combine(norms, "ties", density=1.0).targets[KEY].diff.tolist() == [3.0, -3.0, 4.0, -8.0]
    biases = [(adapter(Full(diff_b=one)), 1.0), (adapter(Full(diff_b=two)), 2.0)]
    assert diffadapt.combine(biases, "magnitude_prune").targets[KEY].diff_b.tolist() == [4.0, -3.0, 6.0, -8.0]
    for name in EXACT:
        assert diffadapt.combine(norms, name).targets[KEY].diff.shape == (4,)
    assert one.tolist() == [4.0, -3.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *[(name, {"density": 0}, f"{name}: density is 0; expected") for name in BY_NUMBER if name != "peft_linear"],
        ("ties", {"density": 1.5}, "density is 1.5; expected the share"),
        ("ties", {"density": "half"}, "density is 'half'"),
        ("ties", {"majority_sign": "loudest"}, "expected 'total' or 'frequency'"),
        ("dare_ties", {"majority_sign": 1}, "expected 'total' or 'frequency'"),
        ("dare_linear", {"seed": 0.5}, "seed is 0.5; expected a whole number"),
        ("breadcrumbs", {"gamma": 1.0}, "gamma is 1.0; expected a number of at least 0 and below 1"),
        ("della", {"density": 0.1, "epsilon": 0.4}, "probabilities from -0.1 to 0.3"),
        ("della_linear", {"density": 0.9, "epsilon": 0.4}, "probabilities from 0.7 to 1.1"),
        ("magnitude_prune", {"seed": 1}, "no option 'seed'; its options are density"),
        ("peft_linear", {"density": 0.5}, "no option 'density'; it has none"),
    ],
)
def test_options_are_refused(name, options, message):
    with pytest.raises(CombineError, match=message):
        diffadapt.combine({adapter(lora(4, 1)): 1.0}, name, **options)


def test_joining_factors_is_no_sum():
    one, two = lora(4, 1), lora(4, 2)
    turned = LoRA(two.down.flip(0), two.up.flip(1), two.alpha)  # the same change
    assert error(turned.weight_delta(LINEAR.weight), two.weight_delta(LINEAR.weight)) < TOLERANCE
    seen = [dense(diffadapt.combine([(adapter(one), 1.0), (adapter(d), 1.0)], "peft_linear"), LINEAR)
            for d in (two, turned)]  # fmt: skip
    truth = dense(diffadapt.combine([(adapter(one), 1.0), (adapter(two), 1.0)]), LINEAR)
    assert error(seen[0], seen[1]) > 0.3
    assert error(seen[0], truth) > 0.3


def test_joining_factors_wants_plain_loras_of_one_rank():
    one = (adapter(lora(4, 1), "one"), 1.0)
    with pytest.raises(CombineError, match="one has rank 4 and two 6"):
        diffadapt.combine([one, (adapter(lora(6, 1), "two"), 1.0)], "peft_ties")
    with pytest.raises(CombineError, match="the full of two is no plain LoRA"):
        diffadapt.combine([one, (Adapter("two", "kohya", {KEY: Full(torch.randn(32, 24))}), 1.0)], "peft_linear")
    with pytest.raises(CombineError, match="peft_linear: the rank stays the adapters'"):
        diffadapt.combine([one, one], "peft_linear", rank=2)
