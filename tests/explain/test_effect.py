"""What an adapter is meant to do and does, by block, against norms worked out from its changes one by one."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import diffadapt
from diffadapt import StackError
from diffadapt.adapter import Adapter, Foreign, TargetKey
from diffadapt.algorithms import Context, TensorGroup, parse_group
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.lora import LoRA
from diffadapt.algorithms.rows import OfFused
from diffadapt.combine.walking import block_of
from diffadapt.explain.effect import effect
from diffadapt.inject import schedule
from tests import tiny
from tests.algorithms.samples import SAMPLES
from tests.combine.made import lora

KINDS = ("lora", "dora", "oft", "lokr")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("effect")
    model = tiny.unet()
    for kind in KINDS:
        tiny.write_lycoris(model, kind, folder / f"{kind}.safetensors")
    return {kind: folder / f"{kind}.safetensors" for kind in KINDS}


@pytest.fixture
def pipe():
    return diffadapt.enable(tiny.sd())


def by_hand(pipe, name, strength=lambda key: 1.0, survived=lambda key: 1.0, base=None):
    """Block -> (modules, intended norm, realised norm, norm of the base weights), from dense changes."""
    base = tiny.unet() if base is None else base
    found = defaultdict(lambda: [0, 0.0, 0.0, 0.0])
    for key, delta in pipe.adapters[name].targets.items():
        weight = base.get_submodule(key.module).weight.detach()
        change = float(delta.weight_delta(weight).double().norm())
        row = found[key.component, block_of(key.module)]
        row[0] += 1
        row[1] = math.hypot(row[1], change)
        row[2] = math.hypot(row[2], change * strength(key) * survived(key))
        row[3] = math.hypot(row[3], float(weight.double().norm()))
    return dict(found)


def assert_is(found, truth, applied=None) -> None:
    assert {tuple(row.block) for row in found.blocks} == truth.keys()
    assert not found.left_out
    for row in found.blocks:
        modules, intended, realised, weights = truth[tuple(row.block)]
        assert (row.modules, row.applied) == (modules, modules if applied is None else applied(row.block))
        assert row.intended == pytest.approx(intended, rel=1e-5)
        assert row.realised == pytest.approx(realised, rel=1e-5)
        assert row.relative == pytest.approx(realised / weights, rel=1e-5)
    assert found.intended == pytest.approx(math.hypot(*(row[1] for row in truth.values())), rel=1e-5)
    assert found.realised == pytest.approx(math.hypot(*(row[2] for row in truth.values())), rel=1e-5)
    assert sum(map(found.share, found.blocks)) == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_algorithm_at_strengths_by_block(kind, files, pipe):
    pipe.load_adapter(files[kind], adapter_name="a")
    assert_is(effect(pipe, "a"), by_hand(pipe, "a"))
    pipe.adapters.set({"a": {"down": 0.25, "mid": 0.0, "up.0.attentions": -2.0, "default": 0.5}})
    values = pipe.adapters.values("a")
    assert {0.25, 0.0, -2.0, 0.5} <= set(values.values())
    assert_is(effect(pipe, "a"), by_hand(pipe, "a", lambda key: abs(values[key])))


@pytest.mark.parametrize(
    ("followed", "mean"),
    [
        (schedule.window(0.0, 0.4, 0.5), 0.2),
        (schedule.first(0.25), 0.25),
        (schedule.steps([1.0, 0.5, 0.0]), 0.5),
        (schedule.steps([1.0, -1.0]), 1.0),
        (schedule.points([(0, 1.0), (1, 0.0)]), 0.5),
        (schedule.switch(["a", "b", "c"])["b"], 1 / 3),
    ],
)
def test_a_schedule_counts_by_its_mean_size(followed, mean, files, pipe):
    pipe.load_adapter(files["lora"], adapter_name="a", weight={"unet": {"mid": followed, "default": 0.5}})
    found = effect(pipe, "a")
    ratios = {row.block.block: row.realised / row.intended for row in found.blocks}
    # The mean of a straight line depends a little on how many steps there are.
    assert ratios.pop("mid_block") == pytest.approx(mean, abs=0.01)
    assert [*ratios.values()] == pytest.approx([0.5] * len(ratios))


def test_a_text_encoder_has_the_first_strength(pipe):
    """It runs once, before the first step."""
    keys = [TargetKey("text_encoder", f"text_model.encoder.layers.{i}.mlp.fc1") for i in range(2)]
    adapter = Adapter("a", "kohya", {key: lora(2, i, 37, 32) for i, key in enumerate(keys)})
    pipe.load_adapter(adapter, adapter_name="a", weight=schedule.window(0.0, 0.25, 0.8))
    assert effect(pipe, "a").realised == pytest.approx(0.8 * effect(pipe, "a").intended)
    pipe.adapters.set({"a": schedule.window(0.25, 1.0)})
    assert effect(pipe, "a").realised == 0.0


def test_what_finds_no_module_is_meant_and_not_done(files, pipe):
    tensors = load_file(files["lora"])
    extra = {key.replace("mid_block", "down_blocks_7"): t for key, t in tensors.items() if "mid_block" in key}
    with pytest.warns(diffadapt.UnmatchedKeysWarning):
        report = pipe.load_adapter({**tensors, **extra}, adapter_name="a")
    rows = {row.block.block: row for row in effect(pipe, "a").blocks}
    lost, there = rows.pop("down_blocks.7"), rows["mid_block"]
    assert (lost.modules, lost.applied) == (there.modules, 0)
    assert lost.intended == pytest.approx(there.intended)
    assert (lost.realised, lost.relative) == (0.0, None)
    assert all(row.applied == row.modules and row.realised == row.intended for row in rows.values())
    assert sum(row.applied for row in rows.values()) == len(report.applied)


def test_nothing_is_done_while_all_are_disabled(files, pipe):
    pipe.load_adapter(files["lora"], adapter_name="a")
    truth = by_hand(pipe, "a", lambda key: 0.0)
    for merge in (False, True):
        if merge:
            pipe.adapters.merge()
        with pipe.adapters.disable():
            assert_is(effect(pipe, "a"), truth)
        assert effect(pipe, "a").realised == pytest.approx(effect(pipe, "a").intended)
    pipe.adapters.set({})
    assert_is(effect(pipe, "a"), truth)


@pytest.mark.parametrize("remember", ["copy", "code"])
def test_a_merge_in_half_precision_loses_what_it_says(remember, files, pipe):
    pipe.unet.to(torch.bfloat16)
    base = tiny.unet().to(torch.bfloat16)
    pipe.load_adapter(files["lora"], adapter_name="a", weight=0.01)
    whole = by_hand(pipe, "a", lambda key: 0.01, base=base)
    assert_is(effect(pipe, "a"), whole)
    report = pipe.adapters.merge(remember=remember)
    assert report.survived < 0.9
    assert_is(effect(pipe, "a"), by_hand(pipe, "a", lambda key: 0.01, lambda key: report.layers[key].survived, base))
    # Nobody's word for it: what is in the weights now, along what was wanted. Reports measure some rows of each.
    done, row = 0.0, next(row for row in effect(pipe, "a").blocks if row.block.block == "mid_block")
    for key, delta in pipe.adapters["a"].targets.items():
        if key.module.startswith("mid_block"):
            before, now = (model.get_submodule(key.module).weight.float() for model in (base, pipe.unet))
            wanted = 0.01 * delta.weight_delta(before)
            done += float(((now - before) * wanted).sum() / wanted.norm()) ** 2
    assert row.realised == pytest.approx(math.sqrt(done), rel=0.1)
    pipe.adapters.unmerge()
    assert_is(effect(pipe, "a"), whole)


def test_what_stays_live_beside_a_merge_loses_nothing(files, pipe):
    pipe.unet.to(torch.bfloat16)
    pipe.load_adapter(files["lora"], adapter_name="a", weight=0.01)
    pipe.load_adapter(files["oft"], adapter_name="b", weight=0.01)
    before = effect(pipe, "b")
    assert pipe.adapters.merge(["a"]).survived < 0.9
    assert effect(pipe, "b") == before
    assert effect(pipe, "a").realised != pytest.approx(0.01 * effect(pipe, "a").intended, rel=1e-6)


@pytest.mark.parametrize("rule", ["geodesic", "stage"])
def test_a_rule_of_its_own(rule, files, pipe):
    """Half a rotation is more than half of its change: the norm is that of the change which is in force."""
    pipe.load_adapter(files["oft"], adapter_name="a", strength=rule, weight={"unet": {"mid": 0.0, "default": 0.5}})
    base = tiny.unet()
    found = effect(pipe, "a")
    total = defaultdict(float)
    for key, delta in pipe.adapters["a"].targets.items():
        weight = base.get_submodule(key.module).weight.detach()
        total[block_of(key.module)] += float(delta.at_strength(0.5, rule).weight_delta(weight).double().norm()) ** 2
    total["mid_block"] = 0.0
    for row in found.blocks:
        assert row.realised == pytest.approx(math.sqrt(total[row.block.block]), rel=1e-5)
    assert found.intended == pytest.approx(math.hypot(*(row[1] for row in by_hand(pipe, "a").values())), rel=1e-5)
    pipe.adapters.set({"a": 1.0})
    assert effect(pipe, "a").realised == pytest.approx(found.intended, rel=1e-5)


def test_a_trained_adapter_is_as_it_is_now(files, pipe):
    pipe.load_adapter(files["lora"], adapter_name="a", trainable=True)
    before = effect(pipe, "a")
    with torch.no_grad():
        for delta in (placement.delta for placement in pipe.adapters._get("a").placements):
            delta.up.mul_(3)
    now = effect(pipe, "a")
    assert now.intended == pytest.approx(3 * before.intended)
    assert now.realised == pytest.approx(3 * before.realised)


class Odd(nn.Module):
    """A model of no family, with a parameter of no layer."""

    def __init__(self, width=24) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.core = nn.ModuleList(nn.Linear(width, 32) for _ in range(2)).requires_grad_(False)
        self.gate = nn.Parameter(torch.ones(6))


def odd_pipe(*adapters, **options):
    pipe = diffadapt.enable(SimpleNamespace(components={"transformer": Odd(**options)}))
    for adapter in adapters:
        pipe.load_adapter(adapter, adapter_name=adapter.name)
    return pipe


def test_modules_that_only_the_pipeline_can_name():
    deltas = {Foreign(None, f"core_{i}", True): lora(2, i) for i in range(2)}
    pipe = odd_pipe(Adapter("a", "kohya", {}, foreign=deltas))
    found = effect(pipe, "a")
    truth = math.hypot(*(float(delta.weight_delta(torch.zeros(32, 24)).norm()) for delta in deltas.values()))
    assert sum(row.applied for row in found.blocks) == sum(row.modules for row in found.blocks) == 2
    assert found.realised == pytest.approx(found.intended) == pytest.approx(truth)


def test_parts_of_a_fused_projection():
    """Magnitudes by input column: the change of one part depends on the weights of the other."""
    random = torch.Generator().manual_seed(0)
    shapes = {"lora_down": (4, 24), "lora_up": (64, 4), "dora_scale": (1, 24)}
    tensors = {role: torch.randn(shape, generator=random) for role, shape in shapes.items()}
    inner = parse_group(TensorGroup("qk", {**tensors, "alpha": torch.tensor(4.0)}), Context("lycoris"))
    paths = ("core.0", "core.1")
    deltas = {TargetKey("transformer", path): OfFused(inner, i, paths, (1, 1)) for i, path in enumerate(paths)}
    pipe = odd_pipe(Adapter("a", "kohya", deltas))
    weights = [layer.weight.detach().clone() for layer in Odd().core]
    change = inner.weight_delta(torch.cat(weights))
    for merge in (False, True):
        if merge:
            pipe.adapters.merge()
        found = effect(pipe, "a")
        assert found.left_out == {}
        for row, part in zip(found.blocks, (change[:32], change[32:]), strict=True):
            assert row.realised == pytest.approx(row.intended) == pytest.approx(float(part.norm()), rel=1e-5)


def test_a_table_holds_the_change_while_it_is_live():
    key = TargetKey("transformer", "gate")
    pipe = odd_pipe(Adapter("a", "kohya", {key: Full(torch.full((6,), 3.0))}))
    (row,) = effect(pipe, "a").blocks
    assert torch.equal(pipe.components["transformer"].gate, torch.full((6,), 4.0))
    assert (row.intended, row.realised) == (pytest.approx(3 * 6**0.5), pytest.approx(3 * 6**0.5))
    assert row.relative == pytest.approx(3.0)


def test_an_input_layer_that_another_adapter_has_widened():
    model = tiny.flux()
    owner = diffadapt.enable(SimpleNamespace(components={"transformer": model}))
    key = TargetKey("transformer", "x_embedder")
    narrow = LoRA(torch.randn(2, 4), torch.randn(48, 2), 2.0)
    owner.load_adapter(Adapter("narrow", "kohya", {key: narrow}), adapter_name="narrow")
    before = effect(owner, "narrow")
    owner.load_adapter(Adapter("wide", "kohya", {key: LoRA(torch.randn(2, 8), torch.randn(48, 2), 2.0)}))
    assert model.x_embedder.in_features == 8
    after = effect(owner, "narrow")
    assert after.left_out == {}
    assert after.intended == pytest.approx(before.intended)
    assert after.blocks[0].relative == pytest.approx(before.blocks[0].relative)
    assert effect(owner, "wide").realised > 0


def test_what_has_no_one_change_is_named():
    """T-LoRA's rank follows the timestep."""
    delta = next(sample for sample in SAMPLES if sample.name == "tlora").delta()
    keys = [TargetKey("transformer", f"core.{i}") for i in range(2)]
    pipe = odd_pipe(Adapter("a", "kohya", {keys[0]: delta, keys[1]: lora(2, 1)}))
    found = effect(pipe, "a")
    assert [*found.left_out] == ["transformer core.0"]
    assert [row.block.block for row in found.blocks] == ["core.1"]


def test_as_data_and_by_name(files, pipe):
    pipe.load_adapter(files["lora"], adapter_name="a", weight=0.5)
    found = effect(pipe, "a")
    data = json.loads(json.dumps(found.to_dict()))
    assert (data["name"], data["intended"], data["left_out"]) == ("a", found.intended, {})
    assert [row["block"] for row in data["blocks"]] == [row.block.block for row in found.blocks]
    assert sum(row["share"] for row in data["blocks"]) == pytest.approx(1)
    assert {row["component"] for row in data["blocks"]} == {"unet"}
    with pytest.raises(StackError, match="No adapter is named 'b'"):
        effect(pipe, "b")
    nothing = {TargetKey("unet", "mid_block.attentions.0.proj_in"): Full(torch.zeros(64, 64, 1, 1))}
    pipe.load_adapter(Adapter("n", "kohya", nothing))
    (row,) = effect(pipe, "n").blocks
    assert (row.intended, row.realised, row.relative, effect(pipe, "n").share(row)) == (0.0, 0.0, 0.0, 0.0)
