"""Weights by component, block and pattern: a combination does what `pipe.adapters.set` does with the same strength."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import diffadapt
from diffadapt import CombineError, shapes
from diffadapt.adapter import Adapter, Foreign, TargetKey
from diffadapt.combine import METHODS
from diffadapt.inject import schedule
from tests import tiny
from tests.combine.made import base, lora

KINDS = ("lora", "dora", "oft", "lokr")
BY_BLOCK = {"unet": {"down": 0.2, "mid": 0.7, "up": {"block_0": [0.3], "default": -0.4}, "*.attn2.to_k": 0.0}}
STRENGTHS = {
    "components": {"unet": 0.7, "text_encoder": 0.3},
    "blocks": BY_BLOCK,
    "patterns": {"**.attn[12].to_*": 0.5, "ff.net": 0.25, "default": 0.1},
    "preset": "MIDDLE:0.6",
    "vector": [1.0, 0.5, 0.0, 0.25, -0.5, 0.75],
    "text": "0.5,0,0.1,0.2,0.3,0.4",
    "number": 0.6,
}
MIDDLE = "mid_block.attentions.0.proj_in"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Adapters of the UNet and of the text encoder, whose weight changes are as large as the weights."""
    folder = tmp_path_factory.mktemp("weighing")
    model = tiny.unet()
    for kind in KINDS:
        tiny.write_lycoris(model, kind, folder / f"{kind}.safetensors", seed=len(kind))
    read = {kind: diffadapt.read_adapter(folder / f"{kind}.safetensors") for kind in KINDS}
    encoder = {
        TargetKey("text_encoder", f"text_model.encoder.layers.{i}.mlp.fc1"): lora(2, i, 37, 32) for i in range(2)
    }
    lora_of_both = Adapter("lora", "kohya", {**read["lora"].targets, **encoder}, candidates=read["lora"].candidates)
    return {**read, "lora": lora_of_both}


def merged(pipe, strengths) -> dict[str, torch.Tensor]:
    """The weights that the adapters of the stack make at these strengths."""
    pipe.adapters.set(strengths)
    pipe.adapters.merge()
    found = {
        f"{part}.{key}": tensor.clone() for part in ("unet", "text_encoder")
        for key, tensor in getattr(pipe, part).state_dict().items() if tensor.is_floating_point()
    }  # fmt: skip
    pipe.adapters.unmerge()
    return found


def assert_alike(seen, truth, plain) -> None:
    """Every weight is the same up to the rounding of its change in float32, and some change at all."""
    changed = 0
    for key, tensor in truth.items():
        size = float((tensor - plain[key]).norm())
        changed += size > 0
        assert float((seen[key] - tensor).norm()) <= 3e-6 * (size + float(plain[key].norm())), key
    assert changed > 10


@pytest.fixture(scope="module")
def pipe(files):
    found = diffadapt.enable(tiny.sd())
    for kind in KINDS:
        found.load_adapter(files[kind], adapter_name=kind, weight=0.0)
    return found


@pytest.mark.parametrize("named", STRENGTHS)
def test_the_sum_of_every_algorithm(named, files, pipe):
    strengths = {"lora": STRENGTHS[named], "dora": 0.5, "oft": STRENGTHS[named], "lokr": BY_BLOCK}
    mix = diffadapt.combine({files[kind]: strength for kind, strength in strengths.items()}, base=pipe)
    plain, truth = merged(pipe, {}), merged(pipe, strengths)
    pipe.load_adapter(mix, adapter_name="mix")
    assert_alike(merged(pipe, {"mix": 1.0}), truth, plain)
    pipe.adapters.remove("mix")


@pytest.mark.parametrize(("method", "options"), [("sum", {}), ("cat", {}), ("svd", {"rank": 8}), ("sum", {"rank": 8})])
def test_methods_of_low_rank(method, options, files, pipe, tmp_path):
    """Two LoRAs of rank 4: rank 8 holds their sum. Also without the pipeline, and from the file it is saved to."""
    other = Adapter("other", "kohya", {
        key: lora(4, number, *(size for size in delta.shape_alone)) for number, (key, delta) in
        enumerate(files["lora"].targets.items()) if len(delta.shape_alone) == 2
    })  # fmt: skip
    pipe.load_adapter(other, adapter_name="other", weight=0.0)
    strengths = {"lora": BY_BLOCK, "other": {"unet": {"mid": 0.05, "default": 0.02}}}
    plain, truth = merged(pipe, {}), merged(pipe, strengths)
    pairs = {files["lora"]: BY_BLOCK, other: strengths["other"]}
    for mix in (diffadapt.combine(pairs, method, base=pipe, **options), diffadapt.combine(pairs, method, **options)):
        pipe.load_adapter(mix, adapter_name="mix", weight=0.0)
        assert_alike(merged(pipe, {"mix": 1.0}), truth, plain)
        pipe.adapters.remove("mix")
    pipe.adapters.remove("other")
    said = json.loads(mix.metadata.raw["diffadapt.combine"])["adapters"]
    assert said == [["lora", BY_BLOCK], ["other", strengths["other"]]]
    assert load_file(mix.save(tmp_path / "mix.safetensors"))


def family(name, paths, component="unet"):
    return Adapter("a", "kohya", {TargetKey(component, path): lora(2, 1) for path in paths}, candidates=(name,))


@pytest.mark.parametrize(
    ("name", "component", "preset", "paths"),
    [
        ("sdxl", "unet", "MIDALL", {MIDDLE: 1, "up_blocks.0.attentions.0.proj_in": 0}),
        ("kolors", "unet", "MIDALL:0.5", {MIDDLE: 0.5, "up_blocks.0.attentions.0.proj_in": 0}),
        ("sd1", "unet", "OUTS", {MIDDLE: 0, "up_blocks.3.attentions.1.proj_in": 1}),
        ("sd2", "unet", "OUTS", {MIDDLE: 0, "up_blocks.3.attentions.1.proj_in": 1}),
        ("flux1", "transformer", "S03:0.5", {"transformer_blocks.3.attn.to_q": 0,
                                             "single_transformer_blocks.3.attn.to_q": 0.5}),
        ("flux1", "transformer", [0.25] * 19, {"transformer_blocks.3.attn.to_q": 0.25,
                                               "single_transformer_blocks.3.attn.to_q": 0}),
    ],
)  # fmt: skip
def test_presets_are_those_of_the_family_where_there_is_no_pipeline(name, component, preset, paths):
    one = family(name, paths, component)
    mix = diffadapt.combine({one: preset})
    weight = torch.zeros(32, 24)
    for path, number in paths.items():
        key = TargetKey(component, path)
        truth = number * one.targets[key].weight_delta(weight)
        torch.testing.assert_close(mix.targets[key].weight_delta(weight), truth)


def test_one_adapter_twice_at_different_blocks():
    one = family("sd1", [MIDDLE, "up_blocks.3.attentions.1.proj_in"])
    mix = diffadapt.combine([(one, {"mid": 0.5, "up": 0.25}), (one, {"unet": {"mid": 1.0, "up": 0.0}})])
    for (key, delta), factor in zip(one.targets.items(), (1.5, 0.25), strict=True):
        truth = factor * delta.weight_delta(torch.zeros(32, 24))
        torch.testing.assert_close(mix.targets[key].weight_delta(torch.zeros(32, 24)), truth)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"sum", "cat", "svd"}))
def test_other_methods_take_numbers(method):
    one, two = family("sd1", [MIDDLE]), family("sd1", [MIDDLE])
    with pytest.raises(CombineError, match=f"^{method}: takes one weight for each adapter, not strengths by block"):
        diffadapt.combine([(one, 1.0), (two, {"mid": 0.5})], method)


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        (schedule.window(0, 0.5), r"^a: its strength follows the denoising \(Window.*Give it a number"),
        ({"unet": {"mid": schedule.points([(0, 1), (1, 0)])}}, r"^a: its strength follows the denoising \(Points"),
        ({"unet": "strong"}, "^a: The strength of unet is 'strong'; expected a number"),
        ({"unet": float("nan")}, "^a: The strength of unet is nan; expected a finite number"),
        (True, "^a: The strength of the adapter is True"),
        ("MIDDLE", "^a: 'MIDDLE' in 'MIDDLE' is neither a preset nor a block"),
        ([1.0, 0.0], "^a: 2 block weights were given"),
    ],
)
def test_what_is_no_weight_of_a_file(strength, message):
    with pytest.raises(CombineError, match=message):
        diffadapt.combine({family("sd1", [MIDDLE]): strength})


def test_a_schedule_that_names_no_layer_of_the_adapter_is_no_hindrance():
    one = family("sd1", [MIDDLE])
    mix = diffadapt.combine({one: {"mid": 0.5, "up": schedule.window(0, 0.5)}})
    assert mix.targets.keys() == one.targets.keys()


def test_models_without_a_shared_layout_are_asked(pipe):
    one = family("wan", ["blocks.0.attn1.to_q"], "transformer")
    with pytest.raises(CombineError, match=r"what block weights mean for wan only the model tells; give the pipeline"):
        diffadapt.combine({one: "FIRST"})
    with pytest.raises(CombineError, match="'dwon' names no module of the pipeline"):
        diffadapt.combine({family("sd1", [MIDDLE]): {"dwon": 0.5}}, base=pipe)


def test_modules_that_no_family_knows():
    """Their names are the file's, in which blocks cannot be told; a pipeline tells."""
    flat, dotted = Foreign("unet", "blocks_3_layer", True), Foreign("unet", "blocks.3.layer", False)
    paths = {flat: lora(2, 1), dotted: lora(2, 2)}
    model = nn.ModuleDict({"blocks": nn.ModuleList(nn.ModuleDict({"layer": nn.Linear(24, 32)}) for _ in range(4))})
    owner = base(nn.Linear(2, 2))
    owner.components["unet"] = model
    weight = torch.zeros(32, 24)
    for name, delta in paths.items():
        one = Adapter("odd", "kohya", {}, foreign={name: delta})
        truth = 0.5 * delta.weight_delta(weight)
        for options in ({"base": owner}, {}):
            if name.flat and not options:
                with pytest.raises(CombineError, match=r"^odd: unet blocks_3_layer is a module that no family knows; "):
                    diffadapt.combine({one: {"unet": {"blocks.3": 0.5}}})
                continue
            mix = diffadapt.combine({one: {"unet": {"default": 0.1, "blocks.3": 0.5}}}, **options)
            torch.testing.assert_close(mix.foreign[name].weight_delta(weight), truth)
        assert diffadapt.combine({one: 0.5}).foreign


def test_a_weighted_kronecker_product_of_two_full_factors_is_saved_in_its_own_layout(tmp_path):
    """Its files have no scale, so the weight is in a factor."""
    sample = next(one for one in shapes.adapters("unet") if one.name == "shadow")
    adapter = diffadapt.read_adapter(sample.path)
    mix = diffadapt.combine({adapter: 0.5})
    again = diffadapt.read_adapter(mix.save(tmp_path / "half.safetensors", dialect="lycoris"))
    assert dict(again.algorithms) == dict(adapter.algorithms)
    for key, delta in adapter.targets.items():
        shape = delta.shape_alone
        weight = torch.zeros(shape)
        wanted = delta.weight_delta(weight) * 0.5
        torch.testing.assert_close(again.targets[key].weight_delta(weight), wanted, rtol=1e-5, atol=1e-7)
