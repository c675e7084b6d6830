"""Whole pipelines against the trainer's own forward: live, merged, any strength, any stack."""

from __future__ import annotations

import itertools

import pytest
import torch

import diffadapt
from tests import tiny

# The formulas are the same; what remains is the rounding of a whole float32 UNet, run in another order of operations.
TOLERANCE = 2e-5


@pytest.mark.parametrize("name", tiny.LYCORIS)
def test_live_and_merged_equal_the_trainers_forward(name, lycoris_files):
    path, truth = lycoris_files[name]
    pipe = diffadapt.enable(tiny.sd())
    base, before = tiny.run(pipe.unet), tiny.snapshot(pipe.unet)
    report = pipe.load_adapter(path, adapter_name="a")
    assert report.complete
    assert tiny.relative(tiny.run(pipe.unet), truth, base) < TOLERANCE
    pipe.adapters.merge()
    assert tiny.relative(tiny.run(pipe.unet), truth, base) < TOLERANCE
    pipe.adapters.unmerge()
    assert tiny.same_bits(pipe.unet, before)
    pipe.adapters.remove("a")
    assert torch.equal(tiny.run(pipe.unet), base)


@pytest.mark.parametrize("name", tiny.LYCORIS)
def test_strength_is_linear_in_the_weights(name, lycoris_files):
    pipe = diffadapt.enable(tiny.sd())
    before = tiny.snapshot(pipe.unet)
    pipe.load_adapter(lycoris_files[name][0], adapter_name="a")

    def change(strength):
        pipe.adapters.set({"a": strength})
        pipe.adapters.merge()
        now = tiny.snapshot(pipe.unet)
        pipe.adapters.unmerge()
        return torch.cat([(now[k] - before[k]).flatten() for k in before])

    full = change(1.0)
    for strength in (0.5, -0.7, 2.0):
        assert float((change(strength) - strength * full).norm() / full.norm()) < 1e-5


@pytest.mark.parametrize(
    "pair", itertools.combinations(["dora", "dora_in", "oft", "boft_rescaled", "glora", "lokr_dora", "ia3", "loha"], 2)
)
def test_live_equals_merged_for_any_stack(pair, lycoris_files):
    pipe = diffadapt.enable(tiny.sd())
    base = tiny.run(pipe.unet)
    for name in pair:
        pipe.load_adapter(lycoris_files[name][0], adapter_name=name)
    pipe.adapters.set(dict(zip(pair, (0.8, -0.4), strict=True)))
    live = tiny.run(pipe.unet)
    pipe.adapters.merge()
    assert tiny.relative(live, tiny.run(pipe.unet), base) < TOLERANCE
    pipe.adapters.merge([pair[0]])  # one in the weights, the other live beside it
    assert tiny.relative(tiny.run(pipe.unet), live, base) < TOLERANCE


def test_two_doras_on_one_layer(tmp_path):
    pipe = diffadapt.enable(tiny.sd())
    base = tiny.run(pipe.unet)
    for seed in (1, 2):
        tiny.write_lycoris(tiny.unet(), "dora", tmp_path / f"{seed}.safetensors", seed)
        pipe.load_adapter(tmp_path / f"{seed}.safetensors", adapter_name=f"dora{seed}", weight=0.6)
    live = tiny.run(pipe.unet)
    pipe.adapters.merge()
    assert tiny.relative(live, tiny.run(pipe.unet), base) < TOLERANCE


def test_order_of_loading_does_not_matter(lycoris_files):
    names = ["lora", "dora", "oft", "lokr"]
    outputs = []
    for order in (names, names[::-1]):
        pipe = diffadapt.enable(tiny.sd())
        for name in order:
            pipe.load_adapter(lycoris_files[name][0], adapter_name=name, weight=0.5)
        outputs.append(tiny.run(pipe.unet))
    assert tiny.relative(outputs[0], outputs[1], tiny.run(tiny.unet())) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_live_agrees_with_merged_to_rounding(dtype, lycoris_files):
    pipe = diffadapt.enable(tiny.sd())
    pipe.unet.to(dtype)
    base = tiny.run(pipe.unet, dtype)
    for name in ("lora", "lokr", "oft"):
        pipe.load_adapter(lycoris_files[name][0], adapter_name=name)
    live = tiny.run(pipe.unet, dtype)
    pipe.adapters.merge()
    # Each of some thirty layers rounds its output to `dtype` in both ways of computing.
    assert tiny.relative(live, tiny.run(pipe.unet, dtype), base) < 60 * torch.finfo(dtype).eps
