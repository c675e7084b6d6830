"""Hooks change what a model computes, and nothing else about it."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from torch import nn
from torch._dynamo.testing import CompileCounter

import diffadapt
from tests import tiny

NAMES = ("lora", "lokr", "oft", "loha", "glora", "dora_in", "boft_rescaled")


@pytest.fixture
def pipe(lycoris_files):
    return loaded(lycoris_files)


def loaded(lycoris_files, names=NAMES):
    pipe = diffadapt.enable(tiny.sd())
    for name in names:
        pipe.load_adapter(lycoris_files[name][0], adapter_name=name, weight=0.5)
    return pipe


@pytest.fixture
def few(lycoris_files):
    """A pipeline to compile: the same adapters on fewer modules."""
    return loaded({name: (tiny.thinned(lycoris_files[name][0]),) for name in NAMES})


def close(a, b, tolerance=2e-5):
    return tiny.relative(a, b, tiny.run(tiny.unet())) < tolerance


def test_keys_types_and_parameters_stay(lycoris_files):
    plain = tiny.unet()
    pipe = loaded(lycoris_files)
    assert list(pipe.unet.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in pipe.unet.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert [n for n, _ in pipe.unet.named_buffers()] == [n for n, _ in plain.named_buffers()]
    assert [type(m) for m in pipe.unet.modules()] == [type(m) for m in plain.modules()]
    tiny.run(pipe.unet)
    assert list(pipe.unet.state_dict()) == list(plain.state_dict())


def test_removing_all_leaves_no_hook(pipe):
    pipe.adapters.clear()
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in pipe.unet.modules())
    assert torch.equal(tiny.run(pipe.unet), tiny.run(tiny.unet()))


def test_deepcopy_is_independent(pipe):
    before = tiny.run(pipe.unet)
    other = copy.deepcopy(pipe)
    assert torch.equal(tiny.run(other.unet), before)
    other.adapters.set({"lora": 1.0})
    assert not torch.equal(tiny.run(other.unet), before)
    assert torch.equal(tiny.run(pipe.unet), before)
    other.adapters.merge()
    assert torch.equal(tiny.run(pipe.unet), before)
    del pipe
    other.adapters.unmerge()
    other.load_adapter(other.adapters["oft"], adapter_name="again")


def test_deepcopy_of_a_merged_pipeline_unmerges(pipe):
    before = tiny.snapshot(tiny.unet())
    pipe.adapters.merge()
    other = copy.deepcopy(pipe)
    other.adapters.unmerge()
    assert tiny.same_bits(other.unet, before)
    assert not tiny.same_bits(pipe.unet, before)


def test_to_dtype_moves_the_adapters_with_the_model(pipe):
    truth = tiny.run(pipe.unet)
    pipe.unet.to(torch.float64)
    assert close(tiny.run(pipe.unet, torch.float64), truth, 1e-4)
    pipe.unet.to(torch.float32)
    assert close(tiny.run(pipe.unet), truth)
    pipe.unet.to(torch.bfloat16)
    assert tiny.run(pipe.unet, torch.bfloat16).dtype == torch.bfloat16


def test_packs_follow_the_activations_to_another_device(lycoris_files):
    """ "meta" stands in for a device that this machine may not have."""
    pipe = loaded(lycoris_files, ("lora",))
    tiny.run(pipe.unet)
    linear = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    linear.to("meta")
    assert linear(torch.empty(1, 5, 64, device="meta")).device.type == "meta"


@pytest.mark.parametrize("fullgraph", [True])
def test_compiles_whole_and_never_again_for_a_change_of_strength(few, fullgraph):
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(few.unet, backend=counter, fullgraph=fullgraph)
    with torch.no_grad():
        for strengths in (
            dict.fromkeys(NAMES, 1.0),
            {"lora": 0.3, "oft": -0.5},
            {"boft_rescaled": 1.0},
            {"glora": 0.2, "dora_in": 1.0},
            {"lokr": {"unet": {"down": 0.2, "up": 1.0}}},
            {},
        ):
            few.adapters.set(strengths)
            assert close(compiled(*tiny.inputs()).sample, tiny.run(few.unet), 1e-4) or not strengths
    assert counter.frame_count == 1


def test_compiled_merge_and_unmerge(few):
    torch._dynamo.reset()
    compiled = torch.compile(few.unet, backend="eager", fullgraph=True)
    with torch.no_grad():
        live = compiled(*tiny.inputs()).sample
        few.adapters.merge()
        merged = compiled(*tiny.inputs()).sample
        few.adapters.unmerge()
        assert close(live, merged)
        assert close(compiled(*tiny.inputs()).sample, live)


def test_gradient_checkpointing_gives_the_same_gradients(lycoris_files):
    gradients = []
    for checkpointing in (False, True):
        pipe = diffadapt.enable(tiny.sd())
        pipe.unet.requires_grad_(False)
        for name in ("lora", "oft"):
            pipe.load_adapter(lycoris_files[name][0], adapter_name=name, trainable=True)
        if checkpointing:
            pipe.unet.train()
            pipe.unet.enable_gradient_checkpointing()
        pipe.unet(*tiny.inputs()).sample.square().sum().backward()
        gradients.append([p.grad for p in pipe.adapters.parameters()])
    assert all(g is not None and g.abs().sum() > 0 for g in gradients[0])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("when", ["before", "after"])
def test_sequential_offload(when, lycoris_files):
    from accelerate import cpu_offload

    truth = tiny.run(loaded(lycoris_files).unet)
    pipe = diffadapt.enable(tiny.sd())
    if when == "before":
        cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    for name in NAMES:
        pipe.load_adapter(lycoris_files[name][0], adapter_name=name, weight=0.5)
    if when == "after":
        cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    assert pipe.unet.conv_in.weight.device.type == "meta"
    assert close(tiny.run(pipe.unet), truth)
    with pytest.raises(diffadapt.MergeError, match="offloaded"):
        pipe.adapters.merge()
    assert close(tiny.run(pipe.unet), truth)


@pytest.mark.parametrize("when", ["before", "after"])
def test_layerwise_casting(when, lycoris_files):
    outputs = []
    for adapters in (False, True):
        pipe = diffadapt.enable(tiny.sd())
        if when == "after" and adapters:
            for name in NAMES:
                pipe.load_adapter(lycoris_files[name][0], adapter_name=name, weight=0.5)
        apply_layerwise_casting(pipe.unet, storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        if when == "before" and adapters:
            for name in NAMES:
                pipe.load_adapter(lycoris_files[name][0], adapter_name=name, weight=0.5)
        outputs.append(tiny.run(pipe.unet))
    plain, changed = outputs
    truth, base = tiny.run(loaded(lycoris_files).unet), tiny.run(tiny.unet())
    # Storing the base in float8 moves the output by a few per cent; the adapters' own effect stays what it was.
    assert float(((changed - plain) - (truth - base)).norm() / (truth - base).norm()) < 0.2


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offloading(when, kind, lycoris_files):
    truth = tiny.run(loaded(lycoris_files).unet)
    pipe = diffadapt.enable(tiny.sd())

    def offload():
        apply_group_offloading(
            pipe.unet, onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type=kind,
            num_blocks_per_group=1 if kind == "block_level" else None,
        )  # fmt: skip

    if when == "before":
        offload()
    for name in NAMES:
        pipe.load_adapter(lycoris_files[name][0], adapter_name=name, weight=0.5)
    if when == "after":
        offload()
    assert close(tiny.run(pipe.unet), truth)


@pytest.mark.parametrize("merged", [False, True])
def test_fuse_qkv_projections_and_back(merged, lycoris_files):
    pipe = loaded(lycoris_files)
    truth, base = tiny.run(pipe.unet), tiny.snapshot(tiny.unet())
    if merged:
        pipe.adapters.merge()
    pipe.unet.fuse_qkv_projections()
    assert any(hasattr(m, "to_qkv") for m in pipe.unet.modules())
    assert close(tiny.run(pipe.unet), truth)
    pipe.adapters.merge()
    assert close(tiny.run(pipe.unet), truth)
    pipe.adapters.unmerge()
    assert close(tiny.run(pipe.unet), truth)
    pipe.adapters.set({"lora": 1.0})
    one = tiny.run(pipe.unet)
    pipe.unet.unfuse_qkv_projections()
    assert close(tiny.run(pipe.unet), one)
    assert all(torch.equal(pipe.unet.state_dict()[k], v) for k, v in base.items())


def test_adapters_loaded_on_fused_projections(lycoris_files):
    truth = tiny.run(loaded(lycoris_files).unet)
    pipe = diffadapt.enable(tiny.sd())
    pipe.unet.fuse_qkv_projections()
    for name in NAMES:
        pipe.load_adapter(lycoris_files[name][0], adapter_name=name, weight=0.5)
    assert close(tiny.run(pipe.unet), truth)


@pytest.mark.parametrize("first", ["peft", "diffadapt"])
def test_beside_peft_on_the_same_modules(first, lycoris_files):
    from peft import LoraConfig

    config = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v", "conv1"], init_lora_weights=False)
    plain = tiny.sd()
    base = tiny.run(plain.unet)
    torch.manual_seed(3)
    plain.unet.add_adapter(config)
    theirs = tiny.run(plain.unet)
    pipe = diffadapt.enable(tiny.sd())
    if first == "diffadapt":
        pipe.load_adapter(lycoris_files["lora"][0], adapter_name="a")
    torch.manual_seed(3)
    pipe.unet.add_adapter(config)
    if first == "peft":
        pipe.load_adapter(lycoris_files["lora"][0], adapter_name="a")
    both = tiny.run(pipe.unet)
    assert not close(both, theirs, 0.1)
    with pipe.adapters.disable():
        assert torch.equal(tiny.run(pipe.unet), theirs)
    pipe.unet.disable_adapters()
    assert tiny.relative(tiny.run(pipe.unet), lycoris_files["lora"][1], base) < 2e-5
    pipe.unet.enable_adapters()
    pipe.adapters.remove("a")
    assert torch.equal(tiny.run(pipe.unet), theirs)


def test_attention_processors_of_every_kind(lycoris_files):
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor

    pipe = loaded(lycoris_files)
    truth = tiny.run(pipe.unet)
    for processor in (AttnProcessor(), AttnProcessor2_0(), SlicedAttnProcessor(2)):
        pipe.unet.set_attn_processor(processor)
        assert close(tiny.run(pipe.unet), truth, 1e-4)


def test_channels_last_and_batches(pipe):
    truth = tiny.run(pipe.unet)
    pipe.unet.to(memory_format=torch.channels_last)
    assert close(tiny.run(pipe.unet), truth, 1e-4)
    before = tiny.snapshot(tiny.unet())
    pipe.adapters.merge()
    assert close(tiny.run(pipe.unet), truth, 1e-4)
    pipe.adapters.unmerge()
    assert all(torch.equal(pipe.unet.state_dict()[k], v) for k, v in before.items())


def test_a_bare_model(lycoris_files):
    model = diffadapt.enable(tiny.unet())
    assert diffadapt.enable(model) is model
    base = tiny.run(model)
    model.load_adapter(lycoris_files["lora"][0], adapter_name="a")
    assert tiny.relative(tiny.run(model), lycoris_files["lora"][1], base) < 2e-5
    assert isinstance(copy.deepcopy(model), nn.Module)


def test_autocast(lycoris_files):
    pipe = loaded(lycoris_files, ("lora", "oft", "lokr"))
    truth = tiny.run(pipe.unet)
    with torch.autocast("cpu", torch.bfloat16):
        assert close(tiny.run(pipe.unet), truth, 0.2)
