"""Strengths that follow the denoising, on whole pipelines: against constants, and against a callback by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from torch._dynamo.testing import CompileCounter

import diffadapt
from diffadapt import MergeError, StackError
from diffadapt.inject.following import moment_of
from diffadapt.inject.schedule import (
    START,
    Moment,
    Schedule,
    curve,
    first,
    from_json,
    points,
    steps,
    switch,
    window,
)
from tests import tiny

STEPS = 5
KINDS = ("lora", "oft")


def run_sd(pipe, **options):
    g = torch.Generator().manual_seed(0)
    embeds = torch.randn(2, 5, tiny.WIDTH, generator=g)
    return pipe(
        prompt_embeds=embeds[:1], negative_prompt_embeds=embeds[1:], num_inference_steps=STEPS, height=8, width=8,
        guidance_scale=4.0, generator=torch.Generator().manual_seed(1), output_type="latent", **options,
    ).images  # fmt: skip


def run_flux(pipe, **options):
    g = torch.Generator().manual_seed(0)
    return pipe(
        prompt_embeds=torch.randn(1, 5, tiny.WIDTH, generator=g),
        pooled_prompt_embeds=torch.randn(1, tiny.WIDTH, generator=g), num_inference_steps=STEPS, height=64, width=64,
        generator=torch.Generator().manual_seed(1), output_type="latent", **options,
    ).images  # fmt: skip


def flux_file(model, seed):
    g = torch.Generator().manual_seed(seed)
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ("attn" in path or "proj_mlp" in path):
            found[f"transformer.{path}.lora_A.weight"] = 0.3 * torch.randn(2, module.in_features, generator=g)
            found[f"transformer.{path}.lora_B.weight"] = 0.3 * torch.randn(module.out_features, 2, generator=g)
    return found


def flux_pipe():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=False, shift=3.0)
    return FluxPipeline(
        scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        transformer=tiny.flux(in_channels=16),
    )  # fmt: skip


@pytest.fixture(params=["sd", "flux"])
def case(request, lycoris_files):
    """(pipeline with adapters a and b at 0, its run)."""
    pipe = diffadapt.enable(tiny.sd() if request.param == "sd" else flux_pipe())
    for name, kind, seed in zip("ab", KINDS, (1, 2), strict=True):
        source = lycoris_files[kind][0] if request.param == "sd" else flux_file(pipe.transformer, seed)
        pipe.load_adapter(source, adapter_name=name, weight=0.0)
    pipe.set_progress_bar_config(disable=True)
    return pipe, run_sd if request.param == "sd" else run_flux


def denoiser(pipe):
    return getattr(pipe, "unet", None) or pipe.transformer


def by_hand(pipe, run, strengths):
    """A run in which a callback of the pipeline sets strengths(step) before every step."""

    def after(pipe, step, timestep, kwargs):
        pipe.adapters.set(strengths(step + 1))
        return kwargs

    pipe.adapters.set(strengths(0))
    return run(pipe, callback_on_step_end=after)


def test_a_window_over_all_is_the_constant_and_a_zero_is_the_base(case):
    pipe, run = case
    base = run(pipe)
    pipe.adapters.set({"a": 0.7, "b": {"to_q": 0.3, "default": 0.5}})
    constant = run(pipe)
    assert not torch.equal(constant, base)
    pipe.adapters.set({"a": window(0, 1, 0.7), "b": {"to_q": steps([0.3]), "default": 0.5}})
    assert torch.equal(run(pipe), constant)
    pipe.adapters.set({"a": window(0, 1, 0.0), "b": curve(lambda p: 0.0)})
    assert torch.equal(run(pipe), base)
    assert denoiser(pipe)._forward_pre_hooks
    pipe.adapters.set({"a": 1.0})
    assert not denoiser(pipe)._forward_pre_hooks  # nothing follows, so nothing is hooked
    pipe.adapters.set({"a": first(0.5)})
    pipe.adapters.remove("a")
    assert not denoiser(pipe)._forward_pre_hooks


SCHEDULES = {
    "window": (window(0.2, 0.6), [0, 1, 1, 0, 0]),
    "first": (first(0.4, 0.8), [0.8, 0.8, 0, 0, 0]),
    "points": (points([(0, 1.0), (0.4, 0.5), (1, -0.1)]), [1.0, 0.75, 0.5, 0.3, 0.1]),
    "steps": (steps([0.1, 0.2, 0.3, 0.4, 0.5]), [0.1, 0.2, 0.3, 0.4, 0.5]),
    "halves": (steps([1.0, -0.5]), [1, 1, 1, -0.5, -0.5]),
    "curve": (curve(lambda p: (1 - p) ** 2) * 0.5, [0.5, 0.32, 0.18, 0.08, 0.02]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_a_callback_by_hand(case, name):
    pipe, run = case
    schedule, values = SCHEDULES[name]
    wanted = by_hand(pipe, run, lambda step: {"a": values[min(step, STEPS - 1)], "b": 0.4})
    pipe.adapters.set({"a": schedule, "b": 0.4})
    for _ in range(2):  # a second run begins anew
        assert torch.allclose(run(pipe), wanted, atol=1e-5)


def test_schedules_by_component_and_block(case):
    pipe, run = case
    component = "unet" if hasattr(pipe, "unet") else "transformer"
    block = "mid" if component == "unet" else "single"

    def strengths(step):
        return {"a": {component: {block: [1.0, 0.5, 0.2, 0.0, 0.0, 0.0][step], "default": float(step < 2)}}, "b": 0.2}

    wanted = by_hand(pipe, run, strengths)
    by_block = {component: {block: steps([1.0, 0.5, 0.2, 0.0, 0.0]), "default": first(0.4)}}
    pipe.adapters.set({"a": by_block, "b": 0.2})
    assert torch.allclose(run(pipe), wanted, atol=1e-5)
    assert pipe.adapters.strengths["a"] is by_block


def test_adapters_take_turns(case):
    pipe, run = case
    for every in (1, 2):
        wanted = by_hand(pipe, run, lambda step, k=every: {"ab"[step // k % 2]: 0.8})
        pipe.adapters.set(switch({"a": 0.8, "b": 0.8}, every=every))
        assert torch.allclose(run(pipe), wanted, atol=1e-5)
    turns = switch(["x", "y", "z"], every=2)
    on = [[n for n, t in turns.items() if t.at(Moment(step / 9, step))] for step in range(9)]
    assert on == [["x"], ["x"], ["y"], ["y"], ["z"], ["z"], ["x"], ["x"], ["y"]]


def test_disabled_and_loaded_with_a_schedule(case):
    pipe, run = case
    base = run(pipe)
    pipe.adapters.set({"a": first(0.4)})
    with pipe.adapters.disable():
        assert torch.equal(run(pipe), base)
    wanted = run(pipe)
    pipe.load_adapter(pipe.adapters["a"], adapter_name="c", weight=first(0.4))
    pipe.adapters.set({"c": first(0.4)})
    assert torch.equal(run(pipe), wanted)
    assert not torch.equal(wanted, base)


def test_a_merge_refuses_a_schedule_and_says_why(case):
    pipe, run = case
    before = tiny.snapshot(denoiser(pipe))
    pipe.adapters.set({"a": first(0.4), "b": 0.5})
    live = run(pipe)
    with pytest.raises(MergeError, match=r"strength of 'a' .* follows the denoising"):
        pipe.adapters.merge()
    assert tiny.same_bits(denoiser(pipe), before)
    assert torch.equal(run(pipe), live)
    pipe.adapters.merge(["b"])
    assert torch.allclose(run(pipe), live, atol=1e-3)
    with pytest.raises(MergeError, match="follows the denoising"):
        pipe.adapters.set({"b": first(0.4)})
    assert pipe.adapters.strengths["b"] == 0.5
    pipe.adapters.unmerge()
    assert tiny.same_bits(denoiser(pipe), before)
    assert torch.equal(run(pipe), live)


@pytest.mark.parametrize("make", [EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler])
def test_other_schedulers(make, lycoris_files):
    """Every step of the scheduler is met in its place, whatever its timesteps look like."""
    pipe = diffadapt.enable(tiny.sd())
    pipe.set_progress_bar_config(disable=True)
    pipe.load_adapter(lycoris_files["lora"][0], adapter_name="a")
    pipe.scheduler = make(beta_end=0.02)  # put in place after diffadapt
    seen = []
    pipe.adapters.set({"a": curve(lambda p: seen.append(p) or 1.0)})
    run_sd(pipe)
    count = len(pipe.scheduler.timesteps)
    met = sorted(set(seen))
    assert met[0] == 0.0
    assert met == pytest.approx([i / count for i in range(count)]) or make is PNDMScheduler
    assert max(met) == pytest.approx((count - 1) / count)


def test_timesteps_as_pipelines_pass_them():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(20)
    for i, t in enumerate(scheduler.timesteps.tolist()):
        for given in (t, t / 1000, 1 - t / 1000, float(torch.tensor(t / 1000).bfloat16())):
            scheduler._step_index = i
            assert moment_of(scheduler, given) == Moment(i / 20, i)
    assert moment_of(None, 400.0).progress == pytest.approx(0.6)
    assert moment_of(None, 0.25).progress == pytest.approx(0.75)


def test_text_encoders_have_the_first_strength(tmp_path):
    pipe = diffadapt.enable(tiny.sd())
    g = torch.Generator().manual_seed(0)
    linear = next(p for p, m in pipe.text_encoder.named_modules() if p.endswith("fc1"))
    shape = pipe.text_encoder.get_submodule(linear).weight.shape
    file = {
        f"text_encoder.{linear}.lora_A.weight": torch.randn(2, shape[1], generator=g),
        f"text_encoder.{linear}.lora_B.weight": torch.randn(shape[0], 2, generator=g),
    }
    pipe.load_adapter(file, adapter_name="a", weight=first(0.4, 0.6))
    pipe.adapters.progress = 0.9
    assert set(pipe.adapters.values("a").values()) == {0.6}


def test_compiled_denoisers_follow_and_never_compile_again(lycoris_files):
    pipe = diffadapt.enable(tiny.sd())
    pipe.set_progress_bar_config(disable=True)
    for name in KINDS:
        pipe.load_adapter(tiny.thinned(lycoris_files[name][0]), adapter_name=name)
    pipe.adapters.set({"lora": points([(0, 1.0), (1, 0.0)]), "oft": first(0.4)})
    eager = run_sd(pipe)
    torch._dynamo.reset()
    counter = CompileCounter()
    pipe.unet = torch.compile(pipe.unet, backend=counter, fullgraph=True)
    pipe.adapters.set({"lora": points([(0, 1.0), (1, 0.0)]), "oft": first(0.4)})
    assert torch.allclose(run_sd(pipe), eager, atol=1e-4)
    pipe.adapters.set({"lora": first(0.2), "oft": 1.0})
    run_sd(pipe)
    assert counter.frame_count == 1
    assert not pipe.unet._orig_mod._forward_pre_hooks


def test_told_by_hand(lycoris_files):
    """What a model compiled in place needs."""
    pipe = diffadapt.enable(tiny.sd())
    pipe.load_adapter(lycoris_files["lora"][0], adapter_name="a", weight=points([(0, 1.0), (1, 0.0)]))
    pipe.scheduler.set_timesteps(10)
    for step in range(10):
        pipe.adapters.progress = step / 10
        assert all(value == pytest.approx(1 - step / 10) for value in pipe.adapters.values("a").values())
    pipe.adapters.set(switch({"a": 1.0}))
    pipe.adapters.progress = 0.3
    assert set(pipe.adapters.values("a").values()) == {1.0}


def test_json():
    for schedule in (window(0, 0.4, 2), points([(0, 1), (1, 0)]), steps([1, 0.5]), *switch(["a", "b"], 3).values()):
        assert from_json(copy.deepcopy(schedule.to_json())) == schedule
    assert from_json({"window": [0, 0.5]}) == first(0.5)
    with pytest.raises(StackError, match="is a function"):
        curve(abs).to_json()
    assert isinstance(0.5 * first(0.5), Schedule)
    assert (0.5 * first(0.5)).at(START) == 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: window(0.5, 0.5), lambda: window(-0.1, 1), lambda: window(0, 1.1), lambda: window(0, 1, float("nan")),
        lambda: points([]), lambda: points([(0.5, 1), (0.2, 1)]), lambda: points([(0, 1, 2)]), lambda: steps([]),
        lambda: steps([True]), lambda: switch([]), lambda: switch("ab"), lambda: switch(["a"], every=0),
        lambda: switch(["a"], every=1.5), lambda: from_json({"window": [0, 1], "velue": 1}), lambda: from_json({}),
        lambda: from_json({"turn": [2, 2]}), lambda: curve(lambda p: float("inf")).at(START),
        lambda: first("half"),
    ],
)  # fmt: skip
def test_what_is_no_schedule_is_an_error(make):
    with pytest.raises(StackError):
        make()
