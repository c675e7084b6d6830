"""Placeholders in tokenizers and files: where vectors start, how prompts are spelt out, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import accelerate
import pytest
import torch
from safetensors.torch import load_file

import diffadapt
from diffadapt import shapes
from diffadapt.adapter import Adapter, Embedding
from diffadapt.training.tokens import PromptEncoder, new_embeddings
from tests import tiny
from tests.training import text
from tests.training.text import Numbers, Pair, adapter, pipeline, train


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_a_pipeline_that_has_no_textual_inversion_of_its_own(name):
    """Z-Image: a byte-level tokenizer, a chat template, placeholders of several vectors several times in a prompt."""
    pipe = diffadapt.enable(text.zimage(name))
    assert not hasattr(pipe, "load_textual_inversion")
    before, saved = tiny.snapshot(pipe.text_encoder), copy.deepcopy(pipe.tokenizer)
    pipe.load_adapter(adapter(pipe, {"<thing>": ("red circle star", 3)}), adapter_name="t", trainable=True)
    ids = pipe.tokenizer(["the <thing> and<thing>, <thing> <thing>_1 <thing>_2 <thing>_1"]).input_ids[0]
    at = pipe.tokenizer.convert_tokens_to_ids(["<thing>", "<thing>_1", "<thing>_2"])
    assert [i for i in ids if i in at] == [*at, *at, *at, at[1]]
    spelt = saved("the", add_special_tokens=False).input_ids + at  # no space is left over between them
    assert ids[: len(spelt)] == spelt
    assert pipe.tokenizer.encode("<thing>") == pipe.tokenizer(["<thing>"]).input_ids[0] == at
    # Before it has learnt anything, the placeholder is the words that it starts from.
    words = text.encoded(pipe, "a red circle star and red circle star")
    torch.testing.assert_close(text.encoded(pipe, "a <thing> and <thing>"), words)
    goal = torch.zeros_like(text.encoded(pipe, "a <thing>"))
    losses = train(pipe, lambda: (text.encoded(pipe, "a <thing>") - goal).square().mean(), 20, 0.05)
    assert losses[-1] < losses[0]
    for twin in (copy.deepcopy(pipe.tokenizer), pickle.loads(pickle.dumps(pipe.tokenizer))):
        assert twin.encode("a <thing>") == pipe.tokenizer.encode("a <thing>")
        assert isinstance(twin, type(saved))
    pipe.adapters.remove("t")
    assert type(pipe.tokenizer) is type(saved)
    assert pipe.tokenizer.encode("a <thing>") == saved.encode("a <thing>")
    assert pipe.tokenizer.backend_tokenizer.to_str() == saved.backend_tokenizer.to_str()
    assert tiny.same_bits(pipe.text_encoder, before)


def test_removed_in_any_order():
    """Taking out what came first moves the ids of what came later, which goes on to mean the same."""
    pipe = pipeline("unet")
    for name, start in (("<one>", ("circle", 2)), ("<two>", ("star", 3)), ("<two>s", "square")):
        pipe.load_adapter(adapter(pipe, {name: start}), adapter_name=name)
    prompt = "a <two> and a <two>s on blue"
    seen, index = text.encoded(pipe, prompt), pipe.tokenizer.convert_tokens_to_ids("<two>")
    pipe.adapters.remove("<one>")
    assert pipe.tokenizer.convert_tokens_to_ids("<two>") == index - 2
    assert torch.equal(text.encoded(pipe, prompt), seen)
    pipe.adapters.remove("<two>")
    pipe.adapters.remove("<two>s")
    assert len(pipe.tokenizer) == len(pipeline("unet").tokenizer)


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_beside_diffusers_own(first):
    """Diffusers' unloading puts another matrix into the encoder and moves ids: ours go on to act."""
    pipe, vectors = pipeline("unet"), torch.randn(1, 64, generator=torch.Generator().manual_seed(9))
    if first == "theirs":
        pipe.load_textual_inversion(vectors, token="<theirs>")
    pipe.load_adapter(adapter(pipe), adapter_name="t")
    ours = text.encoded(pipe, "a <thing> here")
    if first == "ours":
        pipe.load_textual_inversion(vectors, token="<theirs>")
    only = shapes.load("unet")
    only.load_textual_inversion(vectors, token="<theirs>")
    torch.testing.assert_close(text.encoded(pipe, "a <theirs> here"), text.encoded(only, "a <theirs> here"))
    assert torch.equal(text.encoded(pipe, "a <thing> here"), ours)
    pipe.unload_textual_inversion("<theirs>")
    assert torch.equal(text.encoded(pipe, "a <thing> here"), ours)
    pipe.adapters.remove("t")
    assert len(pipe.tokenizer) == len(shapes.load("unet").tokenizer)
    assert not pipe.text_encoder._forward_pre_hooks


def test_while_accelerate_keeps_the_weights_elsewhere():
    """Under offloading the matrix is nowhere: the vectors are on their own, in training too."""
    pipe = diffadapt.enable(text.zimage())
    fresh = adapter(pipe)
    pipe.load_adapter(fresh, adapter_name="t", trainable=True)
    truth = text.encoded(pipe, "a <thing>")
    truth.sum().backward()
    expected = pipe.adapters.parameters("t")[0].grad.clone()
    pipe.adapters.remove("t")
    accelerate.cpu_offload(pipe.text_encoder, execution_device="cpu")
    assert pipe.text_encoder.get_input_embeddings().weight.device.type == "meta"
    assert torch.equal(adapter(pipe).embeddings["<thing>"].vectors["text_encoder"],
                       fresh.embeddings["<thing>"].vectors["text_encoder"])  # fmt: skip
    pipe.load_adapter(fresh, adapter_name="t", trainable=True)
    seen = text.encoded(pipe, "a <thing>")
    assert torch.equal(seen, truth)
    seen.sum().backward()
    assert torch.equal(pipe.adapters.parameters("t")[0].grad, expected)


def test_clip_pools_at_the_end_of_the_prompt_and_not_at_a_placeholder():
    """Published CLIPs say 2 for their end, and transformers then pools where the highest id stands."""
    pipe = text.sdxl()
    vocabulary = pipe.tokenizer_2.backend_tokenizer.get_vocab()
    model = pipe.text_encoder_2
    # The end has the highest id there, which it has not in Shapes' vocabulary: its rows change places.
    model.get_input_embeddings().weight.data[[1, 173]] = model.get_input_embeddings().weight.data[[173, 1]]
    inner = next(module for module in model.modules() if vars(module).get("eos_token_id") == 1)
    inner.eos_token_id = 2

    class Ends(Numbers):
        eos_token_id = len(vocabulary) - 1

    owner = diffadapt.enable(Pair(model, Ends(len(vocabulary))))
    plain = torch.tensor([[0, 67, 137, 153, 173, 173]])
    before = model(plain).text_embeds
    fresh = Embedding("<t>", {"text_encoder": torch.randn(1, 64, generator=torch.Generator().manual_seed(0))})
    owner.load_adapter(Adapter("t", "diffusers", {}, embeddings={"<t>": fresh}), adapter_name="t")
    assert torch.equal(model(plain).text_embeds, before)
    seen = model(torch.tensor([[0, 67, 174, 153, 173, 173]]))
    assert torch.equal(seen.text_embeds, model.text_projection(seen.last_hidden_state[:, 4]))
    owner.adapters.remove("t")
    assert inner.eos_token_id == 2


def test_where_vectors_start():
    pipe = text.zimage()
    matrix = pipe.text_encoder.get_input_embeddings().weight.detach()
    rows = lambda words: matrix[pipe.tokenizer(words).input_ids]  # noqa: E731

    def start(value, **options):
        return new_embeddings(pipe, {"<t>": value}, **options)["<t>"].vectors["text_encoder"]

    circle, phrase = rows(" circle"), rows(" red circle")
    assert torch.equal(start(("circle", len(circle))), circle)
    assert torch.equal(start("red circle", vectors=2 * len(phrase) + 1), torch.cat([phrase, phrase, phrase[:1]]))
    torch.testing.assert_close(start("red circle"), phrase.mean(0, keepdim=True))
    drawn = start(("random", 500), generator=torch.Generator().manual_seed(0))
    assert abs(float(drawn.std() / matrix.std()) - 1) < 0.05
    own = torch.randn(4, 20).to(torch.bfloat16)
    assert torch.equal(start(own), own.float())
    assert torch.equal(start({"text_encoder": own[0]}), own[:1].float())
    assert list(new_embeddings(pipe, ["<a>", "<b>"])) == ["<a>", "<b>"]
    assert new_embeddings(pipe, "<a>")["<a>"].vectors["text_encoder"].shape == (1, 20)
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight, matrix)


@pytest.mark.parametrize(
    ("starts", "options", "match"),
    [
        ({"a</w>": "circle"}, {}, "has a token 'a</w>' already: choose another placeholder"),
        ({"<t>": "zebra~"}, {}, "is no word that text_encoder knows"),
        ({"<t>": "  "}, {}, "has no token of text_encoder"),
        ({" <t>": "circle"}, {}, "without spaces around it"),
        ({"<t>": torch.zeros(2, 5)}, {}, r"are \(2, 5\); expected \(n, 64\)"),
        ({"<t>": {"text_encoder_2": torch.zeros(2, 64)}}, {}, "no start vectors of '<t>' for text_encoder"),
        ({"<t>": ("circle", 0)}, {}, "0 vectors"),
        ({}, {}, "no placeholder to train"),
        ({"<t>": "circle"}, {"encoders": ["text_encoder_9"]}, "is no text encoder with a tokenizer here"),
    ],
)
def test_errors(starts, options, match):
    with pytest.raises(diffadapt.StackError, match=match):
        new_embeddings(shapes.load("unet"), starts, **options)


def test_more_errors():
    with pytest.raises(diffadapt.StackError, match="no text encoder with a tokenizer"):
        new_embeddings(tiny.unet(), {"<t>": "circle"})
    with pytest.raises(diffadapt.StackError, match="choose 'mlp' or 'lstm'"):
        PromptEncoder(torch.zeros(1, 4), kind="gru")
    pipe = pipeline("unet")
    fresh = adapter(pipe)
    pipe.load_adapter(fresh, adapter_name="t")
    assert pipe.adapters.parameters("t") == []
    with pytest.raises(diffadapt.TargetError, match=r"t: The tokenizer has a token '<thing>' already"):
        pipe.load_adapter(fresh, adapter_name="u")
    assert list(pipe.adapters.names) == ["t"]


def test_several_placeholders_and_encoders_in_one_file(tmp_path):
    pipe = pipeline("dit")
    fresh = adapter(pipe, {"<one>": ("circle", 3), "<two>": "random", "<three>": ("red star", 2)})
    for name, chosen in (("all", None), ("t5", ["text_encoder_3"])):
        kept = {t: Embedding(t, {p: v for p, v in e.vectors.items() if not chosen or p in chosen})
                for t, e in fresh.embeddings.items()}  # fmt: skip
        path = dataclasses.replace(fresh, embeddings=kept).save(tmp_path / f"{name}.safetensors")
        read = diffadapt.read_adapter(path)
        assert list(read.embeddings) == list(kept)
        for token, embedding in kept.items():
            assert read.embeddings[token].vectors.keys() == embedding.vectors.keys()
            assert all(torch.equal(read.embeddings[token].vectors[p], v) for p, v in embedding.vectors.items())
    assert set(load_file(tmp_path / "all.safetensors")) == {"clip_l", "clip_g", "t5xxl"}
    dotted = dataclasses.replace(fresh, embeddings={"a.b": dataclasses.replace(fresh.embeddings["<one>"], token="a.b")})
    assert set(diffadapt.read_adapter(dotted.save(tmp_path / "d.safetensors")).embeddings) == {"a.b"}
    with pytest.raises(diffadapt.DialectError, match=r"a\.b would not be found again"):
        dotted.save(tmp_path / "k.safetensors", dialect="kohya")
