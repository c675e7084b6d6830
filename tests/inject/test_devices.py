"""Adapters on an accelerator: the same change as on the CPU, the very bits back, and every way of offloading.

Where there is none, the same tests run on the CPU; only those of Diffusers' own offloading need one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.hooks import apply_group_offloading

import diffadapt
from diffadapt import shapes
from tests import tiny
from tests.inject.test_zoo import written
from tests.zoo import ZOO
from tests.zoo.trainers import pipeline

FOUND = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
ACCELERATORS = [] if FOUND is None else [FOUND.type]
DEVICES = ["cpu", *ACCELERATORS]
STACK = ("lora", "lokr", "oft", "boft", "dora")
NAMES = ["flux1", "sd35_medium", "qwen_image", "wan", "zimage"]


@pytest.fixture(autouse=True)
def exact():
    """Full float32: by default CUDA's convolutions round their inputs to tf32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@torch.no_grad()
def run(unet, dtype=torch.float32):
    return unet(*(part.to(unet.device) for part in tiny.inputs(dtype))).sample.cpu()


def stacked(lycoris_files, device="cpu", dtype=torch.float32, names=STACK):
    pipe = diffadapt.enable(tiny.sd())
    pipe.to(device, dtype)
    for name in names:
        pipe.load_adapter(lycoris_files[name][0], adapter_name=name, weight=0.6)
    return pipe


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", tiny.LYCORIS)
def test_every_variant_equals_its_trainer(name, device, lycoris_files):
    file, truth = lycoris_files[name]
    pipe = diffadapt.enable(tiny.sd())
    pipe.to(device)
    base, before = run(pipe.unet), tiny.snapshot(pipe.unet)
    pipe.load_adapter(file, adapter_name="a")
    # Some twenty layers in float32, whose sums run in another order than the trainer's on the CPU.
    assert tiny.relative(run(pipe.unet), truth, base) < 1e-4
    pipe.adapters.merge()
    assert tiny.relative(run(pipe.unet), truth, base) < 1e-4
    pipe.adapters.unmerge()
    assert tiny.same_bits(pipe.unet, before)
    assert {p.device.type for p in pipe.unet.parameters()} == {device}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("remember", ["copy", "code"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_stack_comes_back_to_the_bit(device, remember, dtype, lycoris_files):
    pipe = stacked(lycoris_files, device, dtype)
    before, live = tiny.snapshot(pipe.unet), run(pipe.unet, dtype)
    for strengths in (dict.fromkeys(STACK, 0.6), {"oft": 1.0, "lora": -0.5}, dict.fromkeys(STACK, 0.6)):
        pipe.adapters.set(strengths)
        pipe.adapters.merge(remember=remember)
    with pipe.adapters.disable():
        base = run(pipe.unet, dtype)
    # Some twenty layers round their outputs, or their weights, to the dtype in both ways of computing.
    assert tiny.relative(run(pipe.unet, dtype), live, base) < max(1e-4, 40 * torch.finfo(dtype).eps)
    pipe.adapters.unmerge()
    assert tiny.same_bits(pipe.unet, before)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_moving_the_pipeline_takes_the_adapters_along(device, merged, lycoris_files):
    pipe, wanted = stacked(lycoris_files), run(stacked(lycoris_files).unet)
    before, base = tiny.snapshot(pipe.unet), run(tiny.unet())
    for place in (device, "cpu", device):
        if merged:
            pipe.adapters.merge()
        pipe.to(place)
        assert tiny.relative(run(pipe.unet), wanted, base) < 1e-4
    pipe.to("cpu")
    pipe.adapters.unmerge()
    assert tiny.same_bits(pipe.unet, before)
    assert tiny.relative(run(pipe.unet), wanted, base) < 1e-4


def offload(pipe, way: str, device: str) -> None:
    """Turn on one of Diffusers' ways of keeping weights in the CPU's memory."""
    if way == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif way == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        apply_group_offloading(
            pipe.unet, onload_device=torch.device(device), offload_device=torch.device("cpu"),
            offload_type=way.removesuffix("_stream"), use_stream=way.endswith("_stream"),
            num_blocks_per_group=1 if way.startswith("block") else None,
        )  # fmt: skip


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("way", ["model", "sequential", "leaf_level", "block_level", "leaf_level_stream"])
@pytest.mark.parametrize("device", ACCELERATORS)
@torch.no_grad()
def test_offloaded_weights(device, way, when, lycoris_files):
    base, wanted = run(tiny.unet()), run(stacked(lycoris_files).unet)
    pipe = diffadapt.enable(tiny.sd())
    if when == "before":
        offload(pipe, way, device)
    for name in STACK:
        pipe.load_adapter(lycoris_files[name][0], adapter_name=name, weight=0.6)
    if when == "after":
        offload(pipe, way, device)
    inputs = [part.to(device) for part in tiny.inputs()]
    for _ in range(2):
        assert tiny.relative(pipe.unet(*inputs).sample.cpu(), wanted, base) < 1e-4
    pipe.adapters.set({"lora": 0.6})
    one = pipe.unet(*inputs).sample.cpu()
    pipe.adapters.clear()
    assert tiny.relative(pipe.unet(*inputs).sample.cpu(), base, one) < 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", DEVICES)
@torch.no_grad()
def test_transformers(device, name, tmp_path):
    specimen, model = ZOO[name], ZOO[name].build()
    base, kinds = specimen.run(model), ("peft", "lokr", "diag-oft")
    for kind in kinds:
        written(specimen, kind, tmp_path / f"{kind}.safetensors")
    pipe, outputs = pipeline(specimen, model), []
    for kind in kinds:
        pipe.load_adapter(tmp_path / f"{kind}.safetensors", adapter_name=kind, weight=0.5)
    wanted = specimen.run(model)
    before = {key: value.to(device) for key, value in tiny.snapshot(model).items()}
    model.to(device)
    for merged in (False, True):
        if merged:
            pipe.adapters.merge()
        outputs.append(specimen.run(model, device=device).cpu())
    assert all(tiny.relative(seen, wanted, base) < 1e-4 for seen in outputs)
    pipe.adapters.unmerge()
    assert tiny.same_bits(model, before)


@pytest.mark.parametrize("device", DEVICES)
def test_training(device, lycoris_files):
    gradients = []
    for place in ("cpu", device):
        pipe = diffadapt.enable(tiny.sd())
        pipe.to(place)
        for name in ("lora", "oft", "lokr"):
            pipe.load_adapter(lycoris_files[name][0], adapter_name=name, trainable=True)
        inputs = [part.to(place) for part in tiny.inputs()]
        pipe.unet(*inputs).sample.square().sum().backward()
        gradients.append([p.grad for p in pipe.adapters.parameters()])
    assert {g.device.type for g in gradients[1]} == {device}
    pairs = zip(*gradients, strict=True)
    assert all(torch.allclose(a, b.cpu(), rtol=1e-3, atol=1e-5 * float(a.abs().max())) for a, b in pairs)


@pytest.mark.parametrize("device", ACCELERATORS)
@torch.no_grad()
def test_compiled(device, lycoris_files):
    pipe = stacked(lycoris_files, device)
    inputs = [part.to(device) for part in tiny.inputs()]
    with pipe.adapters.disable():
        base = pipe.unet(*inputs).sample
    compiled = torch.compile(pipe.unet)
    for strengths in (dict.fromkeys(STACK, 0.6), {"oft": 1.0, "lora": -0.5}):
        pipe.adapters.set(strengths)
        wanted = pipe.unet(*inputs).sample
        with torch.compiler.set_stance("fail_on_recompile" if "boft" not in strengths else "default"):
            assert tiny.relative(compiled(*inputs).sample, wanted, base) < 1e-4


@pytest.mark.parametrize("device", ACCELERATORS)
@pytest.mark.parametrize("name", ["unet", "dit"])
def test_pictures(name, device):
    """The same picture as on the CPU, with two adapters."""
    pictures, pipe = [], diffadapt.enable(shapes.load(name))
    for sample in shapes.adapters(name)[:2]:
        pipe.load_adapter(sample.path, adapter_name=sample.name, weight=0.7)
    for place in ("cpu", device):
        pipe.to(place)
        pictures.append(np.asarray(shapes.picture(pipe, "a red circle on a blue background", seed=1), np.float32))
    assert np.abs(pictures[0] - pictures[1]).mean() < 1.0  # of 255; twelve steps pile up what rounds differently
