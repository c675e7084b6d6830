"""Similarity, comparison and balance against dense float64 computation."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

import diffadapt
from diffadapt.adapter import Adapter, TargetKey
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.lora import LoRA
from diffadapt.errors import CombineError
from tests.algorithms.samples import SAMPLES
from tests.combine.made import KEY, adapter, base, lora, of_sample

MERGING = [sample for sample in SAMPLES if sample.delta().live_only is None and sample.name != "bias"]
every = pytest.mark.parametrize("sample", MERGING, ids=lambda s: s.name)
LAYERS = [TargetKey("unet", f"down_blocks.{n // 3}.resnets.{n % 3}.conv1") for n in range(6)]


def many(name: str, seed: int, rank: int = 4, scale: float = 1.0) -> Adapter:
    """An adapter over six layers of two blocks."""
    return Adapter(name, "kohya", {key: lora(rank, 10 * seed + n, alpha=scale) for n, key in enumerate(LAYERS)})


def cosine(one: Adapter, other: Adapter, keys=LAYERS) -> float:
    """The cosine of two adapters, dense and in float64."""
    a, b = (torch.cat([one_.targets[key].weight_delta(torch.zeros(32, 24)).double().flatten() for key in keys])
            for one_ in (one, other))  # fmt: skip
    return float(a @ b / a.norm() / b.norm())


def negative(one: Adapter) -> Adapter:
    targets = {key: dataclasses.replace(delta, alpha=-delta.alpha) for key, delta in one.targets.items()}
    return dataclasses.replace(one, name="minus", targets=targets)


def test_itself_its_negative_and_another_factorisation():
    one = many("one", 1)
    random = torch.Generator().manual_seed(0)
    turned = {}
    for key, delta in one.targets.items():
        mix = torch.randn(4, 4, generator=random, dtype=torch.float64)
        down, up = mix @ delta.down.double(), delta.up.double() @ mix.inverse()
        turned[key] = LoRA(down, up, delta.alpha)
    found = diffadapt.similarity([one, negative(one), dataclasses.replace(one, name="turned", targets=turned)])
    expected = [[1, -1, 1], [-1, 1, -1], [1, -1, 1]]
    torch.testing.assert_close(torch.tensor(found.matrix), torch.tensor(expected).float(), atol=1e-5, rtol=0)


def test_cosines_are_those_of_the_dense_changes():
    one, two = many("one", 1), many("two", 2, rank=7)
    mixed = diffadapt.combine({one: 0.8, two: 0.5})
    found = diffadapt.similarity([one, two, mixed])
    assert found.names == ("one", "two", "mix")
    for i, a in enumerate((one, two, mixed)):
        for j, b in enumerate((one, two, mixed)):
            assert found.matrix[i][j] == pytest.approx(cosine(a, b), abs=1e-6)
            block = found.blocks["unet", "down_blocks.1"]
            assert block[i][j] == pytest.approx(cosine(a, b, LAYERS[3:]), abs=1e-6)
    assert found.components["unet"] == found.matrix
    assert "cosine of whole adapters" in str(found)
    json.dumps(found.to_dict())


@every
def test_every_algorithm_beside_a_lora_and_a_difference(sample):
    module, delta = of_sample(sample)
    weight = module.weight.detach()
    truth = delta.weight_delta(weight).double()
    full = Full(torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    found = diffadapt.similarity(
        [adapter(delta, "it"), adapter(delta, "again"), adapter(full, "full")], base=base(module)
    )
    assert not found.left_out
    assert found.norms[0] == pytest.approx(float(truth.norm()), rel=1e-5, abs=1e-9)
    if truth.norm():
        assert found.matrix[0][1] == pytest.approx(1, abs=1e-5)
        expected = float((truth * full.diff).sum() / truth.norm() / full.diff.double().norm())
        assert found.matrix[0][2] == pytest.approx(expected, abs=1e-5)


def test_pairs_and_kronecker_products_meet_exactly():
    lokr = next(sample for sample in SAMPLES if sample.name == "lokr").delta()
    pair = lora(4, 1)
    zero = torch.zeros(32, 24)
    a, b = lokr.weight_delta(zero).double(), pair.weight_delta(zero).double()
    found = diffadapt.similarity([adapter(lokr, "lokr"), adapter(pair, "pair")])
    assert found.matrix[0][1] == pytest.approx(float((a * b).sum() / a.norm() / b.norm()), abs=1e-6)


def test_what_needs_the_base_is_named():
    sample = next(sample for sample in SAMPLES if sample.name == "dora")
    found = diffadapt.similarity([adapter(sample.delta(), "dora"), adapter(lora(4, 1), "lora")])
    assert "base=pipe" in found.left_out["dora"]["unet layer"]
    assert found.matrix[0][1] == 0
    assert "not measured, dora: unet layer" in str(found)
    with pytest.raises(CombineError, match="not measured, dora"):
        diffadapt.balance([adapter(sample.delta(), "dora"), adapter(lora(4, 1))], "equal_effect")


def test_adapters_of_different_models_are_refused():
    with pytest.raises(CombineError, match="changes of the shapes"):
        diffadapt.similarity([adapter(lora(4, 1)), adapter(lora(4, 1, rows=48))])
    with pytest.raises(CombineError, match="nothing to compare"):
        diffadapt.similarity([])


def test_comparison_of_what_cancels_and_what_repeats():
    one, two = many("one", 1), many("two", 2)
    found = diffadapt.compare([one, negative(one), one, two])
    assert found.names == ("one", "minus", "one (2)", "two")
    kinds = {(clash.adapters, clash.kind) for clash in found.clashes}
    assert (("one", "minus"), "opposed") in kinds
    assert (("one", "one (2)"), "alike") in kinds
    assert not any("two" in pair for pair, _ in kinds)
    assert found.shared[0][2] == pytest.approx(1)
    assert sum(row.share[0] for row in found.rows) == pytest.approx(1)
    assert found.rows[0].directions[0][1] == pytest.approx(1, abs=1e-6)
    assert found.rows[0].directions[0][3] < 0.4
    assert "opposed: one and minus in unet down_blocks.0" in str(found)
    json.dumps(found.to_dict())


def test_weights_count_in_a_comparison():
    one, two = many("one", 1), many("two", 1)
    found = diffadapt.compare({one: 2.0, two: -1.0})
    assert found.rows[0].energy[0] == pytest.approx(4 * found.rows[0].energy[1])
    for row, keys in zip(found.rows, (LAYERS[:3], LAYERS[3:]), strict=True):
        whole = torch.cat([one.targets[key].weight_delta(torch.zeros(32, 24)).double().flatten() for key in keys])
        assert row.norms == pytest.approx((2 * float(whole.norm()), float(whole.norm())))
    assert {clash.kind for clash in found.clashes} == {"opposed"}
    with pytest.raises(CombineError, match="2 adapters and 1 weights"):
        diffadapt.compare([one, two], [1.0])


def test_outliers_are_named():
    one = many("one", 1, rank=6)
    loud = dataclasses.replace(one.targets[LAYERS[2]], alpha=100.0)
    flat = lora(6, 99)
    up = flat.up.clone()
    up[:, 1:] *= 0.01
    odd = {**one.targets, LAYERS[2]: loud, LAYERS[5]: dataclasses.replace(flat, up=up, alpha=8.0)}
    found = diffadapt.compare([dataclasses.replace(one, targets=odd)])
    assert {(o.kind, o.target.rpartition(" ")[2]) for o in found.outliers} == {
        ("norm", LAYERS[2].module), ("dominant", LAYERS[5].module)}  # fmt: skip
    assert found.outliers[0].value > 20


def test_balance():
    quiet, loud = many("quiet", 1, scale=1.0), many("loud", 2, scale=5.0)
    assert diffadapt.balance([quiet, loud]) == {"quiet": 0.5, "loud": 0.5}
    assert diffadapt.balance({quiet: 10, loud: 5}, total=0.9) == pytest.approx({"quiet": 0.6, "loud": 0.3})
    found = diffadapt.balance([quiet, loud], "equal_effect", 1.2)
    norms = diffadapt.similarity([quiet, loud]).norms
    assert sum(found.values()) == pytest.approx(1.2)
    assert found["quiet"] * norms[0] == pytest.approx(found["loud"] * norms[1])
    for wrong, words in ((([quiet], "magic"), "no rule"), (({quiet: -1.0}, "constant_total"), "shares")):
        with pytest.raises(CombineError, match=words):
            diffadapt.balance(*wrong)
    nothing = adapter(Full(diff_b=torch.ones(4)), "nothing")
    with pytest.raises(CombineError, match="nothing changes no weight"):
        diffadapt.balance([nothing, quiet], "equal_effect")


def test_base_of_a_module_is_enough():
    module = nn.Linear(24, 32)
    replaced = Full(new_weight=torch.randn(32, 24))
    found = diffadapt.similarity([adapter(replaced)], base=base(module))
    assert found.norms[0] == pytest.approx(float((replaced.new_weight - module.weight.detach()).norm()), rel=1e-5)
    assert set(found.blocks) == {("unet", "(top level)")} == {(KEY.component, "(top level)")}
