"""PEFT's further methods: tensors that do not fit together, configs that are missing, layers of another model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffadapt.algorithms import Context, TensorGroup, parse_group
from diffadapt.algorithms.bank import Bank
from diffadapt.algorithms.forms import LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.rows import Exchanged, InRows
from diffadapt.errors import AlgorithmError
from tests.algorithms.reference import change_error, live, merged
from tests.algorithms.samples import SAMPLES

NEEDS_CONFIG = {
    "randlora": "randlora_alpha", "fourierft": "random_loc_seed", "waveft": "random_loc_seed", "vblora": "topk",
    "supra": "lora_alpha", "road": "group_size", "gralora": "alpha", "deft": "decomposition_method",
    "psoft": "adapter_config.json", "peanut": "act_fn", "tokens": "token indices",
}  # fmt: skip
NEEDS_BANK = {
    "vblora": "vblora_vector_bank", "unilora": "unilora_theta_d", "tinylora": "tinylora_v", "frod": "save_projection",
}  # fmt: skip
PEFT = [
    s for s in SAMPLES if s.writer == "peft" and s.name in {*NEEDS_CONFIG, *NEEDS_BANK, "glora peft", "vera", "pvera"}
]
PEFT += [s for s in SAMPLES if s.name in ("c3a", "shira", "supertuning", "miss", "miss bat", "delora", "hira", "osf")]


def sample_named(name):
    return next(sample for sample in SAMPLES if sample.name == name)


def parse(tensors, config=None, shared=None, name="m"):
    return parse_group(TensorGroup(name, tensors), Context("peft", config or {}, bank=Bank(shared or {}, (name,))))


@pytest.mark.parametrize(("name", "match"), NEEDS_CONFIG.items())
def test_a_config_that_decides_the_maths_is_asked_for(name, match):
    sample = sample_named(name)
    with pytest.raises(AlgorithmError, match=match):
        parse_group(TensorGroup(name, sample.tensors()), Context("peft", bank=sample.context.bank))


@pytest.mark.parametrize(("name", "match"), NEEDS_BANK.items())
def test_a_shared_tensor_is_asked_for(name, match):
    sample = sample_named(name)
    with pytest.raises(AlgorithmError, match=match):
        parse_group(TensorGroup(name, sample.tensors()), Context("peft", sample.config))


@pytest.mark.parametrize("sample", PEFT, ids=lambda s: s.name)
def test_half_a_group_and_another_layer_are_refused(sample):
    tensors = sample.tensors()
    optional = {"psoft_R.vector_a", "supertuning_indices", "gralora_A_general", "gralora_B_general"}
    needed = [role for role in tensors if role not in optional]
    for role in needed if len(needed) > 1 else []:
        rest = {other: tensor for other, tensor in tensors.items() if other != role}
        with pytest.raises(AlgorithmError):
            parse_group(TensorGroup(sample.name, rest), sample.context)
    delta = sample.delta()
    for module in (nn.Linear(23, 7), nn.Linear(7, 23), nn.Conv2d(5, 3, 3), nn.LayerNorm(12), nn.Embedding(3, 5)):
        layer = Layer.of(module)
        fits_any = sample.name in ("miss", "fourierft", "waveft", "psoft", "supertuning")
        if not (layer.kind == "linear" and fits_any):
            with pytest.raises(AlgorithmError):
                delta.check(layer)


@pytest.mark.parametrize(
    ("tensors", "config", "shared"),
    [
        ({"glora_A.zeros": torch.ones(4, 4)}, {}, {}),
        ({"glora_A.Xd": torch.ones(4, 2), "glora_A.Xu": torch.ones(3, 4)}, {}, {}),
        ({"vera_lambda_b": torch.ones(4), "vera_lambda_d": torch.ones(3)}, {}, {"vera_A": torch.ones(2, 4)}),
        ({"vera_lambda_b": torch.ones(4), "vera_lambda_d": torch.ones(3)}, {}, {"vera_B": torch.ones(4, 3)}),
        ({"pvera_lambda_b": torch.ones(4), "pvera_lambda_d": torch.ones(3)}, {}, {}),
        ({"randlora_lambda": torch.ones(2, 3), "randlora_gamma": torch.ones(2, 4)}, {"randlora_alpha": 1}, {}),
        ({"c3a_kernel": torch.ones(2, 3)}, {}, {}),
        ({"shira_weight": torch.ones(3), "shira_indices": torch.ones(2, 2).long()}, {}, {}),
        ({"shira_weight": torch.ones(2), "shira_indices": -torch.ones(2, 2).long()}, {}, {}),
        ({"supertuning_values": torch.ones(2), "supertuning_indices": torch.tensor([1, -1])}, {}, {}),
        ({"miss_block": torch.ones(3)}, {}, {}),
        ({"miss_block": torch.ones(3, 2, 4)}, {}, {}),
        ({"road_theta": torch.ones(5), "road_alpha": torch.ones(5)}, {"variant": "road_2", "group_size": 4}, {}),
        ({"road_theta": torch.ones(6), "road_alpha": torch.ones(6)}, {"variant": "road_2", "group_size": 3}, {}),
        ({"delora_A": torch.ones(2, 4), "delora_B": torch.ones(4, 3), "delora_lambda": torch.ones(1),
          "delora_w_norm": torch.ones(4)}, {}, {}),
        ({"hira_A": torch.ones(2, 4), "hira_B": torch.ones(4, 3)}, {}, {}),
        ({"gralora_A": torch.ones(2, 4, 3), "gralora_B": torch.ones(2, 3, 4)}, {"alpha": 1}, {}),
        ({"deft_P": torch.ones(4, 2), "deft_R": torch.ones(3, 4)}, {"decomposition_method": "qr"}, {}),
        ({"psoft_R": torch.ones(4)}, {"ab_svd_init": "psoft_init"}, {}),
        ({"psoft_R": torch.ones(3), "psoft_R.vector_a": torch.ones(4)}, {"ab_svd_init": "psoft_init"}, {}),
        ({"tinylora_A": torch.ones(2, 4), "tinylora_B": torch.ones(4, 2), "tinylora_P": torch.ones(3, 2, 2)}, {},
         {"tinylora_v.0": torch.ones(2)}),
        ({"tinylora_A": torch.ones(2, 4), "tinylora_B": torch.ones(4, 2), "tinylora_P": torch.ones(3, 2, 2)}, {},
         {"tinylora_v.0": torch.ones(3), "tinylora_v.1": torch.ones(3)}),
        ({"osf_svd_params.U_low": torch.ones(4, 2), "osf_svd_params.S_low": torch.ones(3),
          "osf_svd_params.V_low": torch.ones(2, 4)}, {}, {}),
        ({"peanut_A": torch.ones(2, 4), "peanut_B": torch.ones(4, 2), "peanut_encoders.0": torch.ones(2, 2)},
         {"act_fn": "relu", "scaling": 1}, {}),
        ({"peanut_A": torch.ones(2, 4), "peanut_B": torch.ones(4, 2)}, {"act_fn": "os.system", "scaling": 1}, {}),
        ({"frod_lambda_l": torch.ones(3), "frod_lambda_s_values": torch.ones(1)}, {},
         {"frod_V.m": torch.eye(3), "frod_s_indices.m": torch.tensor([[5], [0]])}),
        ({"waveft_spectrum": torch.ones(3)}, {"scaling": 1, "random_loc_seed": 1, "wavelet_family": "coif4"}, {}),
        ({"vblora_logits_A_topk_indices": torch.full((2, 1, 2), 9), "vblora_logits_A_topk_weights": torch.ones(2, 1, 1),
          "vblora_logits_B_topk_indices": torch.zeros(1, 2, 2), "vblora_logits_B_topk_weights": torch.ones(1, 2, 1)},
         {}, {"vblora_vector_bank": torch.ones(4, 8)}),
        ({"unilora_indices_A": torch.full((2, 4), 9), "unilora_scales_A": torch.ones(2, 4),
          "unilora_indices_B": torch.zeros(4, 2).long(), "unilora_scales_B": torch.ones(4, 2)}, {},
         {"unilora_theta_d": torch.ones(4)}),
        ({"lora_down": torch.ones(4, 6), "lora_up": torch.ones(4, 3)},
         {"use_bdlora": {"nblocks": 2, "target_modules_bd_b": ["m"]}}, {}),
        ({"lora_down": torch.ones(4, 6), "lora_up": torch.ones(4, 4)}, {"use_qalora": True}, {}),
        ({"trainable_tokens_delta": torch.ones(2, 4)}, {"token_indices": [1]}, {}),
        ({"trainable_tokens_delta": torch.ones(1, 4)}, {"token_indices": [-1]}, {}),
        ({"trainable_tokens_delta": torch.ones(0, 4)}, {"token_indices": []}, {}),
        ({"fourierft_spectrum": torch.ones(3)}, {"scaling": "1", "random_loc_seed": 1}, {}),
        ({"fourierft_spectrum": torch.ones(3)}, {"scaling": float("nan"), "random_loc_seed": 1}, {}),
        ({"fourierft_spectrum": torch.ones(3, 1)}, {"scaling": 1, "random_loc_seed": 1}, {}),
        ({"vblora_logits_A": torch.ones(2, 1, 4), "vblora_logits_B": torch.ones(1, 2, 4)}, {"topk": 5},
         {"vblora_vector_bank": torch.ones(4, 8)}),
        ({"unilora_indices_A": torch.ones(0, 4).long(), "unilora_scales_A": torch.ones(0, 4),
          "unilora_indices_B": torch.ones(4, 0).long(), "unilora_scales_B": torch.ones(4, 0)}, {},
         {"unilora_theta_d": torch.ones(4)}),
        ({"gralora_A": torch.ones(2, 4, 2), "gralora_B": torch.ones(2, 2, 4), "gralora_A_general": torch.ones(1, 7),
          "gralora_B_general": torch.ones(8, 1)}, {"alpha": 1}, {}),
        ({"deft_P": torch.ones(2, 4), "deft_R": torch.ones(4, 4)}, {"decomposition_method": "qr"}, {}),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_together_are_refused(tensors, config, shared):
    with pytest.raises(AlgorithmError):
        parse(tensors, config, shared)


@pytest.mark.parametrize("shared", [
    {"vera_A": torch.ones(4, 20), "vera_B": torch.ones(32, 4)},
    {"vera_A": torch.ones(4, 24), "vera_B": torch.ones(30, 4)},
    {"vera_A": torch.ones(4, 24), "vera_B": torch.ones(32, 3)},
])  # fmt: skip
def test_a_shared_pair_that_does_not_cover_the_layer_is_refused(shared):
    delta = parse({"vera_lambda_b": torch.ones(32), "vera_lambda_d": torch.ones(4)}, {}, shared)
    with pytest.raises(AlgorithmError, match="another model"):
        delta.check(Layer.of(nn.Linear(24, 32)))


def test_shared_bases_that_do_not_cover_the_layer_are_refused():
    tensors = {"randlora_lambda": torch.ones(5, 5), "randlora_gamma": torch.ones(5, 24)}
    for a, b in (
        ((5, 1, 20), (32, 5, 5)),
        ((5, 1, 24), (30, 5, 5)),
        ((5, 1, 24), (32, 4, 5)),
        ((4, 1, 24), (32, 5, 4)),
    ):
        delta = parse(tensors, {"randlora_alpha": 1}, {"randlora_A": torch.ones(a), "randlora_B": torch.ones(b)})
        with pytest.raises(AlgorithmError, match="do not cover"):
            delta.check(Layer.of(nn.Linear(24, 32)))


def test_the_sizes_for_a_draw_come_from_all_modules():
    bank = Bank({}, ("a", "b"))
    tensors = {"vera_lambda_b": torch.ones(32), "vera_lambda_d": torch.ones(4)}
    a, b = (parse_group(TensorGroup(name, dict(tensors)), Context("peft", bank=bank)) for name in ("a", "b"))
    a.check(Layer.of(nn.Linear(24, 32)))
    with pytest.raises(AlgorithmError, match=r"does not have b.*save_projection=True"):
        a.weight_delta(torch.zeros(32, 24))
    b.check(Layer.of(nn.Linear(40, 32)))
    assert a.projection()[0].shape == (4, 40)
    assert a.projection()[0] is b.projection()[0]  # drawn once


@torch.no_grad()
def test_qalora_is_peft_s_pooled_forward():
    """PEFT builds QALoRA on GPTQ layers only; its `QALoraLinearVariant.forward`, written down."""
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 32).double(), torch.randn(3, 24, dtype=torch.float64)
    down, up, size, scale = torch.randn(4, 6), torch.randn(32, 4), 4, 3 / 4
    pooled = x.view(3, 24 // size, size).mean(2) * (24 // size)
    truth = layer(x) + pooled @ down.double().T @ up.double().T * scale
    config = {"r": 4, "lora_alpha": 3, "use_qalora": True, "qalora_group_size": size}
    delta = parse({"lora_down": down, "lora_up": up}, config)
    for output in (live, merged):
        assert change_error(output(layer, delta, x), truth, layer(x)) < 1e-6


@torch.no_grad()
def test_bone_of_older_peft_is_miss():
    """PEFT 0.17's Bone: the block is added to every r inputs of the transposed weight."""
    block, weight = torch.randn(4, 32), torch.randn(32, 24)
    delta = parse({"bone_block": block})
    truth = weight.reshape(32, 6, 4).permute(1, 2, 0) + block
    assert torch.allclose(weight + delta.weight_delta(weight), truth.permute(2, 0, 1).reshape(32, 24), atol=1e-6)
    assert isinstance(delta.forms(Layer.of(nn.Linear(24, 32)), lambda: weight, lambda: None)[0], LowRank)


@torch.no_grad()
def test_glora_s_bias_moves_with_the_weight():
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 5).double(), torch.randn(3, 6, dtype=torch.float64)
    column = torch.randn(6, 1)
    tensors = {f"glora_{path}.zeros": torch.zeros(shape) for path, shape in
               {"A": (5, 6), "B": (5, 6), "D": (5,), "E": (5,)}.items()} | {"glora_C.X": column}  # fmt: skip
    delta = parse(tensors)
    truth = layer(x) + (layer.weight @ column.double()).squeeze(-1)
    assert change_error(live(layer, delta, x), truth, layer(x)) < 1e-6
    assert delta.bias_change(None, lambda: layer.weight) is None


def test_a_wrapped_glora_moves_the_bias_with_its_own_rows():
    """Exchanged halves, and a part of a wider layer: path C sees the weight as its trainer did."""
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 10).double(), torch.randn(3, 6, dtype=torch.float64)
    column = torch.randn(6, 1)

    def delta(rows):
        shapes = {"A": (rows, 6), "B": (rows, 6), "D": (rows,), "E": (rows,)}
        return parse({f"glora_{path}.zeros": torch.zeros(s) for path, s in shapes.items()} | {"glora_C.X": column})

    moved = (layer.weight @ column.double()).squeeze(-1)
    assert change_error(live(layer, Exchanged(delta(10)), x), layer(x) + moved, layer(x)) < 1e-6
    second = torch.cat([torch.zeros(5), moved[5:]])
    assert change_error(live(layer, InRows(delta(5), 1, 2), x), layer(x) + second, layer(x)) < 1e-6
