"""What else people do to transformers with adapters on them, for classes that stand for the others."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import nn
from torch._dynamo.testing import CompileCounter

from tests import tiny
from tests.inject.test_zoo import TOLERANCE, written
from tests.zoo import ZOO
from tests.zoo.specimen import flat
from tests.zoo.trainers import pipeline

NAMES = ["flux1", "sd35_medium", "qwen_image", "wan", "sana", "zimage"]
UNCOMPILED = {"zimage": "Diffusers' own class enters a context manager that torch.compile does not trace whole"}
KINDS = ("peft", "lokr", "diag-oft")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    for name in NAMES:
        for kind in KINDS:
            written(ZOO[name], kind, folder / f"{name}-{kind}.safetensors")
    return folder


def loaded(name: str, model: nn.Module, files, kinds=KINDS, **options) -> SimpleNamespace:
    pipe = pipeline(ZOO[name], model)
    for kind in kinds:
        pipe.load_adapter(files / f"{name}-{kind}.safetensors", adapter_name=kind, weight=0.5, **options)
    return pipe


@pytest.mark.parametrize("name", NAMES)
def test_deepcopy_is_independent(name, files):
    specimen, model = ZOO[name], ZOO[name].build()
    base = specimen.run(model)
    pipe = loaded(name, model, files)
    truth = specimen.run(model)
    other = copy.deepcopy(pipe)
    twin = other.components[specimen.component]
    assert torch.equal(specimen.run(twin), truth)
    other.adapters.set({})
    assert torch.equal(specimen.run(twin), base)
    assert torch.equal(specimen.run(model), truth)


@pytest.mark.parametrize("name", NAMES)
def test_to_bfloat16(name, files):
    specimen, model = ZOO[name], ZOO[name].build().to(torch.bfloat16)
    base, before = specimen.run(model, torch.bfloat16), tiny.snapshot(model)
    pipe = loaded(name, model, files)
    live = specimen.run(model, torch.bfloat16)
    assert live.dtype == torch.bfloat16
    pipe.adapters.merge()
    # Some twenty layers round their outputs, or their weights, to bfloat16 in both ways of computing.
    assert tiny.relative(specimen.run(model, torch.bfloat16), live, base) < 20 * torch.finfo(torch.bfloat16).eps
    pipe.adapters.unmerge()
    assert tiny.same_bits(model, before)
    model.to(torch.float32)  # the packs follow
    pipe.adapters.merge()
    assert specimen.run(model).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_layerwise_casting(name, files):
    specimen, model, cast = ZOO[name], ZOO[name].build(), ZOO[name].build()
    base = specimen.run(model)
    loaded(name, model, files)
    change = specimen.run(model) - base
    cast.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    plain = specimen.run(cast)
    loaded(name, cast, files)
    # Storing the base in float8 moves the output by some per cent; the adapters' own effect stays what it was.
    assert float((specimen.run(cast) - plain - change).norm() / change.norm()) < 0.2


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
@pytest.mark.parametrize("name", NAMES)
def test_group_offloading(name, kind, when, files):
    """Both devices are the CPU, which is all there is: what is tested is that the hooks stand each other."""
    specimen, model, plain = ZOO[name], ZOO[name].build(), ZOO[name].build()
    base = specimen.run(plain)
    loaded(name, plain, files)
    if when == "after":
        loaded(name, model, files)
    apply_group_offloading(
        model, onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type=kind,
        num_blocks_per_group=1 if kind == "block_level" else None,
    )  # fmt: skip
    if when == "before":
        loaded(name, model, files)
    assert tiny.relative(specimen.run(model), specimen.run(plain), base) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_gives_the_same_gradients(name, files):
    specimen, gradients = ZOO[name], []
    for checkpointing in (False, True):
        model = specimen.build().train()
        pipe = loaded(name, model, files, ("peft", "diag-oft"), trainable=True)
        if checkpointing:
            model.enable_gradient_checkpointing()
        flat(model(**specimen.arguments())).square().sum().backward()
        gradients.append({n: p.grad for n, p in enumerate(pipe.adapters.parameters())})
    plain, again = ({n: g for n, g in found.items() if g is not None} for found in gradients)
    # Qwen-Image's last block computes a text stream that nobody reads.
    assert len(plain) > 0.9 * len(gradients[0])
    assert plain.keys() == again.keys()
    assert all(torch.allclose(plain[n], again[n], rtol=1e-4, atol=1e-6) for n in plain)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in UNCOMPILED])
@torch.no_grad()
def test_compiles_whole_and_never_again_for_a_change_of_strength(name, files):
    specimen, model = ZOO[name], ZOO[name].build()
    base = specimen.run(model)
    pipe = loaded(name, model, files)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for strengths in (dict.fromkeys(KINDS, 0.5), {"lokr": 0.3}, {"peft": {specimen.component: 0.4}, "diag-oft": 1.0}):
        pipe.adapters.set(strengths)
        assert tiny.relative(flat(compiled(**specimen.arguments())), specimen.run(model), base) < TOLERANCE
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", UNCOMPILED)
@torch.no_grad()
def test_classes_that_do_not_compile_whole_do_so_in_parts(name, files):
    specimen, model = ZOO[name], ZOO[name].build()
    base = specimen.run(model)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(specimen.build(), backend="eager", fullgraph=True)(**specimen.arguments())
    torch._dynamo.reset()
    loaded(name, model, files)
    compiled = torch.compile(model, backend="eager")
    assert tiny.relative(flat(compiled(**specimen.arguments())), specimen.run(model), base) < TOLERANCE
