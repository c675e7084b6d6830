"""Vectors by block as people share them, against the key names of the code that they were made for."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel

import diffadapt
from diffadapt import StackError
from diffadapt.inject.block_weights import LAYOUTS, PRESETS, block_strength, kind_of, preset
from diffadapt.inject.scaling import Targets, multipliers
from tests import tiny

ENCODER = "encoder.layers.0.mlp.fc1"


@cache
def models():
    """The three kinds at their real depths, without weights."""
    attention = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    with torch.device("meta"):
        return {
            "sd1": UNet2DConditionModel(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, cross_attention_dim=8),
            "sdxl": UNet2DConditionModel(
                block_out_channels=(8, 8, 8), norm_num_groups=4, cross_attention_dim=8, down_block_types=attention,
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            ),
            "flux": FluxTransformer2DModel(
                num_attention_heads=1, attention_head_dim=8, axes_dims_rope=[2, 2, 4], joint_attention_dim=8,
                pooled_projection_dim=8, in_channels=4, guidance_embeds=True,
            ),
        }  # fmt: skip


def values(strength, kind):
    """(component, path) -> strength."""
    component = "transformer" if kind == "flux" else "unet"
    paths = [path for path, module in models()[kind].named_modules() if hasattr(module, "weight")]
    keys = [(component, p) for p in paths] + [("text_encoder", ENCODER), ("text_encoder_2", ENCODER)]
    known = {component: paths, "text_encoder": [ENCODER], "text_encoder_2": [ENCODER]}
    return dict(zip(keys, multipliers(strength, Targets(keys), tuple(known), lambda: known), strict=True))


def original_block(path, kind):
    """The block of a module by the names of the original code, in which the vectors' own code searches."""
    if kind == "flux":
        for word, letter in (("transformer_blocks", "D"), ("single_transformer_blocks", "S")):
            if match := re.match(rf"{word}\.(\d+)\.", path):
                return f"{letter}{int(match[1]):02}"
        first = path.split(".")[0]
        return {"x_embedder": "IN", "context_embedder": "IN", "time_text_embed": "IN"}.get(first, "OUT")
    if path.startswith("mid_block"):
        return "M00"
    if path == "conv_in":
        return "IN00"
    match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)", path)
    if match is None:
        return None
    side, block, what, layer = match[1], int(match[2]), match[3], int(match[4])
    if side == "down":
        return f"IN{3 * block + (3 if what == 'downsamplers' else 1 + layer):02}"
    return f"OUT{3 * block + (2 if what == 'upsamplers' else layer):02}"


@pytest.mark.parametrize("count", LAYOUTS)
def test_every_number_reaches_its_block_and_nothing_else(count):
    kind, names = LAYOUTS[count]
    numbers = [0.1 + i / 100 for i in range(count)]
    by_name = dict(zip(names, numbers, strict=True))
    seen = values(block_strength(numbers), kind)
    assert seen == values(block_strength(",".join(map(str, numbers)), kind), kind)
    plain = 1.0 if count in (57, 19) else None
    for (component, path), value in seen.items():
        if component.startswith("text_encoder"):
            name = "BASE" if kind != "flux" else "CLIP" if component == "text_encoder" else "T5"
            expected = by_name.get(name, plain)
        else:
            name = original_block(path, kind)
            outer = plain is not None and name in ("IN", "OUT")
            expected = 1.0 if name is None or outer else by_name.get(name, 0.0)
        assert value == expected, (component, path, name)
    assert set(numbers) <= set(seen.values())


def test_the_presets_are_the_published_numbers():
    assert ",".join(f"{v:g}" for v in preset("MIDD")) == "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0"
    for kind, count in (("sd1", 17), ("sdxl", 12), ("flux", 61)):
        assert {len(vector) for vector in PRESETS[kind].values()} == {count}
    assert block_strength("INALL") == block_strength(preset("INALL")) == block_strength("inall", "sd1")
    assert block_strength("MIDD:0.8") == block_strength([0.8 * v for v in preset("MIDD")])
    assert block_strength("OUTALL", "sdxl") == block_strength("1,0,0,0,0,0,1,1,1,1,1,1")
    assert block_strength("FLUXALL", "flux") == block_strength([1] * 61)


@pytest.mark.parametrize(
    ("spec", "kind", "numbers"),
    [
        ("MINE:1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0", None, {"BASE": 1, "IN05-IN08": 1, "IN06": 0}),
        ("BASE", None, {"BASE": 1}),
        ("NMID", "sdxl", {"BASE-OUT08": 1, "M00": 0}),
        ("IN04:-0.5, OUT03-OUT05", None, {"IN04": -0.5, "OUT03": 1, "OUT04": 1, "OUT05": 1}),
        ("D00-D02:0.5,S07", None, {"D00": 0.5, "D01": 0.5, "D02": 0.5, "S07": 1}),
    ],
)
def test_texts(spec, kind, numbers):
    made = ",".join(f"{name}:{value}" for name, value in numbers.items())
    assert block_strength(spec, kind) == block_strength(made, kind)


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("1,1,R,1,1,1,1,1,1,1,1,1,1,1,1,1,1", None, r"'R' .* is drawn"),
        ("1,1,1,1,1,1,1,1,1,1,1,1,U,1,1,1,1", None, "write the number itself"),
        ("X,1,1,1,1,1,1,1,1,1,1,X+0.2,1,1,1,1,1", None, "write the number itself"),
        ("1,0,1", None, "3 block weights were given; lists have 12, 17, 19, 20, 26, 57, 61"),
        ([1.0] * 17, "sdxl", "17 block weights are for sd1; the model is sdxl, whose lists have 12, 20"),
        ("INALLL", None, "neither a preset nor a block"),
        ("IN04:much", None, "'much' .* is no number"),
        ([float("nan")] * 12, None, "no finite number"),
        ("ALL", "sd3", "No kind of model"),
        ("", None, "1 block weights"),
    ],
)
def test_what_means_nothing_is_an_error(spec, kind, message):
    with pytest.raises(StackError, match=message):
        block_strength(spec, kind)


def test_kinds_are_told_by_the_models():
    made = models()
    assert kind_of({"unet": made["sd1"]}) == "sd1"
    assert kind_of({"unet": made["sdxl"]}) == "sdxl"
    assert kind_of({"transformer": made["flux"]}) == "flux"
    assert kind_of({"transformer": made["sd1"]}) is None


def test_a_vector_for_another_model_names_what_it_has_not():
    with pytest.raises(StackError, match="names no module"):
        values(block_strength([1.0] * 17), "sdxl")


def test_presets_where_strengths_are_given():
    """Through `load_adapter` and `set`, on a pipeline of four blocks."""
    attention = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    pipe = diffadapt.enable(
        tiny.sd(
            block_out_channels=(8, 8, 8, 8), layers_per_block=2, down_block_types=attention,
            up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3), norm_num_groups=4,
        )
    )  # fmt: skip
    paths = [f"{block}.attentions.1.proj_in" for block in ("down_blocks.1", "mid_block", "up_blocks.2")]
    paths[1] = "mid_block.attentions.0.proj_in"
    file = {}
    for path in paths:
        file[f"unet.{path}.lora_A.weight"] = torch.randn(2, 8, 1, 1)
        file[f"unet.{path}.lora_B.weight"] = torch.randn(8, 2, 1, 1)
    pipe.load_adapter(file, adapter_name="a", weight="INALL")
    assert list(pipe.adapters.values("a").values()) == [1.0, 0.0, 0.0]
    pipe.adapters.set({"a": "IN05:-0.5,OUT07"})
    assert list(pipe.adapters.values("a").values()) == [-0.5, 0.0, 1.0]
    pipe.adapters.set(["a"], [list(preset("MIDD"))])
    assert list(pipe.adapters.values("a").values()) == [1.0, 1.0, 0.0]
    with pytest.raises(StackError, match="12 block weights are for sdxl; the model is sd1"):
        pipe.adapters.set({"a": ",".join(["1"] * 12)})
    assert list(pipe.adapters.values("a").values()) == [1.0, 1.0, 0.0]
