"""Smaller ranks: the best there are, by the rules of sd-scripts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import diffadapt
from diffadapt.adapter import Adapter, TargetKey
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.lora import LoRA
from diffadapt.algorithms.norm import Norm
from diffadapt.combine import spectrum
from diffadapt.combine.change import DenseChange
from diffadapt.errors import CombineError
from tests.algorithms.samples import SAMPLES
from tests.combine.made import KEY, adapter, base, dense, error, lora, of_sample

WEIGHT = torch.zeros(32, 24)
LINEAR = ("lora", "loha", "loha dense", "lokr", "lokr full", "lokr tucker", "lokr off its borders", "lokr peft full",
          "full", "lora conv", "lora tucker", "lora 1d", "adalora", "gralora", "dora", "oft")  # fmt: skip


def truth_of(delta, weight=WEIGHT):
    return delta.weight_delta(weight).double().flatten(1)


@pytest.mark.parametrize("name", LINEAR)
def test_the_error_is_the_tail_of_the_singular_values(name):
    module, delta = of_sample(next(sample for sample in SAMPLES if sample.name == name))
    truth = truth_of(delta, module.weight.detach())
    values = torch.linalg.svdvals(truth)
    small = diffadapt.resize(adapter(delta), 2, base=base(module))
    best = float(values[2:].norm() / values.norm())
    assert small.targets[KEY].rank == 2
    assert error(dense(small, module).double().flatten(1), truth) == pytest.approx(best, rel=1e-4, abs=2e-6)
    assert small.losses.get(KEY, 0.0) == pytest.approx(best, rel=1e-4, abs=2e-6)
    seen = spectrum(adapter(delta), base=base(module))[KEY]
    torch.testing.assert_close(seen, values[: len(seen)], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", LINEAR)
def test_the_full_rank_loses_nothing(name):
    module, delta = of_sample(next(sample for sample in SAMPLES if sample.name == name))
    whole = diffadapt.resize(adapter(delta), 1000, base=base(module))
    assert error(dense(whole, module), delta.weight_delta(module.weight.detach())) < 3e-6
    assert whole.losses.get(KEY, 0.0) < 1e-6


def test_a_lora_of_the_rank_stays_as_it_is():
    one = adapter(lora(4, 1))
    assert diffadapt.resize(one, 4).targets[KEY] is one.targets[KEY]
    assert diffadapt.resize(one, 4, dtype=torch.float16).targets[KEY].up.dtype == torch.float16


def test_rules_keep_what_they_say():
    values = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5])
    random = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(32, 5, generator=random)).Q
    right = torch.linalg.qr(torch.randn(24, 5, generator=random)).Q
    one = adapter(LoRA(right.T.contiguous(), left * values, 5.0))

    def rank(**rule):
        return diffadapt.resize(one, **rule).targets[KEY].rank

    # Of all: the sum 15.5; the squares 85.25.
    assert [rank(ratio=q) for q in (1, 1.9, 2.1, 4.1, 9, 100)] == [1, 1, 2, 3, 4, 5]
    assert [rank(cumulative=p) for p in (0.5, 0.6, 0.9, 0.95, 1.0)] == [1, 2, 3, 4, 5]
    assert [rank(share=p) for p in (0.86, 0.88, 0.96, 0.97, 0.99, 0.994, 0.999)] == [1, 2, 2, 3, 3, 4, 5]
    assert rank(rank=2, share=0.999) == 2
    for rule in ({"share": 0.95}, {"cumulative": 0.9}):
        small = diffadapt.resize(one, **rule)
        kept = torch.linalg.svdvals(truth_of(small.targets[KEY]))
        whole = values.double()
        if "share" in rule:
            assert kept.norm() >= 0.95 * whole.norm()
        else:
            assert kept.sum() >= 0.9 * whole.sum()


def test_a_layer_without_effect_gets_rank_one():
    nothing = dataclasses.replace(lora(4, 1), up=torch.zeros(32, 4))
    small = diffadapt.resize(adapter(nothing), share=0.9)
    assert small.targets[KEY].rank == 1
    assert not small.losses


def test_biases_norms_and_tables_of_vectors_stay():
    norm, embedding = TargetKey("unet", "norm"), TargetKey("text_encoder", "text_model.embeddings.token_embedding")
    bias = torch.randn(32)
    one = Adapter("one", "kohya", {
        KEY: dataclasses.replace(lora(8, 1), bias=bias), norm: Norm(torch.randn(12), torch.randn(12)),
        embedding: Full(torch.randn(30, 20)), TargetKey("unet", "other"): Full(torch.randn(32, 24), bias),
    })  # fmt: skip
    small = diffadapt.resize(one, 2)
    assert small.targets[norm] is one.targets[norm]
    assert small.targets[embedding] is one.targets[embedding]
    torch.testing.assert_close(small.targets[KEY].bias_delta(None), one.targets[KEY].bias_delta(None))
    other = small.targets[TargetKey("unet", "other")]
    assert other.rank == 2
    torch.testing.assert_close(other.bias_delta(None), bias)
    assert small.metadata.ranks == (2,)


def test_large_dense_changes_are_almost_the_best():
    random = torch.Generator().manual_seed(1)
    change = torch.randn(900, 20, generator=random) @ torch.randn(20, 800, generator=random)
    change += 0.3 * torch.randn(900, 800, generator=random)
    values = torch.linalg.svdvals(change.double())
    found = DenseChange(change).truncated(8)
    assert found.lost == pytest.approx(float(values[8:].norm() / values.norm()), rel=1e-3)


def test_wrong_options():
    one = adapter(lora(4, 1))
    for options, words in (({}, "how small"), ({"rank": 0}, "rank is 0"), ({"ratio": 0.5}, "ratio is 0.5"),
                           ({"share": 1.5}, "share is 1.5"), ({"share": 0.5, "ratio": 2.0}, "different rules"),
                           ({"cumulative": 0.0}, "cumulative is 0.0")):  # fmt: skip
        with pytest.raises(CombineError, match=words):
            diffadapt.resize(one, **options)


def test_a_missing_base_is_said_with_the_targets():
    sample = next(sample for sample in SAMPLES if sample.name == "oft")
    with pytest.raises(CombineError, match=r"1 of its changes cannot be made: unet layer: .*base"):
        diffadapt.resize(adapter(sample.delta()), 2)


def test_saved_and_read_again(tmp_path):
    key = TargetKey("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    one = Adapter("one", "kohya", {key: lora(8, 1, 640, 640)}, candidates=("sdxl",))
    small = diffadapt.resize(one, 3)
    again = diffadapt.read_adapter(small.save(tmp_path / "small.safetensors"))
    module = nn.Linear(640, 640)
    truth = small.targets[key].weight_delta(module.weight)
    assert error(again.targets[key].weight_delta(module.weight), truth) < 1e-6
