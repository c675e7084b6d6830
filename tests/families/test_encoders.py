"""Language models as text encoders: trainers name their modules with any of the levels, or none, flat or dotted."""

from __future__ import annotations

import pytest

from diffadapt.families import ENCODERS
from diffadapt.families.decoders import LEVELS
from tests.families.full_size import layers

BY_LAYOUT = {names.model.layout: names for names in ENCODERS if names.model is not None}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("layout", BY_LAYOUT)
def test_every_level_leads_to_the_class_own_name(layout, level):
    names, checked = BY_LAYOUT[layout], 0
    for path in layers(layout):
        before, found, rest = path.rpartition("layers.")
        if not found or "vi" in before:  # vision towers and visual blocks keep their own level
            continue
        for spelling in (f"{level}layers.{rest}", f"{level}layers.{rest}".replace(".", "_")):
            route = names.resolve(spelling)
            assert route is not None, spelling
            assert route.modules == (path,)
            checked += 1
    assert checked >= 2 * 26 * 6


def test_the_vision_tower_of_qwen_is_found_with_and_without_the_outer_level():
    names = BY_LAYOUT["qwen25_vl_7b"]
    for spelling in ("visual.blocks.3.attn.qkv", "model.visual.blocks.3.attn.qkv", "model_visual_blocks_3_attn_qkv"):
        route = names.resolve(spelling)
        assert route is not None
        assert route.modules == ("model.visual.blocks.3.attn.qkv",)


def test_sd_scripts_flat_names():
    for layout, path in (("gemma2_2b", "layers.7.self_attn.q_proj"), ("qwen3_0_6b", "layers.7.mlp.gate_proj")):
        route = BY_LAYOUT[layout].resolve(path.replace(".", "_"))
        assert route is not None
        assert route.modules == (path,)
