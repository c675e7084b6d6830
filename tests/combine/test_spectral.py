"""Methods made of sums, singular values and vectors: identities, and each formula once more in plain float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import diffadapt
from diffadapt.adapter import Adapter, TargetKey
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.lora import LoRA
from diffadapt.algorithms.norm import Norm
from diffadapt.errors import CombineError
from tests.combine.made import KEY, adapter, dense, error, lora

MODULE = nn.Linear(24, 32)
TOLERANCE = 1e-5
SPECTRAL = ["slerp", "karcher", "knots", "core_space", "iso", "tsv", "perpendicular"]
SYMMETRIC = ["slerp", "karcher", "knots", "core_space", "iso", "tsv"]
every = pytest.mark.parametrize("method", SPECTRAL)


def full(rank, seed):
    return Full(matrix(rank, seed).float())


def matrix(rank, seed) -> Tensor:
    return lora(rank, seed).weight_delta(MODULE.weight).double()


def mixed(method, deltas, weights, **options) -> Adapter:
    named = [adapter(delta, f"n{i}") for i, delta in enumerate(deltas)]
    return diffadapt.combine(list(zip(named, weights, strict=True)), method, **options)


def of(method, deltas, weights, **options) -> Tensor:
    return dense(mixed(method, deltas, weights, **options), MODULE).double()


@every
def test_pairs_and_full_differences_give_the_same(method):
    pairs = of(method, [lora(4, 1), lora(6, 2)], [0.7, 0.4])
    assert error(of(method, [full(4, 1), full(6, 2)], [0.7, 0.4]), pairs) < TOLERANCE
    assert error(of(method, [full(4, 1), lora(6, 2)], [0.7, 0.4]), pairs) < TOLERANCE
    assert isinstance(mixed(method, [lora(4, 1), lora(6, 2)], [0.7, 0.4]).targets[KEY], LoRA)
    assert isinstance(mixed(method, [full(4, 1), full(6, 2)], [0.7, 0.4], rank=3).targets[KEY], LoRA)


@pytest.mark.parametrize("method", [m for m in SPECTRAL if m != "iso"])
def test_a_zero_weight_leaves_the_first(method):
    assert error(of(method, [lora(4, 1), lora(6, 2)], [1.0, 0.0]), matrix(4, 1)) < TOLERANCE
    assert error(of(method, [lora(4, 1), lora(6, 2)], [0.0, 0.5]), 0.5 * matrix(6, 2)) < TOLERANCE
    assert of(method, [lora(4, 1), lora(6, 2)], [0.0, 0.0]).abs().max() == 0


@pytest.mark.parametrize("method", SYMMETRIC)
def test_order_does_not_matter(method):
    ahead = of(method, [lora(4, 1), lora(6, 2)], [0.7, 0.4])
    assert error(of(method, [lora(6, 2), lora(4, 1)], [0.4, 0.7]), ahead) < TOLERANCE


@every
def test_a_rank_is_the_best_of_the_whole_and_says_what_it_cost(method):
    whole = of(method, [lora(4, 1), lora(6, 2)], [0.7, 0.4])
    mix = mixed(method, [lora(4, 1), lora(6, 2)], [0.7, 0.4], rank=3)
    values = torch.linalg.svdvals(whole)
    best = float(values[3:].norm() / values.norm())
    assert mix.targets[KEY].rank == 3
    assert mix.losses[KEY] == pytest.approx(best, rel=1e-4)
    assert error(dense(mix, MODULE), whole) == pytest.approx(best, rel=1e-4)


@every
def test_a_layer_that_only_one_adapter_has(method):
    other = TargetKey("unet", "other")
    one = Adapter("one", "kohya", {KEY: lora(4, 1), other: lora(2, 5)})
    mix = diffadapt.combine({one: 0.5, adapter(lora(4, 2)): 1.0}, method)
    if method != "iso":
        assert error(mix.targets[other].weight_delta(MODULE.weight), 0.5 * matrix(2, 5)) < TOLERANCE
    assert set(mix.targets) == {KEY, other}


# Spherical means


def test_slerp_of_equal_and_of_orthogonal_changes():
    assert error(of("slerp", [lora(4, 1), lora(4, 1)], [0.3, 0.7]), matrix(4, 1)) < TOLERANCE
    one, two = torch.zeros(32, 24), torch.zeros(32, 24)
    one[:8], two[8:] = 2.0, 1.0
    mix = of("slerp", [Full(one), Full(two)], [0.25, 0.75])
    assert float(mix.norm()) == pytest.approx(0.25 * float(one.norm()) + 0.75 * float(two.norm()), rel=1e-6)
    assert error(mix / mix.norm(), math.cos(3 * math.pi / 8) * one / one.norm()
                 + math.sin(3 * math.pi / 8) * two / two.norm()) < TOLERANCE  # fmt: skip
    assert error(of("slerp", [Full(one), Full(two)], [0.5, 1.5]), 2 * mix) < TOLERANCE


def test_slerp_by_its_formula():
    one, two = matrix(4, 1), matrix(6, 2) + 0.5 * matrix(4, 1)
    a = math.acos(float((one * two).sum() / one.norm() / two.norm()))
    truth = (math.sin(0.7 * a) * one / one.norm() + math.sin(0.3 * a) * two / two.norm()) / math.sin(a)
    truth *= 0.7 * one.norm() + 0.3 * two.norm()
    assert error(of("slerp", [Full(one.float()), Full(two.float())], [0.7, 0.3]), truth) < TOLERANCE


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.2, 1.1)])
def test_karcher_of_two_is_slerp(weights):
    pair = [lora(4, 1), lora(6, 2)]
    assert error(of("karcher", pair, weights), of("slerp", pair, weights)) < TOLERANCE


def test_karcher_of_three_is_where_no_way_leads_on():
    changes, weights = [matrix(4, 1), matrix(6, 2), matrix(3, 3)], [0.5, 0.3, 0.4]
    mix = of("karcher", [lora(4, 1), lora(6, 2), lora(3, 3)], weights)
    length = sum(w * float(c.norm()) for w, c in zip(weights, changes, strict=True))
    assert float(mix.norm()) == pytest.approx(length, rel=1e-5)
    mean, gradient = mix / mix.norm(), torch.zeros_like(mix)
    for weight, change in zip(weights, changes, strict=True):
        unit = change / change.norm()
        cosine = float((unit * mean).sum())
        gradient += weight * math.acos(cosine) / math.sin(math.acos(cosine)) * (unit - cosine * mean)
    assert float(gradient.norm()) < 1e-5
    back = of("karcher", [lora(3, 3), lora(6, 2), lora(4, 1)], [0.4, 0.3, 0.5])
    assert error(back, mix) < TOLERANCE


def test_what_has_no_place_on_a_sphere():
    with pytest.raises(CombineError, match=r"slerp: takes 2 adapters, not 3"):
        of("slerp", [lora(4, 1)] * 3, [1.0] * 3)
    with pytest.raises(CombineError, match=r"karcher: a weight is -0.5"):
        of("karcher", [lora(4, 1), lora(4, 2)], [1.0, -0.5])
    for method in ("slerp", "karcher"):
        with pytest.raises(CombineError, match=r"unet layer: .*opposite"):
            of(method, [full(4, 1), Full(-matrix(4, 1).float())], [0.5, 0.5])
    nothing = Full(torch.zeros(32, 24))
    assert error(of("slerp", [lora(4, 1), nothing], [0.5, 0.5]), 0.5 * matrix(4, 1)) < TOLERANCE


# Shared bases


def ties(matrices, weights, density) -> Tensor:
    kept = []
    for each in matrices:
        count = int(density * each.numel())
        least = each.abs().flatten().sort(descending=True).values[count - 1]
        kept.append(torch.where(each.abs() >= least, each, 0))
    sign = torch.where(sum(kept) >= 0, 1.0, -1.0)
    agree = [torch.where(each * sign > 0, each, 0) for each in kept]
    return sum(w * each for w, each in zip(weights, agree, strict=True)) / sum(
        (each != 0).double() for each in agree
    ).clamp(min=1)


def test_knots_by_its_formula():
    one, two = matrix(4, 1), matrix(6, 2)
    u, s, vh = torch.linalg.svd(torch.cat([one, two], 1), full_matrices=False)
    rights = torch.split(s[:10, None] * vh[:10], 24, 1)
    truth = u[:, :10] @ ties(rights, [0.7, 0.4], 0.3)
    assert error(of("knots", [lora(4, 1), lora(6, 2)], [0.7, 0.4], density=0.3), truth) < TOLERANCE


def test_core_space_by_its_formula():
    one, two = matrix(4, 1), matrix(6, 2)
    u = torch.linalg.svd(torch.cat([one, two], 1), full_matrices=False)[0][:, :10]
    vh = torch.linalg.svd(torch.cat([one, two]), full_matrices=False)[2][:10]
    truth = u @ ties([u.T @ one @ vh.T, u.T @ two @ vh.T], [0.7, 0.4], 0.3) @ vh
    assert error(of("core_space", [lora(4, 1), lora(6, 2)], [0.7, 0.4], density=0.3), truth) < TOLERANCE


@pytest.mark.parametrize("method", ["knots", "core_space"])
def test_a_sum_in_a_shared_basis_is_the_sum(method):
    mix = of(method, [lora(4, 1), lora(6, 2)], [0.7, -0.4], merge="sum")
    assert error(mix, 0.7 * matrix(4, 1) - 0.4 * matrix(6, 2)) < TOLERANCE
    for options, said in (({"merge": "max"}, "merge is 'max'"), ({"density": 0}, "density is 0")):
        with pytest.raises(CombineError, match=said):
            of(method, [lora(4, 1), lora(6, 2)], [1.0, 1.0], **options)


# Singular values and vectors


def test_iso_makes_the_values_equal():
    total = 0.7 * matrix(4, 1) + 0.4 * matrix(6, 2)
    u, s, vh = torch.linalg.svd(total, full_matrices=False)
    u, s, vh = u[:, :10], s[:10], vh[:10]
    mix = of("iso", [lora(4, 1), lora(6, 2)], [0.7, 0.4])
    values = torch.linalg.svdvals(mix)
    assert float(values[9] / values[0]) == pytest.approx(1, rel=1e-5)
    assert float(values[10]) < 1e-5
    assert error(mix, s.mean() * u @ vh) < TOLERANCE
    energy = of("iso", [lora(4, 1), lora(6, 2)], [0.7, 0.4], keep="energy")
    assert float(energy.norm()) == pytest.approx(float(total.norm()), rel=1e-5)
    alone = torch.linalg.svdvals(of("iso", [lora(4, 1)], [1.0]))
    assert float(alone[3] / alone[0]) == pytest.approx(1, rel=1e-5)
    assert of("iso", [Full(torch.zeros(32, 24))], [1.0]).norm() == 0
    with pytest.raises(CombineError, match="keep is 'all'"):
        of("iso", [lora(4, 1)], [1.0], keep="all")


@pytest.mark.parametrize("share", [None, 0.5])
def test_tsv_by_its_formula(share):
    parts = []
    for weight, rank, seed in ((0.7, 4, 1), (-0.4, 6, 2)):
        u, s, vh = torch.linalg.svd(matrix(rank, seed), full_matrices=False)
        k = rank if share is None else rank // 2
        parts.append((u[:, :k], weight * s[:k], vh[:k]))
    left, right = torch.cat([p[0] for p in parts], 1), torch.cat([p[2] for p in parts])
    (a, _, b), (c, _, d) = (torch.linalg.svd(m, full_matrices=False) for m in (left, right))
    truth = a @ b @ torch.diag(torch.cat([p[1] for p in parts])) @ c @ d
    assert error(of("tsv", [lora(4, 1), lora(6, 2)], [0.7, -0.4], share=share), truth) < TOLERANCE


def test_tsv_of_one_and_of_two_equal_ones():
    assert error(of("tsv", [lora(4, 1)], [0.6]), 0.6 * matrix(4, 1)) < TOLERANCE
    assert error(of("tsv", [lora(4, 1), lora(4, 1)], [1.0, 1.0]), matrix(4, 1)) < TOLERANCE
    wide = [Full(torch.randn(32, 24, generator=torch.Generator().manual_seed(seed))) for seed in (1, 2, 3)]
    assert torch.linalg.matrix_rank(of("tsv", wide, [1.0] * 3), rtol=1e-4) == 24
    with pytest.raises(CombineError, match="share is 0"):
        of("tsv", [lora(4, 1)], [1.0], share=0)


@pytest.mark.parametrize("side", ["out", "in", "both"])
def test_perpendicular_by_its_formula(side):
    one, two, three = matrix(4, 1), matrix(6, 2), matrix(3, 3)

    def cleaned(change, earlier):
        u = torch.linalg.svd(torch.cat(earlier, 1), full_matrices=False)[0]
        vh = torch.linalg.svd(torch.cat(earlier), full_matrices=False)[2]
        r = 4 if len(earlier) == 1 else 10
        u, vh = u[:, :r], vh[:r]
        change = change if side == "in" else change - u @ (u.T @ change)
        return change if side == "out" else change - (change @ vh.T) @ vh

    truth = 0.5 * one + 0.7 * cleaned(two, [one]) + 0.4 * cleaned(three, [one, two])
    deltas = [lora(4, 1), lora(6, 2), lora(3, 3)]
    mix = of("perpendicular", deltas, [0.5, 0.7, 0.4], side=side, energy=1)
    assert error(mix, truth) < TOLERANCE
    assert abs(float(((mix - 0.5 * one) * one).sum())) < 1e-4
    back = of("perpendicular", deltas[::-1], [0.4, 0.7, 0.5], side=side, energy=1)
    assert error(back, mix) > 0.01


def test_perpendicular_takes_as_much_as_the_energy_says():
    one = torch.zeros(32, 24)
    one[0, 0], one[1, 1] = 3.0, 1.0
    two = torch.ones(32, 24)
    mix = of("perpendicular", [Full(one), Full(two)], [1.0, 1.0], energy=0.85)
    assert mix[0].abs().sum() == pytest.approx(3)
    assert mix[1, 2] == pytest.approx(1)
    for options, said in (({"side": "left"}, "side is 'left'"), ({"energy": 1.5}, "energy is 1.5")):
        with pytest.raises(CombineError, match=said):
            of("perpendicular", [lora(4, 1)], [1.0], **options)


# Content or style


def klora(weights=(1.0, 1.0), **options):
    targets = [TargetKey("unet", f"layer{i}") for i in range(3)]
    content = Adapter("content", "kohya", {t: lora(4, i, alpha=(2.0, 4.0, 8.0)[i]) for i, t in enumerate(targets)})
    style = Adapter("style", "kohya", {t: lora(6, i + 9) for i, t in enumerate(targets)})
    mix = diffadapt.combine([(content, weights[0]), (style, weights[1])], "klora", **options)
    return [mix.targets[t] for t in targets], [(content.targets[t], style.targets[t]) for t in targets]


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.5, 1.0])
def test_klora_by_its_formula(progress):
    made, pairs = klora((0.8, 0.9), progress=progress)
    changes = [tuple(d.weight_delta(MODULE.weight).double() for d in pair) for pair in pairs]
    gamma = sum(float(c.abs().sum() / s.abs().sum()) for c, s in changes) / 3
    for delta, (content, style) in zip(made, changes, strict=True):
        tops = [float(each.abs().flatten().sort(descending=True).values[:24].sum()) for each in (content, style)]
        chosen = 0.8 * content if tops[0] / gamma > tops[1] * (1.5 * progress + 0.5) else 0.9 * style
        assert error(delta.weight_delta(MODULE.weight), chosen) < TOLERANCE


def test_klora_goes_from_content_to_style_and_scale_alone_wins_nothing():
    ranks = [[delta.rank for delta in klora(progress=p)[0]] for p in (0.0, 0.5, 1.0)]
    counts = [row.count(4) for row in ranks]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    assert [d.rank for d in klora(gamma=1e-6)[0]] == [4, 4, 4]
    assert [d.rank for d in klora((1.0, 0.0), gamma=1e6)[0]] == [4, 4, 4]
    assert [d.rank for d in klora(k=1, rank=2)[0]] == [2, 2, 2]


def test_klora_with_what_has_no_rank_and_with_norms():
    with pytest.raises(CombineError, match=r"the full of n1 has no rank; .*k=64"):
        of("klora", [lora(4, 1), full(4, 2)], [1.0, 1.0])
    assert error(of("klora", [lora(4, 1), full(4, 2)], [1.0, 1.0], k=16, gamma=1e6), matrix(4, 2)) < TOLERANCE
    mix = mixed("klora", [Norm(torch.ones(5), None), Norm(torch.full((5,), 9.0), None)], [0.5, 0.5])
    assert torch.equal(mix.targets[KEY].diff, torch.full((5,), 4.5))
    with pytest.raises(CombineError, match="takes 2 adapters, not 1"):
        of("klora", [lora(4, 1)], [1.0])
    for options in ({"progress": 1.5}, {"k": 0}, {"gamma": 0}, {"beta": -1}):
        with pytest.raises(CombineError, match=f"{next(iter(options))} is"):
            of("klora", [lora(4, 1), lora(4, 2)], [1.0, 1.0], **options)
