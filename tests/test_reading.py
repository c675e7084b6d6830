"""read_adapter over the manifests of real trainers, and over what PEFT, Diffusers and LyCORIS write today."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from diffadapt.adapter import Foreign
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import AlgorithmError, DialectError, NonFiniteError
from diffadapt.io.checkpoint import RawCheckpoint
from diffadapt.reading import read_adapter
from tests.families import models

# name: dialect, family, how many targets by component
MANIFESTS = {
    "sdxl-kohya-lora-sgm": ("kohya", "sdxl", {"unet": 722}),
    "sdxl-kohya-lora-te1-te2": ("kohya", "sdxl", {"text_encoder": 72, "text_encoder_2": 192}),
    "sdxl-lycoris-dora-down": ("kohya", "sdxl", {"unet": 248}),
    "sdxl-diffusers-lora-te1-te2": ("diffusers", "sdxl", {"unet": 560, "text_encoder": 48, "text_encoder_2": 128}),
    "sd15-kohya-locon": ("kohya", "sd1", {"unet": 278, "text_encoder": 72}),
    "sd15-lycoris-lokr-diffusers": ("lycoris", "sd1", {"unet": 282}),
    "sd15-lycoris-mixed-kohya": ("kohya", "sd1", {"unet": 390, "text_encoder": 72}),
}


def module_of(family, target):
    if target.component == "unet":
        return models.layers(models.unet(family))[target.module]
    width = 1280 if target.component == "text_encoder_2" else 768
    return {models.canonical(n): m for n, m in models.layers(models.clip(width)).items()}[target.module]


@pytest.mark.parametrize("name", list(MANIFESTS))
def test_every_key_lands_on_a_module_that_it_fits(name):
    dialect, family, expected = MANIFESTS[name]
    shapes = models.manifest(name)
    adapter = read_adapter(models.random_file(shapes))
    assert (adapter.dialect, adapter.family) == (dialect, family)
    assert not adapter.foreign and not adapter.unmatched and not adapter.ignored  # noqa: PT018
    counts = {c: sum(t.component == c for t in adapter.targets) for c in adapter.components}
    assert counts == expected
    assert sorted(key for keys in adapter.keys.values() for key in keys) == sorted(shapes)
    for target, delta in adapter.targets.items():
        delta.check(Layer.of(module_of(family, target)))
    assert f"{len(shapes)} of {len(shapes)} keys" in adapter.evidence


def test_a_name_an_alpha_an_adapter(tmp_path):
    path = tmp_path / "style.safetensors"
    key = "lora_unet_mid_block_attentions_0_proj_in"
    save_file({f"{key}.lora_down.weight": torch.ones(2, 8), f"{key}.lora_up.weight": torch.ones(8, 2)}, path)
    adapter = read_adapter(path)
    assert (adapter.name, adapter.path) == ("style", path)
    assert read_adapter(adapter) is adapter
    other = read_adapter(path, name="mine", alpha=1.0)
    assert other.name == "mine"
    weight = torch.zeros(8, 8)
    (one,), (half,) = adapter.targets.values(), other.targets.values()
    torch.testing.assert_close(half.weight_delta(weight), one.weight_delta(weight) / 2)


def test_what_has_no_effect_is_said():
    key = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    tensors = {
        f"{key}.lora_down.weight": torch.ones(2, 8), f"{key}.lora_up.weight": torch.ones(8, 2),
        "lora_te_text_model_embeddings.position_ids": torch.arange(4), "logit_scale": torch.tensor(1.0),
        "mystery.thing": torch.ones(1), "lora_unet_conv_in.weight": torch.ones(2),
    }  # fmt: skip
    adapter = read_adapter(tensors)
    assert set(adapter.ignored) == {"lora_te_text_model_embeddings.position_ids", "logit_scale"}
    assert set(adapter.unmatched) == {"mystery.thing", "lora_unet_conv_in.weight"}
    assert len(adapter.targets) == 1


def test_refusals_name_file_and_key():
    key = "lora_unet_conv_in"
    pair = {f"{key}.lora_down.weight": torch.ones(2, 8, 1, 1), f"{key}.lora_up.weight": torch.ones(8, 2, 1, 1)}
    with pytest.raises(NonFiniteError, match="lora_up"):
        read_adapter({**pair, f"{key}.lora_up.weight": torch.full((8, 2), float("nan"))})
    with pytest.raises(AlgorithmError, match=r"state dict: .*int8"):
        read_adapter({**pair, f"{key}.lora_up.weight": torch.ones(8, 2, dtype=torch.int8)})
    with pytest.raises(AlgorithmError, match=r"state dict: .*lora_up.*missing"):
        read_adapter({f"{key}.lora_down.weight": torch.ones(2, 8)})
    with pytest.raises(DialectError, match=r"no dialect.*'a\.b'"):
        read_adapter({"a.b": torch.ones(2, 2), "c.d": torch.ones(2)})
    with pytest.raises(DialectError, match="several adapters"):
        read_adapter({f"conv_in.lora_A.{n}.weight": torch.ones(2, 2) for n in ("x", "y")})


def test_two_dialects_in_one_file_and_two_names_of_one_module():
    a, b, other = torch.randn(2, 8), torch.randn(8, 2), torch.randn(8, 2)
    tensors = {}
    for key, up in (("lora_unet_mid_block_attentions_0_proj_in", b), ("lora_unet_middle_block_1_proj_in", other)):
        tensors |= {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": up}
    tensors |= {"unet.conv_out.lora_A.weight": torch.ones(2, 8, 3, 3), "unet.conv_out.lora_B.weight": torch.ones(4, 2)}
    adapter = read_adapter(tensors)
    assert len(adapter.targets) == 2
    assert "kohya: 4 of 6" in adapter.evidence
    assert "diffusers: 2 of 2" in adapter.evidence
    both = adapter.targets["unet", "mid_block.attentions.0.proj_in"]
    torch.testing.assert_close(both.weight_delta(torch.zeros(8, 8)), b @ a + other @ a)
    assert len(adapter.keys["unet", "mid_block.attentions.0.proj_in"]) == 4


@pytest.fixture(scope="module")
def tiny_unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=8, norm_num_groups=8, cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def peft_model(unet, **options):
    import copy

    from peft import LoraConfig, get_peft_model

    options = {"r": 4, "lora_alpha": 8, "target_modules": ["to_q", "to_k", "proj_in", "conv1"], **options}
    torch.manual_seed(1)
    return get_peft_model(copy.deepcopy(unet), LoraConfig(init_lora_weights=False, **options))


def assert_equals_peft(adapter, model):
    layers = {n: m for n, m in model.base_model.model.named_modules() if hasattr(m, "lora_A") and m.lora_A}
    assert {t.module for t in adapter.targets} == set(layers)
    for target, delta in adapter.targets.items():
        layer = layers[target.module]
        expected = layer.get_delta_weight("default")
        torch.testing.assert_close(delta.weight_delta(torch.zeros_like(expected)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [
    {},
    {"rank_pattern": {"to_k": 2, "down_blocks.1.attentions.0.proj_in": 6}, "alpha_pattern": {".*mid_block.*to_q": 3}},
    {"use_rslora": True, "alpha_pattern": {"^mid_block.attentions.0.proj_in": 1}},
], ids=["plain", "patterns", "rslora"])  # fmt: skip
def test_peft_folder(tiny_unet, tmp_path, options):
    model = peft_model(tiny_unet, **options)
    model.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    assert (adapter.dialect, adapter.components) == ("peft", ("unet",))
    assert_equals_peft(adapter, model)


def test_live_peft_state_dict_with_the_adapters_name(tiny_unet):
    model = peft_model(tiny_unet, lora_alpha=4)
    state = {k: v for k, v in model.state_dict().items() if "lora_" in k}
    assert any(".default." in key for key in state)
    assert_equals_peft(read_adapter(state), model)


@pytest.mark.parametrize("metadata", [True, False])
def test_diffusers_save_lora_weights(tiny_unet, tmp_path, metadata):
    from diffusers import StableDiffusionPipeline
    from peft.utils import get_peft_model_state_dict

    model = peft_model(tiny_unet, lora_alpha=8 if metadata else 4, rank_pattern={"to_k": 2}, alpha_pattern={"to_k": 2})
    config = model.peft_config["default"].to_dict() if metadata else None
    state = {k.removeprefix("base_model.model."): v for k, v in get_peft_model_state_dict(model).items()}
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=config)
    adapter = read_adapter(tmp_path)
    assert adapter.dialect == "diffusers"
    assert_equals_peft(adapter, model)


def test_diffusers_prefixless_metadata(tiny_unet, tmp_path):
    import copy

    from peft import LoraConfig

    unet = copy.deepcopy(tiny_unet)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=12, target_modules=["to_q"], init_lora_weights=False))
    unet.save_lora_adapter(tmp_path)
    adapter = read_adapter(tmp_path)
    assert adapter.dialect == "bare"
    assert adapter.targets
    assert {delta.alpha for delta in adapter.targets.values()} == {12.0}


def test_lycoris_wrapper(tiny_unet):
    from lycoris import LycorisNetwork, create_lycoris

    LycorisNetwork.apply_preset({"target_module": ["Attention", "ResnetBlock2D"]})
    prefix = LycorisNetwork.LORA_PREFIX
    LycorisNetwork.LORA_PREFIX = "lycoris"
    try:
        net = create_lycoris(tiny_unet, 1.0, linear_dim=4, linear_alpha=2, algo="loha")
        net.apply_to()
        net.restore()
        state = {key: tensor.detach().clone() for key, tensor in net.state_dict().items()}
    finally:
        LycorisNetwork.LORA_PREFIX = prefix
    adapter = read_adapter(state)
    assert (adapter.dialect, adapter.foreign, adapter.unmatched) == ("lycoris", {}, ())
    layers = models.layers(tiny_unet)
    for target, delta in adapter.targets.items():
        delta.check(Layer.of(layers[target.module]))
    assert sum(map(len, adapter.keys.values())) == len(state)


def test_an_unknown_family_is_all_foreign():
    key = "transformer.blocks.0.attn.to_q"
    adapter = read_adapter({f"{key}.lora_A.weight": torch.ones(2, 8), f"{key}.lora_B.weight": torch.ones(8, 2)})
    assert list(adapter.foreign) == [Foreign("transformer", "blocks.0.attn.to_q", False)]
    assert adapter.candidates == ()


def test_long_metadata_are_read():
    key = "lora_unet_conv_in"
    pair = {f"{key}.lora_down.weight": torch.ones(2, 8), f"{key}.lora_up.weight": torch.ones(8, 2)}
    captions = "{" + ",".join(f'"{i}_word{i}": {{"a cat": 3' + ', "x": 1' * 2000 + "}" for i in range(400)) + "}"
    header = {"ss_tag_frequency": captions, "ss_datasets": captions, "ss_network_module": "networks.lora"}
    adapter = read_adapter(RawCheckpoint(pair, header))
    assert adapter.metadata.trigger_words[:2] == ("word0", "word1")
    assert adapter.metadata.trainer == "sd-scripts"
