"""T-LoRA against LyCORIS: all three kinds of singular triples, and the masks over timesteps."""

from __future__ import annotations

import json

import pytest
import torch
from lycoris.modules.tlora import TLoraModule, clear_timestep_mask, compute_timestep_mask, set_timestep_mask

from diffadapt.algorithms import Context, TensorGroup, parse_group
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.tlora import TLoRA
from diffadapt.errors import AlgorithmError
from tests.algorithms.checks import check_case
from tests.algorithms.reference import change_error, low_rank_change
from tests.algorithms.trainers import base_module, lycoris_case

TOLERANCE = 5e-6
"""LyCORIS takes the base factors from a float32 SVD, and ours on another thread count may round differently."""


@pytest.mark.parametrize("sig_type", ["principal", "middle", "last"])
@pytest.mark.parametrize("layer", ["linear", "linear_square", "conv1x1"])
def test_lycoris(layer, sig_type, record_error):
    case = lycoris_case(TLoraModule, layer, lora_dim=4, alpha=2, sig_type=sig_type)
    case.config = {"sig_type": sig_type}
    delta = check_case(case, record_error, layer, f"lycoris, {sig_type}", TOLERANCE)
    assert delta.live_only


def test_sig_type_may_stand_in_the_header():
    case = lycoris_case(TLoraModule, "linear", lora_dim=4, sig_type="last")
    metadata = {"ss_network_args": json.dumps({"sig_type": "last"})}
    delta = parse_group(TensorGroup("m", case.roles), Context("lycoris", metadata=metadata))
    assert delta.sig_type == "last"


@pytest.mark.parametrize("exponent", [1.0, 1.5])
def test_the_mask_is_the_trainers(exponent):
    ones = torch.ones(6)
    delta = TLoRA(ones.view(6, 1), ones.view(1, 6), ones.view(1, 6), 6.0, min_rank=2, exponent=exponent)
    for timestep in range(0, 1001, 50):
        mask = compute_timestep_mask(timestep, 1000, 6, 2, exponent)[0]
        assert torch.equal(delta.rank_mask((1000 - timestep) / 1000), mask)


def test_masked_ranks_of_the_form_equal_the_trainers_masked_forward(record_error):
    mask = compute_timestep_mask(700, 1000, 4)
    set_timestep_mask(mask)
    try:
        case = lycoris_case(TLoraModule, "linear", lora_dim=4, alpha=2)
    finally:
        clear_timestep_mask()
    delta = case.delta()
    layer = Layer.of(case.module)
    (form,) = delta.forms(layer, lambda: case.module.weight.detach(), lambda: None)
    assert form.mask is not None
    kept = form.to(torch.device("cpu"), torch.float64)
    kept = type(form)(kept.down, kept.up * form.mask(0.3), kept.scale)
    error = change_error(case.base + low_rank_change(kept, layer, case.x), case.truth, case.base)
    record_error("tlora", "linear", "lycoris, masked at t=700", error)
    assert error < TOLERANCE


def test_what_cannot_be_recovered_is_refused():
    case = lycoris_case(TLoraModule, "linear", lora_dim=4)
    with pytest.raises(AlgorithmError, match="use_data_init"):
        parse_group(TensorGroup("m", dict(case.roles)), Context("lycoris", {"use_data_init": False}))
    with pytest.raises(AlgorithmError, match="sig_type"):
        parse_group(TensorGroup("m", dict(case.roles)), Context("lycoris", {"sig_type": "x"}))
    module, _ = base_module("conv3x3s2")
    with pytest.raises(AlgorithmError, match="1x1"):
        case.delta().check(Layer.of(module))
