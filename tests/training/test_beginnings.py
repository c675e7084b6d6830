"""EVA and LoftQ as a pipeline begins with them, and AdaLoRA's budget, beside PEFT's own."""

from __future__ import annotations

import peft
import pytest
import torch
from peft.tuners.lora.eva import get_eva_state_dict

import diffadapt
from diffadapt.errors import StackError
from tests import quantised, tiny

TARGETS = ["down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q", "mid_block.attentions.0.proj_in"]


def batches() -> list[dict[str, torch.Tensor]]:
    """Inputs of the tiny UNet, several so that a layer sees more rows than it has columns."""
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "sample": torch.randn(2, 4, 16, 16, generator=generator),
            "timestep": torch.tensor([100, 800]),
            "encoder_hidden_states": torch.randn(2, 6, tiny.unet().config.cross_attention_dim, generator=generator),
        }
        for _ in range(3)
    ]


def test_eva_finds_the_directions_that_peft_finds():
    # One batch again and again: PEFT's PCA goes batch by batch, and forgets of each what does not fit its rank.
    pipe, data = diffadapt.enable(tiny.sd()), batches()[:1] * 3
    targets = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
    pipe.adapters.add(
        "a", "lora", rank=2, targets=targets, init="eva", data=lambda: [pipe.unet(**batch) for batch in data]
    )
    (placement,) = pipe.adapters._get("a").placements
    ours = placement.entry.delta.down.detach()
    config = peft.LoraConfig(
        r=2, target_modules=[targets], init_lora_weights="eva", eva_config=peft.EvaConfig(rho=1.0, tau=0.999)
    )
    found = get_eva_state_dict(
        tiny.sd().unet, data, config, forward_fn=lambda model, batch: model(**batch),
        prepare_model_inputs_fn=None, prepare_layer_inputs_fn=None, show_progress_bar=False,
    )  # fmt: skip
    theirs = next(iter(found.values()))
    assert ours.shape == theirs.shape
    seen = []
    module = pipe.unet.get_submodule(targets)
    handle = module.register_forward_hook(lambda module, args, output: seen.append(args[0].detach().flatten(0, -2)))
    with torch.no_grad(), pipe.adapters.disable():
        pipe.unet(**data[0])
    handle.remove()
    centred = (seen[0] - seen[0].mean(0)).double()

    def explained(directions: torch.Tensor) -> float:
        return float((centred @ torch.linalg.qr(directions.double().T).Q).square().sum())

    # PEFT's SVD is a random one of low rank: it explains a little less of what the layer is given than the best pair.
    assert 0.97 * explained(ours) < explained(theirs) <= explained(ours) * (1 + 1e-6)


def test_eva_shares_ranks_out_and_keeps_every_scale():
    pipe, data = diffadapt.enable(tiny.sd()), batches()
    pipe.adapters.add("a", "lora", rank=4, alpha=8, init="eva", data=lambda: [pipe.unet(**batch) for batch in data])
    deltas = [placement.entry.delta for placement in pipe.adapters._get("a").placements]
    assert sum(delta.rank for delta in deltas) == 4 * 32
    assert len({delta.rank for delta in deltas}) > 1
    assert {delta.scale for delta in deltas} == {2.0}


def test_eva_wants_data():
    with pytest.raises(StackError, match="needs data"):
        diffadapt.enable(tiny.sd()).adapters.add("a", "lora", init="eva")


@pytest.mark.parametrize("name", ["quanto int4", "bitsandbytes nf4"])
def test_loftq_makes_up_for_what_quantisation_took(name, tmp_path):
    model = quantised.unet(name, tmp_path)
    tiny.unet().save_pretrained(tmp_path)
    before = quantised.packed_parts(model)
    with torch.no_grad():
        lost = (tiny.run(model) - tiny.run(tiny.unet())).abs().mean()
        diffadapt.enable(model).adapters.add("a", "lora", rank=16, targets=["attn1", "ff"], init="loftq", base=tmp_path)
        left = (tiny.run(model) - tiny.run(tiny.unet())).abs().mean()
    assert float(left) < 0.95 * float(lost)
    assert quantised.same(before, quantised.packed_parts(model))


def test_loftq_wants_a_quantised_base(tmp_path):
    with pytest.raises(StackError, match="not quantised"):
        diffadapt.enable(tiny.sd()).adapters.add("b", "lora", rank=4, init="loftq", base=tmp_path)


def test_adalora_has_pefts_budget():
    pipe = diffadapt.enable(tiny.sd())
    total, begin, end = 100, 20, 30
    pipe.adapters.add("a", "adalora", rank=6, target_rank=2, begin=begin / total, end=end / total)
    allocation = pipe.adapters._get("a").allocation
    count = len(allocation.entries)
    config = peft.AdaLoraConfig(
        init_r=6, target_r=2, tinit=begin, tfinal=end, total_step=total, deltaT=10, target_modules=["to_q"]
    )
    theirs = peft.tuners.adalora.layer.RankAllocator.__new__(peft.tuners.adalora.layer.RankAllocator)
    theirs.peft_config, theirs.init_bgt, theirs.target_bgt = config, 6 * count, 2 * count
    for step in range(total - end):
        # Ours is at its target one step earlier: a step is counted from 0 here, the end of the pruning with it.
        assert abs(allocation.budget(step, total) - theirs.budget_schedule(step)[0]) <= 0.1 * count
    assert allocation.budget(total - end, total) == theirs.target_bgt
