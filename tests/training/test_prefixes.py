"""Prefix tuning on language models: PEFT's folders read, trained and written, held against PEFT's own hidden states."""

from __future__ import annotations

import dataclasses
import json
import shutil

import accelerate
import peft
import pytest
import torch
from safetensors.torch import load_file

import diffadapt
from diffadapt.adapter import Adapter
from diffadapt.training.prefixes import new_prefix
from tests import tiny
from tests.training import text

IDS = torch.randint(3, 380, (2, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])


def states(model, **options):
    """All hidden states of the prompt, padding included, in one tensor."""
    given = {"input_ids": IDS, "attention_mask": MASK, "output_hidden_states": True, **options}
    return torch.stack(model(**given).hidden_states)


@torch.no_grad()
def run(model, **options):
    return states(model, **options)


def write(name, folder, count=3, **options):
    """A PEFT folder with a random prefix for a language model, and the hidden states of PEFT's own forward."""
    config = peft.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=count, **options)
    torch.manual_seed(5)
    wrapped = peft.get_peft_model(text.language_model(name), config).eval()
    truth = run(wrapped)
    wrapped.save_pretrained(str(folder))
    return truth


def adapter(model, seed=1, count=3, **options):
    prefix = new_prefix(model, "text_encoder", count, torch.Generator().manual_seed(seed), **options)
    return Adapter("p", "peft", {}, prefixes={"text_encoder": prefix})


@pytest.mark.parametrize("name", list(text.LANGUAGE_MODELS))
def test_hidden_states_are_those_of_peft(name, tmp_path):
    truth = write(name, tmp_path / "prefix")
    model = diffadapt.enable(text.language_model(name))
    before, base = tiny.snapshot(model), run(model)
    report = model.load_adapter(tmp_path / "prefix", adapter_name="p", strict=True)
    assert report.prefixes == ("text_encoder (3 virtual tokens)",)
    assert "prefixes: text_encoder (3 virtual tokens)" in str(report)
    assert report.complete
    for options in ({}, {"use_cache": False}, {"use_cache": True}):
        assert tiny.relative(run(model, **options), truth, base) < 1e-6
    assert truth.shape == base.shape
    model.adapters.set({"p": 0.0})
    assert torch.equal(run(model), base)
    model.adapters.set({"p": -0.3})  # on or off: there is no in between
    assert tiny.relative(run(model), truth, base) < 1e-6
    model.adapters.remove("p")
    assert torch.equal(run(model), base)
    assert tiny.same_bits(model, before)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "qwen2_5_vl"])
def test_a_trained_prefix_is_peft_s_again(name, tmp_path):
    """The gradient is that of PEFT's own training; 50 steps, a folder, and PEFT reads what we have learnt."""
    model = diffadapt.enable(text.language_model(name))
    before, base = tiny.snapshot(model), run(model)
    goal = base + 0.3 * torch.randn(base.shape, generator=torch.Generator().manual_seed(2))
    fresh = adapter(model)
    model.load_adapter(fresh, adapter_name="p", trainable=True)
    (values,) = model.adapters.parameters("p")
    assert values.dtype == torch.float32
    config = peft.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3)
    wrapped = peft.get_peft_model(text.language_model(name), config).eval()
    theirs = wrapped.prompt_encoder["default"].embedding.weight
    theirs.data.copy_(fresh.prefixes["text_encoder"].values)
    optimizer, losses = torch.optim.Adam([values], lr=0.03), []
    for step in range(50):
        loss = (states(model) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            (states(wrapped) - goal).square().mean().backward()
            torch.testing.assert_close(values.grad, theirs.grad, rtol=1e-4, atol=1e-8)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]
    assert losses[-1] < losses[10] < losses[0]
    assert tiny.same_bits(model, before)
    trained = run(model)
    folder = model.adapters.save("p", tmp_path / "trained")
    again = peft.PeftModel.from_pretrained(text.language_model(name), str(folder)).eval()
    assert tiny.relative(run(again), trained, base) < 1e-6
    resumed = diffadapt.enable(text.language_model(name))
    resumed.load_adapter(folder, adapter_name="q", trainable=True)
    assert torch.equal(run(resumed), trained)
    assert torch.equal(resumed.adapters.parameters("q")[0], values)


def test_a_prefix_behind_a_projection_is_saved_projected(tmp_path):
    truth = write("qwen3", tmp_path / "p", prefix_projection=True, encoder_hidden_size=12)
    model = diffadapt.enable(text.language_model("qwen3"))
    base = run(model)
    model.load_adapter(tmp_path / "p", adapter_name="p")
    assert tiny.relative(run(model), truth, base) < 1e-6


def test_the_folder_keeps_what_peft_said_of_it(tmp_path):
    write("llama", tmp_path / "p")
    config = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
    config |= {"task_type": "CAUSAL_LM", "base_model_name_or_path": "some/llama"}
    (tmp_path / "p" / "adapter_config.json").write_text(json.dumps(config))
    read = diffadapt.read_adapter(tmp_path / "p")
    read.save(tmp_path / "q")
    saved = json.loads((tmp_path / "q" / "adapter_config.json").read_text())
    assert {key: config[key] for key in saved} == saved
    files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in "pq"]
    assert torch.equal(files[0]["prompt_embeddings"], files[1]["prompt_embeddings"])
    explained = read.explain()
    assert explained.to_dict()["prefixes"] == ["text_encoder"]
    assert "prefixes      text_encoder" in str(explained)


def test_in_a_pipeline_for_half_precision_and_beside_another():
    pipe = diffadapt.enable(text.zimage())
    pipe.text_encoder.to(torch.bfloat16)
    base = text.encoded(pipe, "a red circle")
    pipe.load_adapter(adapter(pipe, 1), adapter_name="one", trainable=True)
    one = text.encoded(pipe, "a red circle")
    assert one.dtype == torch.bfloat16
    assert one.shape == base.shape
    assert not torch.equal(one, base)
    one.float().square().sum().backward()
    (values,) = pipe.adapters.parameters("one")
    assert values.grad.dtype == torch.float32
    assert float(values.grad.abs().max()) > 0
    pipe.load_adapter(adapter(pipe, 2), adapter_name="two")
    both = text.encoded(pipe, "a red circle")
    # Rotated keys stand for themselves: two prefixes are one, in any order.
    joined = torch.cat([adapter(pipe, seed).prefixes["text_encoder"].values for seed in (2, 1)])
    pipe.adapters.clear()
    shape = adapter(pipe).prefixes["text_encoder"]
    whole = Adapter("w", "peft", {}, prefixes={"text_encoder": dataclasses.replace(shape, values=joined)})
    pipe.load_adapter(whole, adapter_name="whole")
    torch.testing.assert_close(text.encoded(pipe, "a red circle"), both, rtol=0.05, atol=0.05)
    with pipe.adapters.disable():
        assert torch.equal(text.encoded(pipe, "a red circle"), base)
    pipe.adapters.set({"whole": {"text_encoder": 0.0, "transformer": 1.0}})
    assert torch.equal(text.encoded(pipe, "a red circle"), base)


def test_a_prefix_that_starts_from_a_text_is_the_text():
    """Keys and values of "a red circle" before " on blue" give what the whole text gives there."""
    pipe = diffadapt.enable(text.zimage())
    ids = {part: pipe.tokenizer(part, return_tensors="pt").input_ids for part in ("a red circle", " on a blue")}
    count = ids["a red circle"].shape[1]
    pipe.load_adapter(adapter(pipe, count=count, start="a red circle"), adapter_name="p")
    with torch.no_grad():
        seen = pipe.text_encoder(ids[" on a blue"]).last_hidden_state
        with pipe.adapters.disable():
            whole = pipe.text_encoder(torch.cat(list(ids.values()), 1)).last_hidden_state
            alone = pipe.text_encoder(ids[" on a blue"]).last_hidden_state
    torch.testing.assert_close(seen, whole[:, count:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone, whole[:, count:], atol=1e-2)


def test_positions_and_a_cache_of_the_caller_s():
    """Positions that are given count on behind the prefix, as PEFT has it; generation with a cache goes without."""
    model = diffadapt.enable(text.language_model("llama"))
    base = run(model)
    model.load_adapter(adapter(model), adapter_name="p")
    prefixed = run(model)
    places = torch.arange(7)[None].expand(2, -1)
    torch.testing.assert_close(run(model, position_ids=places), prefixed)
    from transformers import DynamicCache

    with model.adapters.disable():
        plain = model.generate(IDS[:1, :3], max_new_tokens=3, do_sample=False)
    assert torch.equal(model.generate(IDS[:1, :3], max_new_tokens=3, do_sample=False), plain)
    assert torch.equal(run(model, past_key_values=DynamicCache()), base)


def test_offloaded_and_in_a_mixed_batch():
    pipe = diffadapt.enable(text.zimage())
    base = text.encoded(pipe, "a red circle")
    pipe.load_adapter(adapter(pipe), adapter_name="p")
    on = text.encoded(pipe, "a red circle")
    with pytest.raises(diffadapt.StackError, match="has a prefix, which all samples share"):
        pipe.adapters.mix_batch(["p", "__base__"])
    with pipe.adapters.mixed(["__base__"]):  # a batch that does not name it is without it
        assert torch.equal(text.encoded(pipe, "a red circle"), base)
    with pipe.adapters.muted("p"):
        assert torch.equal(text.encoded(pipe, "a red circle"), base)
    assert torch.equal(text.encoded(pipe, "a red circle"), on)
    pipe.adapters.remove("p")
    accelerate.cpu_offload(pipe.text_encoder, execution_device="cpu")
    pipe.load_adapter(adapter(pipe), adapter_name="p")
    assert torch.equal(text.encoded(pipe, "a red circle"), on)


def test_gradient_checkpointing_would_drop_it(tmp_path):
    model = diffadapt.enable(text.language_model("qwen3"))
    model.load_adapter(adapter(model), adapter_name="p", trainable=True)
    model.gradient_checkpointing_enable()
    model.train()
    with pytest.raises(diffadapt.StackError, match="gradient checkpointing"):
        states(model)
    model.gradient_checkpointing_disable()
    states(model).sum().backward()


def test_errors(tmp_path):
    unet = diffadapt.enable(diffadapt.shapes.load("unet"))
    with pytest.raises(diffadapt.TargetError, match=r"CLIPTextModel.*keeps no keys.*Train tokens instead"):
        new_prefix(unet, "text_encoder", 4)
    write("qwen3", tmp_path / "p")
    with pytest.raises(diffadapt.TargetError, match=r"safetensors: text_encoder is a CLIPTextModel"):
        unet.load_adapter(tmp_path / "p")
    dit = diffadapt.enable(diffadapt.shapes.load("dit"))
    with pytest.raises(diffadapt.TargetError, match="T5EncoderModel"):
        dit.load_adapter(tmp_path / "p", into={"text_encoder": "text_encoder_3"})
    with pytest.raises(diffadapt.StackError, match=r"'text_encoder_9'; expected"):
        new_prefix(dit, "text_encoder_9", 4)
    small = diffadapt.enable(text.language_model("qwen2"))
    with pytest.raises(diffadapt.TargetError, match=r"3 layers with 2 key-value heads of 16.* of 8: it is for another"):
        small.load_adapter(tmp_path / "p")
    assert not small.adapters.names
    for change, match in (({"num_layers": 2}, r"should be \(3, 128\)"), ({"num_layers": None}, "num_layers None")):
        bad = shutil.copytree(tmp_path / "p", tmp_path / f"bad{change['num_layers']}")
        config = json.loads((bad / "adapter_config.json").read_text()) | change
        (bad / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(diffadapt.DialectError, match=match):
            diffadapt.read_adapter(bad)
    good = diffadapt.read_adapter(tmp_path / "p")
    with pytest.raises(diffadapt.DialectError, match="in a PEFT folder"):
        good.save(tmp_path / "p.safetensors")
    with pytest.raises(diffadapt.CombineError, match="prefix"):
        diffadapt.combine([(good, 1.0)])
