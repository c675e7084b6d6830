"""Name tables against the real classes, in both directions."""

from __future__ import annotations

import pytest

from diffadapt.families import FAMILIES, Grid, Names, Rule
from diffadapt.families.clip import CLIP
from diffadapt.families.names import skeleton_of
from tests.families import models

UNET = [family for family in FAMILIES if family.name in models.UNETS]


@pytest.mark.parametrize("family", UNET, ids=lambda family: family.name)
def test_every_module_of_the_unet_has_its_own_name(family):
    names = family.components["unet"]
    for module in models.layers(models.unet(family.name)):
        for spelling in (module, module.replace(".", "_")):
            route = names.resolve(spelling)
            assert route is not None, spelling
            assert route.modules == (module,)


@pytest.mark.parametrize("family", UNET, ids=lambda family: family.name)
def test_original_names_go_there_and_back(family):
    names = family.components["unet"]
    modules = list(models.layers(models.unet(family.name)))
    natives = {module: names.native_name(module) for module in modules}
    assert None not in natives.values()
    assert len(set(natives.values())) == len(modules)
    for module, native in natives.items():
        assert names.resolve(native).modules == (module,)
        assert names.resolve(native.replace(".", "_")).modules == (module,)


def test_some_original_names_of_sdxl():
    names = next(f for f in FAMILIES if f.name == "sdxl").components["unet"]
    pairs = {
        "input_blocks_4_1_proj_in": "down_blocks.1.attentions.0.proj_in",
        "output_blocks_5_2_conv": "up_blocks.1.upsamplers.0.conv",
        "input_blocks_6_0_op": "down_blocks.1.downsamplers.0.conv",
        "middle_block_2_in_layers_2": "mid_block.resnets.1.conv1",
        "out_2": "conv_out",
        "label_emb_0_0": "add_embedding.linear_1",
    }
    for native, module in pairs.items():
        assert names.resolve(native).modules == (module,)


def test_counters_are_not_limited_and_absurd_ones_are_refused():
    names = UNET[0].components["unet"]
    assert names.resolve("down_blocks_9_resnets_7_conv1").modules == ("down_blocks.9.resnets.7.conv1",)
    for name in (f"down_blocks_{'9' * 5000}_resnets_0_conv1", "down_blocks_\u0663_resnets_0_conv1", "", "_", "..."):
        assert names.resolve(name) is None
    assert names.resolve("input_blocks_3_0_in_layers_2") is None
    assert names.resolve("input_blocks_0_1_proj_in") is None


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_controlnet(family):
    names = next(f for f in FAMILIES if f.name == family).components["controlnet"]
    for module in models.layers(models.controlnet(family)):
        for spelling in (module, module.replace(".", "_")):
            assert names.resolve(spelling).modules == (module,)


@pytest.mark.parametrize("width", [768, 1024, 1280])
def test_clip_with_and_without_its_level(width):
    for module in models.layers(models.clip(width)):
        whole = models.canonical(module)
        for spelling in {module, whole, whole.removeprefix("text_model."), whole.replace(".", "_")}:
            assert CLIP.resolve(spelling).modules == (whole,), spelling


def test_open_clip():
    route = CLIP.resolve("transformer.resblocks.3.attn.in_proj")
    assert route.modules == tuple(f"text_model.encoder.layers.3.self_attn.{part}_proj" for part in "qkv")
    assert route.shares == (1, 1, 1)
    assert CLIP.resolve("transformer_resblocks_3_mlp_c_fc").modules == ("text_model.encoder.layers.3.mlp.fc1",)
    assert CLIP.native_name("text_model.encoder.layers.3.mlp.fc2") == "transformer.resblocks.3.mlp.c_proj"


def test_grid_is_its_own_inverse():
    grid = Grid(1, 3, 2)
    assert [grid.split(n) for n in (0, 3)] == [None, None]
    for n in (1, 2, 4, 5, 10, 11):
        assert grid.join(grid.split(n)) == n


def test_fixed_numbers_and_repeated_counters_must_agree():
    names = Names([Rule("a.{i}.b.0.{i}", ("x.{i}",))])
    assert names.resolve("a_2_b_0_2").modules == ("x.2",)
    assert names.resolve("a_2_b_1_2") is None
    assert names.resolve("a_2_b_0_3") is None


def test_skeleton():
    assert skeleton_of("down_blocks.0.attn1.to_out.0") == ("down_blocks_#_attn1_to_out_#", ("0", "0"))
