"""Full differences and norms against LyCORIS; replacements, sparse residuals and ai-toolkit's full rank by identity."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from lycoris.modules.full import FullModule
from lycoris.modules.norms import NormModule
from torch import nn

from diffadapt.algorithms import Context, TensorGroup, parse_group
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.norm import Norm
from diffadapt.errors import AlgorithmError
from tests.algorithms.checks import check_case
from tests.algorithms.reference import change_error, live, merged
from tests.algorithms.trainers import MODULES, Case, base_module, randomise

NORMS = {
    "layer_norm": (lambda: nn.LayerNorm(12), (2, 5, 12)),
    "group_norm": (lambda: nn.GroupNorm(3, 12), (2, 12, 4, 5)),
}


@pytest.mark.parametrize("layer", MODULES)
def test_lycoris_full(layer, record_error):
    module, x = base_module(layer)
    host = deepcopy(module)
    trained = FullModule("name", host).double()
    trained.apply_to()
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.ndim)).double())
        truth = host(x)
    case = Case(module, x, truth, {k: t.detach() for k, t in trained.state_dict().items()}, "lycoris")
    assert "diff" in case.roles
    check_case(case, record_error, layer, "lycoris")


@pytest.mark.parametrize("layer", NORMS)
def test_lycoris_norm(layer, record_error):
    torch.manual_seed(0)
    make, shape = NORMS[layer]
    module = make().requires_grad_(False).double()
    randomise(module.parameters(), 5)
    trained = NormModule("name", deepcopy(module)).double()
    randomise(trained.parameters(), 6)
    x = torch.randn(shape, dtype=torch.float64)
    roles = {k: t.detach() for k, t in trained.state_dict().items() if k in ("w_norm", "b_norm")}
    case = Case(module, x, trained(x).detach(), roles, "lycoris")
    assert isinstance(check_case(case, record_error, layer, "lycoris"), Norm)
    case.roles = {"diff": roles["w_norm"], "diff_b": roles["b_norm"]}
    assert isinstance(check_case(case, record_error, layer, "lycoris, as diff"), Full)


def test_rms_norm_by_identity():
    module = nn.RMSNorm(12, eps=1e-6)
    x = torch.randn(3, 12)
    with torch.no_grad():
        module.weight.copy_(torch.randn(12))
    delta = parse_group(TensorGroup("m", {"w_norm": torch.randn(12)}), Context())
    delta.check(Layer.of(module))
    assert change_error(live(module, delta, x), merged(module, delta, x), module(x)) < 1e-6


@pytest.mark.parametrize("layer", ["linear", "linear_square", "conv1x1"])
def test_replacements_land_on_their_values(layer):
    module, x = base_module(layer)
    roles = {"set_weight": torch.randn(module.weight.shape), "set_bias": torch.randn(module.weight.shape[0])}
    delta = parse_group(TensorGroup("m", roles), Context())
    truth = deepcopy(module)
    truth.weight = nn.Parameter(roles["set_weight"].double())
    truth.bias = nn.Parameter(roles["set_bias"].double())
    for output in (live, merged):
        assert change_error(output(module, delta, x), truth(x), module(x)) < 1e-6


def test_a_bias_alone_leaves_the_weight(record_error):
    module, x = base_module("conv3x3s2")
    vector = torch.randn(24)
    delta = parse_group(TensorGroup("m", {"diff_b": vector}), Context())
    assert not delta.weight_delta(module.weight.detach()).any()
    assert len(delta.forms(Layer.of(module), module.weight.detach, lambda: module.bias)) == 1
    truth = module(x) + vector.view(-1, 1, 1)
    assert change_error(live(module, delta, x), truth, module(x)) < 1e-6


def test_ai_toolkit_full_rank_is_the_difference_itself():
    diff = torch.randn(8, 6)
    delta = parse_group(TensorGroup("m", {"lora_down": diff}), Context("ai_toolkit"))
    assert torch.equal(delta.weight_delta(torch.zeros(8, 6)), diff)
    with pytest.raises(AlgorithmError, match="lora_up"):
        parse_group(TensorGroup("m", {"lora_down": diff}), Context("kohya"))


def test_sparse_residual_is_added_to_the_weight():
    dense = torch.randn(24, 16 * 9) * (torch.rand(24, 16 * 9) < 0.1)
    sparse = dense.to_sparse().coalesce()
    roles = {"bias_indices": sparse.indices().to(torch.int16), "bias_values": sparse.values()}
    roles["bias_size"] = torch.tensor(dense.shape).to(torch.int16)
    module, x = base_module("conv3x3s2")
    delta = parse_group(TensorGroup("m", roles), Context())
    delta.check(Layer.of(module))
    assert torch.equal(delta.weight_delta(module.weight.detach()), dense.reshape(24, 16, 3, 3))
    assert change_error(live(module, delta, x), merged(module, delta, x), module(x)) < 1e-6
    assert torch.equal(delta.rows(5, 20).weight_delta(torch.zeros(15, 16, 3, 3)).flatten(1), dense[5:20])


@pytest.mark.parametrize("place", [-1, 24])
def test_sparse_residual_outside_its_matrix_is_refused(place):
    roles = {"bias_indices": torch.tensor([[place], [0]]), "bias_values": torch.ones(1)}
    roles["bias_size"] = torch.tensor([24, 144])
    with pytest.raises(AlgorithmError, match="outside the matrix"):
        parse_group(TensorGroup("m", roles), Context())


def test_changes_of_another_shape_are_refused():
    linear, _ = base_module("linear")
    layer = Layer.of(linear)
    for delta in (Full(torch.ones(24, 40)), Full(diff_b=torch.ones(24)), Norm(torch.ones(40))):
        with pytest.raises(AlgorithmError, match=delta.algorithm):
            delta.check(layer)
    with pytest.raises(AlgorithmError, match="both a difference and a replacement"):
        parse_group(TensorGroup("m", {"diff": torch.ones(2), "set_weight": torch.ones(2)}), Context())
