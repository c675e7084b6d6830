"""AdaLoRA against real PEFT models, pruned ones included."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from peft import AdaLoraConfig, PeftModel
from torch import nn

from diffadapt.algorithms.adalora import AdaLoRA
from diffadapt.errors import AlgorithmError
from tests.algorithms.peft_oracle import saved, wrap
from tests.algorithms.reference import layer_of
from tests.algorithms.rotation_cases import build, forward_errors, parse, random_input, settle, weight_error


def config(alpha: int, **rest: object) -> AdaLoraConfig:
    return AdaLoraConfig(target_modules=["layer"], init_r=6, target_r=3, lora_alpha=alpha, total_step=100, **rest)


@pytest.mark.parametrize("alpha", [1, 9, -1])
@pytest.mark.parametrize("kind", ["linear", "conv 1x1", "conv 3x3 stride 2"])
@torch.no_grad()
def test_peft(kind, alpha, record_error):
    model = wrap(build(kind), config(alpha))
    tensors, written = saved(model)
    delta = parse(tensors, writer="peft", config=written)
    assert isinstance(delta, AdaLoRA)
    base = build(kind).double()
    x = random_input(base, torch.float64)
    errors = forward_errors(base, delta, x, model(x))
    model.merge_adapter()
    errors["weight"] = weight_error(base, delta, model.base_model.model.layer.base_layer.weight)
    record_error("adalora", kind, "peft 0.21.2", settle(errors))


@torch.no_grad()
def test_pruned_ranks_keep_the_scale_of_the_first_rank(tmp_path, record_error):
    """`rank_pattern`: PEFT prunes rows when it saves and keeps dividing by `init_r` when it loads."""
    model = wrap(build("linear"), config(9))
    layer = model.base_model.model.layer
    mask = [True, False, True, True, False, False]
    layer.lora_E["default"][~torch.tensor(mask)] = 0
    x = random_input(build("linear"), torch.float64)
    truth = model(x)
    model.peft_config["default"].rank_pattern = {"layer.lora_E": mask}
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(nn.Sequential(OrderedDict(layer=build("linear"))), tmp_path).double()
    tensors, written = saved(model)
    delta = parse(tensors, writer="peft", config=written)
    assert delta.rank == 3
    base = build("linear").double()
    error = settle(forward_errors(base, delta, x, truth))
    settle(forward_errors(base, delta, x, again(x)))
    record_error("adalora", "linear, pruned", "peft 0.21.2", error)


@torch.no_grad()
def test_rows_and_errors():
    weight = build("linear").weight
    tensors = {"lora_down": torch.randn(3, 16), "lora_E": torch.randn(3, 1), "lora_up": torch.randn(32, 3)}
    delta = parse(tensors)
    assert torch.allclose(delta.rows(3, 9).weight_delta(weight[3:9]), delta.weight_delta(weight)[3:9])
    with pytest.raises(AlgorithmError, match="do not fit together"):
        parse(tensors | {"lora_E": torch.randn(4, 1)})
    with pytest.raises(AlgorithmError, match="another model"):
        delta.check(layer_of(build("conv 3x3 stride 2")))
