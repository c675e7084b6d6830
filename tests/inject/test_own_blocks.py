"""Block weights for models that no shared layout is for: their own blocks, in their order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import Kandinsky3UNet, UNet2DConditionModel, WanTransformer3DModel

import diffadapt
from diffadapt import StackError
from diffadapt.adapter import Adapter, TargetKey
from diffadapt.algorithms.lora import LoRA
from diffadapt.errors import RecipeError
from diffadapt.inject.block_weights import kind_of
from diffadapt.inject.locate import component_name
from diffadapt.inject.own_blocks import layout_of, strength_for
from diffadapt.recipe import Part
from tests import tiny
from tests.inject.test_block_weights import models
from tests.zoo import ZOO

UNET = ("BASE", "down.0", "down.1", "mid", "up.0", "up.1")
"""The numbers of `tiny.unet`."""


def wan(depth):
    with torch.device("meta"):
        return WanTransformer3DModel(
            num_attention_heads=1, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=8,
            ffn_dim=8, num_layers=depth,
        )  # fmt: skip


def everywhere(owner, *components):
    """An adapter on every Linear of an owner's models."""
    pair = LoRA(torch.ones(1, 1), torch.ones(1, 1), 1.0)
    targets = {}
    for name in components:
        for path, module in owner.components[name].named_modules():
            if isinstance(module, torch.nn.Linear):
                targets[TargetKey(name, path)] = LoRA(
                    pair.down.expand(1, module.in_features), pair.up.expand(module.out_features, 1), 1.0
                )
    return Adapter("a", "kohya", targets)


@pytest.fixture(scope="module")
def pipe():
    found = diffadapt.enable(tiny.sd())
    found.load_adapter(everywhere(found, "unet", "text_encoder"), adapter_name="a")
    return found


def by_block(values):
    """Block -> the strengths that its modules have."""
    found: dict[str, set[float]] = {}
    for (component, path), value in values.items():
        first, second = (*path.split("."), "")[:2]
        block = {"down_blocks": f"down.{second}", "up_blocks": f"up.{second}", "mid_block": "mid"}.get(first, "outside")
        found.setdefault("BASE" if component == "text_encoder" else block, set()).add(value)
    return found


def test_every_number_reaches_its_block_and_nothing_else(pipe):
    numbers = [0.1, 0.2, -0.3, 0.4, 0.5, 0.6]
    expected = {name: {number} for name, number in zip(UNET, numbers, strict=True)} | {"outside": {1.0}}
    for written in (numbers, ",".join(map(str, numbers)), " 0.1, 0.2,-0.3 , .4,0.5,6e-1 "):
        pipe.adapters.set({"a": written})
        seen = by_block(pipe.adapters.values("a"))
        assert seen == expected


@pytest.mark.parametrize(
    ("preset", "numbers"),
    [
        ("ALL", [1, 1, 1, 1, 1, 1]),
        ("NONE", [0, 0, 0, 0, 0, 0]),
        ("FIRST", [1, 1, 1, 0, 0, 0]),
        ("middle", [1, 0, 0, 1, 0, 0]),
        ("LAST", [1, 0, 0, 0, 1, 1]),
        ("LAST:0.5", [0.5, 0, 0, 0, 0.5, 0.5]),
        (" FIRST : -2 ", [-2, -2, -2, 0, 0, 0]),
    ],
)
def test_presets(preset, numbers, pipe):
    pipe.adapters.set({"a": [float(number) for number in numbers]})
    expected = pipe.adapters.values("a")
    pipe.adapters.set({"a": preset})
    assert pipe.adapters.values("a") == expected
    pipe.adapters.set(["a"], [preset])
    assert pipe.adapters.values("a") == expected


def test_the_presets_share_the_blocks_out():
    for count in range(1, 70):
        with_blocks = SimpleNamespace(named_children=lambda n=count: [("blocks", torch.nn.ModuleList([None] * n))])
        found = layout_of({"transformer": with_blocks})
        thirds = [found.presets[name] for name in ("FIRST", "MIDDLE", "LAST")]
        assert {vector[0] for vector in thirds} == {1.0}
        assert [sum(column) for column in zip(*(vector[1:] for vector in thirds), strict=True)] == [1.0] * count
        sizes = [sum(vector[1:]) for vector in thirds]
        assert max(sizes) - min(sizes) <= 1
        assert {len(vector) for vector in found.presets.values()} == {count + 1}


def test_they_are_in_force(pipe):
    """As the same strengths in full, live and merged; the time embedding belongs to no block."""
    blocks = {"default": 0.02, "unet": {"default": 1.0, "down": 0, "mid": 0, "up": 0.02}}
    pipe.adapters.set({"a": blocks})
    truth = tiny.run(pipe.unet)
    pipe.adapters.set({"a": 0.02})
    assert (tiny.run(pipe.unet) - truth).abs().max() > 1e-3
    pipe.adapters.set({"a": "LAST:0.02"})
    assert torch.equal(tiny.run(pipe.unet), truth)
    pipe.adapters.merge()
    torch.testing.assert_close(tiny.run(pipe.unet), truth, atol=1e-4, rtol=1e-4)
    pipe.adapters.unmerge()


@pytest.mark.parametrize("name", [name for name in ZOO if name not in ("anima_conditioner", "ltx2_connectors")])
def test_every_denoiser_has_a_layout_whose_numbers_are_its_blocks(name):
    model = ZOO[name].build()
    component = component_name(model)
    owner = diffadapt.enable(SimpleNamespace(components={component: model}))
    found = layout_of(owner.components)
    assert found.component == component
    if name == "flux1":
        assert found.kind == "flux"
        return
    assert (found.kind, found.names[0]) == (None, "BASE")
    owner.load_adapter(everywhere(owner, component), adapter_name="a")
    numbers = [float(2 + i) for i in range(len(found.names))]
    owner.adapters.set({"a": numbers})
    of = dict(zip(found.names[1:], numbers[1:], strict=True))
    values = owner.adapters.values("a")
    for (_, path), value in values.items():
        first, second = (*path.split("."), "")[:2]
        of_unet = {"down_blocks": f"down.{second}", "up_blocks": f"up.{second}", "mid_block": "mid"}
        assert value == of.get(of_unet.get(first, f"{first}.{second}"), 1.0), path
    assert set(values.values()) >= set(numbers[1:])


def test_two_experts_have_the_same_numbers():
    """Wan's: block weights are for both; the text encoders' number is for neither."""
    owner = diffadapt.enable(SimpleNamespace(components={"transformer": wan(3), "transformer_2": wan(3)}))
    owner.load_adapter(everywhere(owner, "transformer", "transformer_2"), adapter_name="a")
    owner.adapters.set({"a": [0.5, 0.1, 0.2, 0.3]})
    values = owner.adapters.values("a")
    first = {path: value for (part, path), value in values.items() if part == "transformer"}
    second = {path: value for (part, path), value in values.items() if part == "transformer_2"}
    assert first == second
    assert set(first.values()) == {0.1, 0.2, 0.3, 1.0}


def test_shared_layouts_come_first():
    made = models()
    for kind, component in (("sd1", "unet"), ("sdxl", "unet"), ("flux", "transformer")):
        found = layout_of({component: made[kind]})
        assert (found.kind, found.component) == (kind, component)
        assert all(len(numbers) == len(found.names) for numbers in found.presets.values())
        assert strength_for("ALL", {component: made[kind]}) == diffadapt.block_strength("ALL", kind)
    assert strength_for("MIDD:0.8", {"unet": made["sd1"]}) == diffadapt.block_strength("MIDD:0.8", "sd1")
    with pytest.raises(StackError, match="neither a preset nor a block"):
        strength_for("FIRST", {"unet": made["sd1"]})


def test_only_models_of_two_layers_in_each_block_have_a_shared_layout():
    """The vectors number two layers in every block, as Stable Diffusion and SDXL have them."""
    with torch.device("meta"):
        small = [
            UNet2DConditionModel(
                block_out_channels=(8,) * depth, norm_num_groups=4, cross_attention_dim=8, layers_per_block=layers,
                down_block_types=("CrossAttnDownBlock2D",) * depth, up_block_types=("CrossAttnUpBlock2D",) * depth,
            )
            for depth, layers in ((4, 1), (3, 1), (4, 3), (2, 2), (4, (2, 2, 2, 1)))
        ]  # fmt: skip
        small.append(
            Kandinsky3UNet(
                time_embedding_dim=8, groups=4, attention_head_dim=4, cross_attention_dim=8, encoder_hid_dim=8,
                block_out_channels=(8, 8, 8, 8), layers_per_block=1,
            )
        )  # fmt: skip
    for model in small:
        assert kind_of({"unet": model}) is None
        depth = len(model.down_blocks)
        ups, downs = ([f"{side}.{i}" for i in range(depth)] for side in ("up", "down"))
        middle = ["mid"] if getattr(model, "mid_block", None) is not None else []
        assert list(layout_of({"unet": model}).names) == ["BASE", *downs, *middle, *ups]
    assert kind_of({"unet": models()["sd1"]}) == "sd1"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "1,0,1",
            r"The block weights '1,0,1' are 3; this model takes 6 \(BASE, down\.0 to up\.1\) or one of ALL, NONE",
        ),
        ([1.0] * 17, "are 17; this model takes 6"),
        ("INALL", "'INALL' are 1; this model takes 6"),
        ("1,0,0,R,0,1", "'R' in .* is drawn"),
        ("1,0,0,much,0,1", "'much' .* is no number"),
        ([1.0, 0.0, float("inf"), 0.0, 0.0, 0.0], "no finite number"),
        ("FIRST:much", "'much' .* is no number"),
    ],
)
def test_what_means_nothing_is_an_error(spec, message, pipe):
    pipe.adapters.set({"a": 0.25})
    before = pipe.adapters.values("a")
    with pytest.raises(StackError, match=message):
        pipe.adapters.set({"a": spec})
    assert pipe.adapters.values("a") == before
    assert pipe.adapters.active == {"a": 0.25}


def test_block_lists_of_prompt_tags(pipe):
    """`lbw=` means what it means in `set`; the first number is the text encoders', the others' factor the rest's."""
    parts = {name: part.model for name, part in pipe.adapters.components().items()}
    for tag, numbers in {
        "<lora:a:0.5:2:lbw=FIRST>": [0.5, 2, 2, 0, 0, 0],
        "<lora:a:0.5:lbw=MIDDLE:x=1>": [0.5, 0, 0, 0.5, 0, 0],
        "<lora:a:1:LAST>": [1, 0, 0, 0, 1, 1],
        "<lora:a:0.5:2:lbw=1,0,X,0.5,X+0.25,0:x=0.5>": [0.5, 0, 1, 1, 1.5, 0],
    }.items():
        pipe.adapters.set({"a": Part(name="a", tag=tag).strength_for(parts)})
        assert {block: {float(n)} for block, n in zip(UNET, numbers, strict=True)}.items() <= by_block(
            pipe.adapters.values("a")
        ).items()
    with pytest.raises(RecipeError, match=r"<lora:a:1:lbw=1,2>'?: The block weights .* are 2; this model takes 6"):
        Part(name="a", tag="<lora:a:1:lbw=1,2>").strength_for(parts)
