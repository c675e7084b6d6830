"""Adapters on weights that the real libraries have quantised: live, merged where their own functions can, and back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import diffadapt
from diffadapt.inject.quantised import quantiser_of
from diffadapt.inject.quantiser import inner_tensors
from tests import quantised, tiny
from tests.quantised import packed_parts, same

KINDS = ("lora", "loha", "loha_dora", "lokr", "lokr_dora", "dora", "dora_in", "oft", "boft_rescaled", "glora", "ia3")
PACKED = [name for name in quantised.FORMATS if name != "layerwise float8"]
TO_Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def tolerance(name: str, dtype: torch.dtype) -> float:
    """Of an effect: what the format's own arithmetic leaves of it."""
    if dtype == torch.bfloat16:
        return 0.1
    if name in quantised.ROUNDED_INPUTS:
        return 0.05
    return 0.02 if name.startswith("bitsandbytes") else 2e-5  # on CPUs with AVX512-BF16 its 4-bit kernel is bfloat16


def change(seen, base):
    return seen.float() - base.float()


@pytest.mark.parametrize("name", quantised.FORMATS)
def test_live_is_the_adapter_on_the_dequantised_model(name, lycoris_files, tmp_path):
    model = quantised.unet(name, tmp_path)
    plain = quantised.dequantised(model)  # before the first forward: bitsandbytes reorders the bytes there
    for one in (model, plain):
        diffadapt.enable(one)
    base, plain_base = tiny.run(model), tiny.run(plain)
    for kind in KINDS:
        outputs = []
        for one in (model, plain):
            one.load_adapter(lycoris_files[kind][0], adapter_name=kind, weight=0.8)
            outputs.append(tiny.run(one))
            one.adapters.remove(kind)
        truth = change(outputs[1], plain_base)
        error = float((change(outputs[0], base) - truth).norm() / truth.norm())
        assert error < tolerance(name, torch.float32), f"{kind}: {error}"


@pytest.mark.parametrize("name", ["torchao int8", "torchao intx", "quanto int4", "gguf Q8_0", "bitsandbytes nf4"])
def test_live_in_bfloat16(name, lycoris_files, tmp_path):
    model = quantised.unet(name, tmp_path, torch.bfloat16)
    truth = quantised.dequantised(model, torch.bfloat16).float()
    for one in (model, truth):
        diffadapt.enable(one)
        for kind in ("lora", "dora", "oft", "loha"):
            one.load_adapter(lycoris_files[kind][0], adapter_name=kind, weight=0.5)
    seen, wanted = tiny.run(model, torch.bfloat16), tiny.run(truth)
    with truth.adapters.disable():
        assert tiny.relative(seen, wanted, tiny.run(truth)) < tolerance(name, torch.bfloat16)


@pytest.mark.parametrize("name", PACKED)
def test_merged_reports_what_survived_and_unmerges_to_the_bits(name, lycoris_files, tmp_path):
    model = quantised.unet(name, tmp_path)
    # Not its state dict: bitsandbytes reorders 4-bit weights in there, and scrambles those that have run on a CPU.
    keys, before = [n for n, _ in model.named_parameters()], packed_parts(model)
    diffadapt.enable(model)
    base = tiny.run(model)
    for kind in ("loha", "boft_rescaled", "dora_in"):
        model.load_adapter(lycoris_files[kind][0], adapter_name=kind)
    live = tiny.run(model)
    report = model.adapters.merge()
    assert report.remembered["packed"] > 0
    assert not same(packed_parts(model), before)
    assert all(type(m) is type(model.get_submodule(p)) for p, m in model.named_modules())
    merged = tiny.run(model)  # a forward in between, as bitsandbytes changes its own weights there
    linears = [v for k, v in report.layers.items() if quantiser_of(model.get_submodule(k.module).weight) is not None]
    assert linears
    assert all(0.5 < layer.survived < 1.2 for layer in linears)
    assert all(layer.loss > 0 for layer in linears)
    assert tiny.relative(merged, live, base) < max(0.5 if "int2" in name else 0.15, tolerance(name, torch.float32))
    model.adapters.unmerge()
    assert same(packed_parts(model), before)
    assert [n for n, _ in model.named_parameters()] == keys
    assert tiny.relative(tiny.run(model), live, base) < 1e-5
    again = model.adapters.merge()
    assert again.layers == report.layers
    model.adapters.set({"dora_in": 0.5})
    model.adapters.clear()
    assert same(packed_parts(model), before)
    assert torch.equal(tiny.run(model), base)


@pytest.mark.parametrize("name", PACKED)
def test_the_report_is_the_effect_of_the_librarys_own_weights(name, lycoris_files, tmp_path):
    model = quantised.unet(name, tmp_path)
    module, twin = model.get_submodule(TO_Q), quantised.dequantised(model)
    diffadapt.enable(model).load_adapter(lycoris_files["oft"][0], adapter_name="a")
    diffadapt.enable(twin).load_adapter(lycoris_files["oft"][0], adapter_name="a")
    base = quantised.library_weight(module).float()
    wanted = twin.get_submodule(TO_Q).weight.data
    assert torch.equal(wanted, base)
    twin.adapters.merge()
    report = model.adapters.merge()
    seen = next(layer for key, layer in report.layers.items() if key.module == TO_Q)
    intended, realised = wanted - base, quantised.library_weight(module).float() - base
    assert seen.survived == pytest.approx(float((realised * intended).sum() / intended.square().sum()), rel=1e-3)
    assert seen.loss == pytest.approx(float((realised - intended).norm() / intended.norm()), rel=1e-3)


def test_auto_leaves_live_what_the_grid_would_lose(lycoris_files, tmp_path):
    model = diffadapt.enable(quantised.unet("quanto int4", tmp_path))
    before = packed_parts(model)
    model.load_adapter(lycoris_files["lora"][0], adapter_name="a", weight=0.05)
    live, base = tiny.run(model), tiny.run(quantised.unet("quanto int4", tmp_path))
    assert "further from the wanted weight than without" in str(model.adapters.merge())
    report = model.adapters.merge(mode="auto")
    linears = {path for path, module in model.named_modules() if quantiser_of(getattr(module, "weight", None))}
    assert linears.isdisjoint(key.module for key in report.layers)
    assert "would be lost" in next(iter(report.live.values()))
    assert tiny.relative(tiny.run(model), live, base) < 1e-3
    model.adapters.unmerge()
    assert same(packed_parts(model), before)


def test_fused_projections_hold_the_numbers(lycoris_files, tmp_path):
    model = diffadapt.enable(quantised.unet("quanto int8", tmp_path))
    base = tiny.run(model)
    model.load_adapter(lycoris_files["oft"][0], adapter_name="a")
    model.fuse_qkv_projections()
    live = tiny.run(model)
    model.adapters.merge()
    assert tiny.relative(tiny.run(model), live, base) < 0.02
    model.adapters.unmerge()
    assert tiny.relative(tiny.run(model), live, base) < 1e-5


def k_quants(folder, in_features=256):
    """A UNet-like model with one GGUF Linear of a type that the gguf package only reads."""
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (64, 144), dtype=torch.uint8)  # Q4_K: two half-precision scales, then codes
    blocks[:, :4] = torch.full((64, 2), 2e-4, dtype=torch.float16).view(torch.uint8)
    linear = GGUFLinear(in_features, 64, bias=True, compute_dtype=torch.float32)
    linear.weight = GGUFParameter(blocks, quant_type=gguf.GGMLQuantizationType.Q4_K)
    return nn.ModuleDict({"to_q": linear}).requires_grad_(False), gguf


def adapter(in_features=256, out_features=64):
    """A DoRA of PEFT's layout for `to_q`."""
    torch.manual_seed(1)
    return {
        "to_q.lora_A.weight": torch.randn(4, in_features) * 0.1,
        "to_q.lora_B.weight": torch.randn(out_features, 4) * 0.1,
        "to_q.lora_magnitude_vector": torch.rand(out_features) + 0.5,
    }


def test_k_quants_run_live_and_refuse_to_merge(tmp_path):
    model, gguf = k_quants(tmp_path)
    x = torch.randn(3, 256)
    weight = torch.from_numpy(
        gguf.quants.dequantize(model["to_q"].weight.as_tensor().numpy(), gguf.GGMLQuantizationType.Q4_K)
    )
    plain = nn.ModuleDict({"to_q": nn.Linear(256, 64)})
    plain["to_q"].weight.data, plain["to_q"].bias.data = weight, model["to_q"].bias.data
    outputs = []
    for one in (model, plain):
        diffadapt.enable(one)
        one.load_adapter(adapter(), adapter_name="a")
        outputs.append(one["to_q"](x))
    assert tiny.relative(outputs[0], outputs[1], x @ weight.T) < 2e-3  # Diffusers dequantises in half precision
    bits = model["to_q"].weight.as_tensor().clone()
    with pytest.raises(diffadapt.MergeError, match=r"to_q: the weight is quantised by GGUF.*Q4_K.*Keep it live"):
        model.adapters.merge()
    assert not model.adapters.merged
    report = model.adapters.merge(mode="auto")
    assert not report.layers
    assert "Q4_K" in next(iter(report.live.values()))
    assert torch.equal(model["to_q"].weight.as_tensor(), bits)
    assert torch.equal(model["to_q"](x), outputs[0])


def test_a_weight_of_unknown_packing_takes_a_lora_and_refuses_the_rest():
    model = nn.ModuleDict({"to_q": nn.Linear(256, 64)}).requires_grad_(False)
    model["to_q"].weight = nn.Parameter(torch.zeros(64, 256, dtype=torch.int8), requires_grad=False)
    diffadapt.enable(model)
    dora = adapter()
    model.load_adapter({k: v for k, v in dora.items() if "magnitude" not in k}, adapter_name="lora")
    with pytest.raises(diffadapt.MergeError, match=r"int8\) in a way that is not known"):
        model.adapters.merge()
    model.load_adapter(dora, adapter_name="dora")
    with pytest.raises(diffadapt.MergeError, match="needs the base weight"):
        model.adapters._live.slots[next(iter(model.adapters._live.slots))].base_weight()


@pytest.mark.parametrize("name", ["torchao int8", "quanto int8", "gguf Q8_0", "bitsandbytes 8 bit", "bitsandbytes nf4"])
def test_a_merge_that_fails_half_way_leaves_everything_as_it_was(name, lycoris_files, tmp_path, monkeypatch):
    from diffadapt.inject import merging

    model = diffadapt.enable(quantised.unet(name, tmp_path))
    before = packed_parts(model)
    model.load_adapter(lycoris_files["oft"][0], adapter_name="a")
    live, calls, real = tiny.run(model), [], merging.merge_packed

    def failing(*args):
        calls.append(1)
        if len(calls) == 5:
            raise MemoryError("no room")
        return real(*args)

    monkeypatch.setattr(merging, "merge_packed", failing)
    with pytest.raises(MemoryError):
        model.adapters.merge()
    assert same(packed_parts(model), before)
    assert not model.adapters.merged
    assert torch.equal(tiny.run(model), live)
    model.adapters.merge()
    merged = packed_parts(model)
    calls.clear()
    with pytest.raises(MemoryError):
        model.adapters.set({"a": 0.3})
    assert same(packed_parts(model), merged)
    model.adapters.unmerge()
    assert same(packed_parts(model), before)


@pytest.mark.parametrize("name", ["torchao int8", "quanto int8", "gguf Q8_0"])
def test_a_library_that_fails_is_an_error_of_ours(name, lycoris_files, tmp_path, monkeypatch):
    model = diffadapt.enable(quantised.unet(name, tmp_path))
    before = packed_parts(model)
    model.load_adapter(lycoris_files["oft"][0], adapter_name="a")
    own = quantiser_of(model.get_submodule(TO_Q).weight)

    def broken(module, value, weight):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(own, "requantise", broken)
    with pytest.raises(diffadapt.MergeError, match=r"no kernel.*Keep the adapter live"):
        model.adapters.merge()
    assert same(packed_parts(model), before)
    monkeypatch.setattr(own, "requantise", lambda module, value, weight: weight)
    with pytest.raises(diffadapt.MergeError, match="another kind of weight"):
        model.adapters.merge()
    assert same(packed_parts(model), before)


def test_a_change_by_somebody_else_is_seen(lycoris_files, tmp_path):
    model = diffadapt.enable(quantised.unet("quanto int8", tmp_path))
    before = packed_parts(model)
    model.load_adapter(lycoris_files["lora"][0], adapter_name="a")
    model.adapters.merge()
    inner_tensors(model.get_submodule(TO_Q).weight)[0].view(-1)[3] += 1
    with pytest.raises(diffadapt.MergeError, match=r"to_q.*somebody else changed"):
        model.adapters.unmerge()
    model.get_submodule(TO_Q).weight = nn.Parameter(torch.zeros(64, 64))
    with pytest.raises(diffadapt.MergeError, match=r"to_q.*another weight"):
        model.adapters.unmerge()
    model.adapters.unmerge(force=True)
    assert same(packed_parts(model), before)


@pytest.mark.parametrize("name", ["torchao int8", "bitsandbytes 8 bit", "bitsandbytes nf4"])
def test_deepcopy_of_a_merged_model_unmerges(name, lycoris_files, tmp_path):
    """The others' weights cannot be copied, with or without adapters."""
    model = diffadapt.enable(quantised.unet(name, tmp_path))
    before = packed_parts(model)
    model.load_adapter(lycoris_files["oft"][0], adapter_name="a")
    model.adapters.merge()
    merged = packed_parts(model)
    other = copy.deepcopy(model)
    other.adapters.unmerge()
    assert same(packed_parts(other), before)
    assert same(packed_parts(model), merged)


def test_compiled_on_quantised_weights(lycoris_files, tmp_path):
    torch._dynamo.reset()
    model = diffadapt.enable(quantised.unet("gguf Q8_0", tmp_path))
    for kind in ("lora", "dora", "oft"):
        model.load_adapter(tiny.thinned(lycoris_files[kind][0]), adapter_name=kind, weight=0.5)
    with torch.no_grad():
        eager = tiny.run(model)
        compiled = torch.compile(model, backend="eager")(*tiny.inputs()).sample
    assert torch.allclose(eager, compiled, atol=1e-4)
