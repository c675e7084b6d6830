"""Every combination that PEFT's `add_weighted_adapter` has, against PEFT itself."""

from __future__ import annotations

import pytest
import torch

import diffadapt
from diffadapt.adapter import TargetKey
from tests.combine.made import error
from tests.combine.peft_mix import WEIGHTS, adapter, build, combined

PRUNING = {"density": 0.6}
VOTING = PRUNING | {"majority_sign": "frequency"}
KINDS = [
    ("cat", "cat", {}),
    ("svd", "svd", {}),
    ("linear", "peft_linear", {}),
    *[(kind, f"peft_{kind}", PRUNING) for kind in ("ties", "dare_linear", "dare_ties", "magnitude_prune")],
    *[(kind, kind, PRUNING) for kind in ("ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")],
    *[(kind, name, VOTING) for kind, name in (("ties", "peft_ties"), ("ties_svd", "ties_svd"))],
    *[(kind, name, VOTING) for kind, name in (("dare_ties", "peft_dare_ties"), ("dare_ties_svd", "dare_ties_svd"))],
]
CASES = [(kind, name, options, ranks) for kind, name, options in KINDS for ranks in ((4, 4), (4, 4, 4))]
CASES += [(*case, (4, 6, 5)) for case in KINDS if not case[1].startswith("peft_")]
TOLERANCE = 1e-5
AT_A_RANK = 1e-4
"""A cut between two singular values that lie close together makes more of the rounding before it."""


def mixed(model, ranks, name, options):
    pairs = [(adapter(model, f"a{number}"), WEIGHTS[number]) for number in range(len(ranks))]
    return diffadapt.combine(pairs, name, **options)


def peft_options(options):
    names = {"majority_sign": "majority_sign_method"}
    return {names.get(option, option): value for option, value in options.items()}


def record_draws(monkeypatch):
    """Keep the random numbers that diffadapt draws, and let PEFT's next draws be these."""
    draws, rand = [], torch.rand

    def recording(*shape, **options):
        draws.append(rand(*shape, **options))
        return draws[-1]

    monkeypatch.setattr(torch, "rand", recording)
    monkeypatch.setattr(torch, "bernoulli", lambda chance: (draws.pop(0).reshape(chance.shape) < chance).to(chance))
    return draws


@pytest.mark.parametrize("rank_stabilised", [False, True], ids=["", "rslora"])
@pytest.mark.parametrize(("kind", "name", "options", "ranks"), CASES, ids=str)
def test_the_same_as_peft(kind, name, options, ranks, rank_stabilised, monkeypatch):
    model = build(ranks, rank_stabilised)
    draws = record_draws(monkeypatch)
    mix = mixed(model, ranks, name, options)
    assert bool(draws) == ("dare" in kind)
    changes = combined(model, kind, len(ranks), **peft_options(options))
    assert not draws
    assert {key.module for key in mix.targets} == changes.keys()
    for module, truth in changes.items():
        if rank_stabilised:
            # PEFT copies the first adapter's config, rsLoRA with it, and sets alpha = rank without minding that the
            # scale is then alpha / sqrt(rank): its results come out sqrt(rank) times too strong.
            truth = truth / mix_rank(kind, ranks) ** 0.5
        seen = mix.targets[TargetKey("unet", module)].weight_delta(torch.zeros(truth.shape))
        assert error(seen, truth) < (AT_A_RANK if "svd" in kind else TOLERANCE), module


def mix_rank(kind, ranks):
    """The rank of PEFT's result."""
    return sum(ranks) if kind == "cat" else max(ranks)
