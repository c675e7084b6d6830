"""Everything as LoRA: exact where that is possible, else the best, never silently less."""

from __future__ import annotations

import pytest
import torch

import diffadapt
from diffadapt.adapter import Adapter, TargetKey
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.loha import LoHa
from diffadapt.algorithms.lora import LoRA
from diffadapt.algorithms.norm import Norm
from diffadapt.algorithms.total import Sum
from diffadapt.errors import CombineError
from tests.algorithms.samples import SAMPLES
from tests.combine.made import KEY, adapter, base, dense, error, lora, of_sample

BY_NAME = {sample.name: sample for sample in SAMPLES}
EXACT = ("lora", "lora conv", "lora tucker", "lora bias", "lora grouped", "lora embedding", "loha", "loha tucker",
         "lokr tucker", "adalora", "glora", "glora old", "vblora", "unilora", "delora", "sum")  # fmt: skip
MERGING = [sample for sample in SAMPLES if sample.delta().live_only is None]


def test_a_loha_is_a_lora_of_the_squared_rank():
    random = torch.Generator().manual_seed(0)
    factors = [torch.randn(*shape, generator=random) for shape in ((96, 3), (3, 80), (96, 3), (3, 80))]
    loha = LoHa(*factors, alpha=1.5)
    made = diffadapt.to_lora(adapter(loha)).targets[KEY]
    assert isinstance(made, LoRA)
    assert made.rank == 9
    weight = torch.zeros(96, 80)
    a1, b1, a2, b2 = (factor.double() for factor in factors)
    assert error(made.weight_delta(weight).double(), (a1 @ b1) * (a2 @ b2) * 0.5) < 1e-6


@pytest.mark.parametrize("name", EXACT)
def test_low_rank_changes_are_kept_exactly(name):
    module, delta = of_sample(BY_NAME[name])
    made = diffadapt.to_lora(adapter(delta), base=base(module))
    assert error(dense(made, module), delta.weight_delta(module.weight.detach())) < 2e-6
    assert not made.losses
    assert any(isinstance(part, LoRA) for part in getattr(made.targets[KEY], "parts", made.targets.values()))


def test_a_lokr_with_a_thin_factor_is_exact():
    random = torch.Generator().manual_seed(0)
    from diffadapt.algorithms.lokr import LoKr

    w1, a, b = (torch.randn(*shape, generator=random) for shape in ((4, 4), (40, 2), (2, 30)))
    lokr = LoKr(w1, None, None, None, a, b, None, alpha=1.0, size=2)
    made = diffadapt.to_lora(adapter(lokr)).targets[KEY]
    assert made.rank == 8
    weight = torch.zeros(160, 120)
    assert error(made.weight_delta(weight), lokr.weight_delta(weight)) < 2e-6


@pytest.mark.parametrize("sample", MERGING, ids=lambda s: s.name)
def test_everything_has_its_best_lora_or_stays(sample):
    module, delta = of_sample(sample)
    weight = module.weight.detach()
    made = diffadapt.to_lora(adapter(delta), 3, base=base(module), exact=False)
    new = made.targets[KEY]
    if isinstance(delta, Norm):
        assert torch.equal(new.weight_delta(weight), delta.weight_delta(weight))
        return
    truth = delta.weight_delta(weight).double().flatten(1)
    values = torch.linalg.svdvals(truth)
    best = float(values[3:].norm() / values.norm()) if values.norm() else 0.0
    if values.norm():
        assert error(dense(made, module).double().flatten(1), truth) == pytest.approx(best, rel=1e-3, abs=3e-6)
    assert made.losses.get(KEY, 0.0) == pytest.approx(best, rel=1e-3, abs=3e-6)
    bias = getattr(module, "bias", None)
    before = delta.bias_change(bias, lambda: weight)
    after = new.bias_change(bias, lambda: weight)
    assert (before is None) == (after is None)
    if before is not None:
        torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-5)


def test_exactness_may_be_given_up_for_size():
    random = torch.Generator().manual_seed(0)
    loha = LoHa(*(torch.randn(*shape, generator=random) for shape in ((96, 3), (3, 80), (96, 3), (3, 80))), alpha=3.0)
    assert diffadapt.to_lora(adapter(loha), 4).targets[KEY].rank == 9
    small = diffadapt.to_lora(adapter(loha), 4, exact=False)
    assert small.targets[KEY].rank == 4
    assert 0 < small.losses[KEY] < 1


def test_norms_and_biases_are_kept():
    norm = TargetKey("unet", "norm")
    one = Adapter("one", "kohya", {norm: Norm(torch.randn(12)), KEY: Full(torch.randn(32, 24), torch.randn(32))})
    made = diffadapt.to_lora(one, 4)
    assert made.targets[norm] is one.targets[norm]
    assert isinstance(made.targets[KEY], Sum)
    torch.testing.assert_close(made.targets[KEY].bias_delta(None), one.targets[KEY].diff_b)


def test_what_cannot_be_is_named():
    with pytest.raises(CombineError, match=r"unet layer: full has no exact LoRA .*give rank="):
        diffadapt.to_lora(adapter(Full(torch.randn(32, 24))))
    with pytest.raises(CombineError, match=r"unet layer: .*base=pipe"):
        diffadapt.to_lora(adapter(BY_NAME["oft conv"].delta(), "turn"), 4)
    with pytest.raises(CombineError, match="unet layer: tlora has no one weight change"):
        diffadapt.to_lora(adapter(BY_NAME["tlora"].delta()), 4)
    with pytest.raises(CombineError, match="exact=False"):
        diffadapt.to_lora(adapter(lora(4, 1)), exact=False)
    with pytest.raises(CombineError, match="rank is 0"):
        diffadapt.to_lora(adapter(lora(4, 1)), 0)
