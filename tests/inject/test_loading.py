"""load_adapter: whatever is given is applied and accounted for, or refused with the pipeline as it was."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import diffadapt
from tests import tiny

PREFIX = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def pair(name=PREFIX, rank=4, size=64, alpha=2.0):
    g = torch.Generator().manual_seed(len(name))
    return {
        f"{name}.lora_down.weight": torch.randn(rank, size, generator=g),
        f"{name}.lora_up.weight": torch.randn(size, rank, generator=g),
        f"{name}.alpha": torch.tensor(alpha),
    }


@pytest.fixture
def pipe():
    return diffadapt.enable(tiny.sd())


def state(pipe):
    return tiny.run(pipe.unet), tiny.snapshot(pipe.unet), pipe.adapters.names, pipe.adapters.active


def assert_as_before(pipe, before):
    now = state(pipe)
    assert torch.equal(now[0], before[0])
    assert tiny.same_bits(pipe.unet, before[1])
    assert now[2:] == before[2:]


def test_enable_is_idempotent_and_returns_the_same_object():
    pipe = tiny.sd()
    assert diffadapt.enable(pipe) is pipe
    stack = pipe.adapters
    assert diffadapt.enable(pipe).adapters is stack
    with pytest.raises(diffadapt.StackError, match="not a str"):
        diffadapt.enable("pipe")


def test_the_report_says_all_of_it(pipe, lycoris_files):
    report = pipe.load_adapter(lycoris_files["lora"][0], adapter_name="pixel", weight=0.8)
    total = len(pipe.adapters["pixel"].targets)
    assert f"applied {total} of {total}" in str(report)
    assert report.complete
    assert report.algorithms == {"lora": total}
    assert report.components == {"unet": total}
    assert report.ranks == (4,)
    assert json.loads(json.dumps(report.to_dict()))["complete"] is True
    assert pipe.adapters.report("pixel") is report
    assert pipe.adapters.active == {"pixel": 0.8}


def test_names(pipe, lycoris_files):
    path = lycoris_files["lora"][0]
    pipe.load_adapter(path)
    pipe.load_adapter(path)
    assert pipe.adapters.names == ("lora", "lora_2")
    pipe.adapters.rename("lora_2", "other")
    assert pipe.adapters.names == ("lora", "other")
    with pytest.raises(diffadapt.StackError, match="loaded already"):
        pipe.load_adapter(path, adapter_name="other")
    with pytest.raises(diffadapt.StackError, match=r"No adapter is named 'none'. Loaded: lora, other"):
        pipe.adapters.set({"none": 1.0})
    pipe.adapters.set("other")
    assert pipe.adapters.active == {"other": 1.0}
    pipe.adapters.set(["lora", "other"], [0.2, 0.3])
    assert pipe.adapters.active == {"lora": 0.2, "other": 0.3}
    with pytest.raises(diffadapt.StackError, match="2 adapters and 1 weights"):
        pipe.adapters.set(["lora", "other"], [0.2])


@pytest.mark.parametrize(
    "case",
    ["shape", "nan", "nothing", "half", "family", "cut", "strict", "component", "mapping"],
)
def test_a_load_that_fails_leaves_everything_as_it_was(case, pipe, lycoris_files, tmp_path):
    pipe.load_adapter(lycoris_files["lokr"][0], adapter_name="first", weight=0.7)
    before = state(pipe)
    good = load_file(lycoris_files["lora"][0])
    down = sorted(k for k in good if k.endswith("lora_down.weight"))[-1]
    weight, options = 1.0, {}
    if case == "shape":
        good[down] = torch.randn(good[down].shape[0], 7)
        message = (
            r"x.safetensors: .* does not fit: lora.*file is for [a-z0-9_]+; the pipeline is a StableDiffusionPipeline"
        )
    elif case == "nan":
        good[down] = good[down] * float("nan")
        message = down
    elif case == "nothing":
        good, message = (
            pair("lora_unet_double_blocks_0_img_attn_proj", size=32),
            "none of its 1 modules is in this pipeline",
        )
    elif case == "half":
        del good[down.replace("lora_down", "lora_up")]
        message = "lora_up"
    elif case == "family":
        good = pair("lora_te2_text_model_encoder_layers_0_mlp_fc1", size=32)
        message = "none of its 1 modules"
    elif case == "strict":
        good |= pair("lora_unet_down_blocks_7_attentions_0_proj_in")
        options, message = {"strict": True}, "strict=True.*down_blocks_7"
    elif case == "component":
        weight, message = {"vae": 1.0}, "names no module"
    elif case == "mapping":
        weight, message = {"unet": "strong"}, "expected a number"
    path = tmp_path / "x.safetensors"
    save_file(good, path)
    if case == "cut":
        path.write_bytes(path.read_bytes()[:-100])
        message = "x.safetensors"
    with pytest.raises(diffadapt.DiffAdaptError, match=message):
        pipe.load_adapter(path, adapter_name="bad", weight=weight, **options)
    assert_as_before(pipe, before)


def test_some_unmatched_is_one_warning_of_one_line(pipe):
    tensors = pair() | pair("lora_unet_down_blocks_7_attentions_0_proj_in") | {"something.else": torch.zeros(1)}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        report = pipe.load_adapter(tensors, adapter_name="a")
    ours = [w for w in seen if issubclass(w.category, diffadapt.UnmatchedKeysWarning)]
    assert len(ours) == 1
    assert "\n" not in str(ours[0].message)
    assert "4 keys" in str(ours[0].message)
    assert ours[0].filename == __file__
    assert not report.complete
    assert len(report.unmatched) == 4
    assert "unmatched: 4 keys" in str(report)


def test_alpha_is_overridden_and_missing_alpha_is_scale_one(pipe):
    tensors = pair(alpha=1.0)
    key = ("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    weight = torch.zeros(64, 64)
    product = tensors[f"{PREFIX}.lora_up.weight"] @ tensors[f"{PREFIX}.lora_down.weight"]
    read = lambda t, **o: diffadapt.read_adapter(t, **o).targets[key].weight_delta(weight)  # noqa: E731
    assert torch.allclose(read(tensors), product / 4, atol=1e-6)
    assert torch.allclose(read(tensors, alpha=8), product * 2, atol=1e-6)
    del tensors[f"{PREFIX}.alpha"]
    assert torch.allclose(read(tensors), product, atol=1e-6)


def test_an_adapter_object_goes_onto_several_pipelines(lycoris_files):
    adapter = diffadapt.read_adapter(lycoris_files["oft"][0])
    outputs = []
    for _ in range(2):
        pipe = diffadapt.enable(tiny.sd())
        pipe.load_adapter(adapter, adapter_name="a")
        outputs.append(tiny.run(pipe.unet))
    assert torch.equal(*outputs)


def test_sdxl_with_both_text_encoders_through_peft(tmp_path):
    """A LoRA that PEFT trained on all three models, saved by Diffusers, equals PEFT's own output everywhere."""
    from diffusers import StableDiffusionXLPipeline
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import get_peft_model_state_dict

    theirs, ids = tiny.sdxl(), torch.tensor([[1, 5, 6, 7, 2]])
    configs = {
        "unet": ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1"],
        "text_encoder": ["q_proj", "v_proj", "fc1"],
        "text_encoder_2": ["q_proj", "out_proj", "fc2"],
    }
    torch.manual_seed(0)
    for name, modules in configs.items():
        config = LoraConfig(r=4, lora_alpha=8, target_modules=modules, init_lora_weights=False)
        inject_adapter_in_model(config, getattr(theirs, name))
        getattr(theirs, name).peft_config = {"default": config}
    states = {n: get_peft_model_state_dict(getattr(theirs, n)) for n in configs}
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=states["unet"], text_encoder_lora_layers=states["text_encoder"],
        text_encoder_2_lora_layers=states["text_encoder_2"],
        **{f"{n}_lora_adapter_metadata": getattr(theirs, n).peft_config["default"].to_dict() for n in configs},
    )  # fmt: skip
    ours = diffadapt.enable(tiny.sdxl())
    with torch.no_grad():
        before = [getattr(ours, n)(ids).last_hidden_state for n in ("text_encoder", "text_encoder_2")]
        report = ours.load_adapter(tmp_path, adapter_name="a")
        assert report.complete
        assert set(report.components) == set(configs)
        for base, name in zip(before, ("text_encoder", "text_encoder_2"), strict=True):
            truth = getattr(theirs, name)(ids).last_hidden_state
            assert tiny.relative(getattr(ours, name)(ids).last_hidden_state, truth, base) < 1e-5
        sample, timestep, text = tiny.inputs()
        added = {"text_embeds": torch.ones(1, tiny.WIDTH), "time_ids": torch.ones(1, 6)}
        run = lambda p: p.unet(sample, timestep, text, added_cond_kwargs=added).sample  # noqa: E731
        truth = run(theirs)
        with ours.adapters.disable():
            base = run(ours)
        assert tiny.relative(run(ours), truth, base) < 2e-5


def test_embeddings_of_a_file_go_into_the_tokenizer_and_out_again(lycoris_files, tmp_path):
    from transformers import CLIPTokenizer

    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1} | {f"{chr(97 + i % 26)}{i}": i for i in range(2, 100)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    pipe = tiny.sd()
    pipe.tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    diffadapt.enable(pipe)
    matrix = pipe.text_encoder.get_input_embeddings()
    before, size = matrix.weight.detach().clone(), len(pipe.tokenizer)
    tensors = pair() | {"bundle_emb.cat-thing.string_to_param.*": torch.full((2, tiny.WIDTH), 0.5)}
    report = pipe.load_adapter(tensors, adapter_name="a")
    assert report.embeddings == ("cat-thing",)
    assert "embeddings: cat-thing" in str(report)
    ids = torch.tensor([pipe.tokenizer("cat-thing").input_ids])
    assert ids.shape == (1, 4)  # of the two vectors, between the beginning and the end
    assert torch.equal(matrix(ids)[0, 1:3], torch.full((2, tiny.WIDTH), 0.5))
    pipe.adapters.remove("a")
    assert len(pipe.tokenizer) == size
    assert torch.equal(matrix.weight, before)
    assert not matrix._forward_hooks
    wide = pair() | {"bundle_emb.cat.string_to_param.*": torch.zeros(2, 5)}
    with pytest.raises(diffadapt.TargetError, match=r"'cat' has width 5, the pipeline's text_encoder has 32"):
        pipe.load_adapter(wide)
    assert not pipe.adapters.names


def test_a_misspelt_option_is_an_error(pipe, lycoris_files):
    with pytest.raises(TypeError, match="wieght"):
        pipe.load_adapter(lycoris_files["lora"][0], wieght=0.5)
    assert not pipe.adapters.names


def test_into_another_component():
    """Wan's two experts have the same keys: the caller says which one a file is for."""
    pipe = SimpleNamespace(components={"unet": tiny.unet(), "unet_2": tiny.unet(1)})
    file = {
        f"unet.mid_block.attentions.0.proj_in.{role}.weight": torch.randn(shape)
        for role, shape in (("lora_A", (2, 64, 1, 1)), ("lora_B", (64, 2, 1, 1)))
    }
    diffadapt.enable(pipe)
    report = pipe.load_adapter(file, into={"unet": "unet_2"})
    assert [key.component for key in report.applied] == ["unet_2"]
