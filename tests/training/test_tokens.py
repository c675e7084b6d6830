"""Textual inversion and P-tuning on every text encoder of a pipeline: trained, saved, read by Diffusers, taken out."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import diffadapt
from diffadapt import shapes
from diffadapt.adapter import Adapter, Embedding
from tests import tiny
from tests.training import text
from tests.training.text import Numbers, Pair, adapter, pipeline, train
from tests.zoo import pipelines

PROMPT = "a <thing> on a blue background"


def denoised(pipe, kind, prompt):
    """What the denoiser makes of noise under a prompt; gradients reach the text encoders."""
    noise = torch.randn(1, pipe.vae.config.latent_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    if kind == "unet":
        states, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
        return pipe.unet(noise, torch.tensor([600]), states).sample
    states, _, pooled, _ = pipe.encode_prompt(
        prompt, None, None, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return pipe.transformer(noise, states, pooled, torch.tensor([600.0])).sample


def hooks(models):
    """How many hooks there are in all."""
    modules = [module for model in models.values() for module in model.modules()]
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_fifty_steps_through_the_denoiser(kind, tmp_path):
    """Every text encoder's vectors learn that "<thing>" is a star; base models and tokenizers do not change a bit."""
    pipe = pipeline(kind)
    models = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    before = {name: tiny.snapshot(model) for name, model in models.items()}
    saved = {name: one.backend_tokenizer.get_vocab() for name, one in text.tokenizers(pipe).items()}
    with torch.no_grad():
        plain = text.encoded(pipe, "a red circle")
        goal = denoised(pipe, kind, "a star on a blue background")
    hooked = hooks(models)  # transformers has some of its own since
    pipe.load_adapter(adapter(pipe), adapter_name="t", trainable=True)
    assert len(pipe.adapters.parameters("t")) == len(text.encoders(pipe)) == (1 if kind == "unet" else 3)
    assert all(p.dtype == torch.float32 for p in pipe.adapters.parameters("t"))
    with torch.no_grad():
        assert torch.equal(text.encoded(pipe, "a red circle"), plain)
    losses = train(pipe, lambda: (denoised(pipe, kind, PROMPT) - goal).square().mean(), 50, 0.02)
    assert losses[-1] < 0.7 * losses[0]
    trained = text.encoded(pipe, PROMPT).detach()
    path = pipe.adapters.save("t", tmp_path / "thing.safetensors")
    pipe.adapters.remove("t")
    assert {name: one.backend_tokenizer.get_vocab() for name, one in text.tokenizers(pipe).items()} == saved
    assert all(tiny.same_bits(model, before[name]) for name, model in models.items())
    with torch.no_grad():
        assert torch.equal(text.encoded(pipe, "a red circle"), plain)
    assert hooks(models) == hooked
    again = pipeline(kind)
    again.load_adapter(path, adapter_name="u", trainable=True)  # and on from there
    assert torch.equal(text.encoded(again, PROMPT), trained)
    assert train(again, lambda: (denoised(again, kind, PROMPT) - goal).square().mean(), 2, 0.002)[-1] < losses[0]


def dense(model, vectors):
    """A copy of a text encoder whose matrix has the vectors as rows of its own, and learns."""
    model = copy.deepcopy(model)
    first = model.get_input_embeddings()
    tied = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is first.weight]
    weight = nn.Parameter(torch.cat([first.weight.detach(), vectors]))
    for module in tied:
        module.weight = weight
    return model, weight


ENCODERS = {
    "clip": lambda: tiny.text_encoder(), "t5": lambda: pipelines.t5(0, 24),
    **{name: lambda name=name: text.language_model(name) for name in text.LANGUAGE_MODELS},
}  # fmt: skip


@pytest.mark.parametrize("name", list(ENCODERS))
def test_gradients_are_those_of_a_dense_matrix(name):
    """Values and gradients of a placeholder that stands twice, against rows of a matrix that learns, in float32."""
    model = ENCODERS[name]()
    size = model.get_input_embeddings().num_embeddings
    width = model.get_input_embeddings().embedding_dim
    vectors = 0.5 * torch.randn(2, width, generator=torch.Generator().manual_seed(4))
    ids = torch.tensor([[5, size, size + 1, 7, size, size + 1, 9], [6, 8, 5, size, size + 1, 7, 4]])
    larger, weight = dense(model, vectors)
    truth = larger(ids)[0]
    truth.square().sum().backward()
    owner = diffadapt.enable(Pair(model, Numbers(size)))
    fresh = Adapter("t", "diffusers", {}, embeddings={"<t>": Embedding("<t>", {"text_encoder": vectors})})
    owner.load_adapter(fresh, adapter_name="t", trainable=True)
    seen = model(ids)[0]
    torch.testing.assert_close(seen, truth, rtol=1e-5, atol=1e-6)
    seen.square().sum().backward()
    (learnt,) = owner.adapters.parameters("t")
    torch.testing.assert_close(learnt.grad, weight.grad[size:], rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for p in model.parameters())
    owner.adapters.remove("t")
    assert all(p.requires_grad for p in model.parameters())


def test_half_precision_checkpointing_and_a_compiler_that_compiles_once():
    pipe = pipeline("zimage")
    pipe.load_adapter(adapter(pipe), adapter_name="t", trainable=True)
    (vectors,) = pipe.adapters.parameters("t")

    def loss():
        return text.encoded(pipe, PROMPT).square().mean()

    loss().backward()
    truth, vectors.grad = vectors.grad.clone(), None
    pipe.text_encoder.train()
    pipe.text_encoder.gradient_checkpointing_enable()
    loss().backward()
    torch.testing.assert_close(vectors.grad, truth)
    pipe.text_encoder.gradient_checkpointing_disable()
    pipe.text_encoder.eval()
    counter = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(pipe.text_encoder, backend=counter, fullgraph=True)
    ids = pipe.tokenizer(PROMPT, return_tensors="pt").input_ids
    for _ in range(3):
        with torch.no_grad():
            vectors.add_(0.01)
        seen = compiled(input_ids=ids, use_cache=False).last_hidden_state
        assert torch.equal(seen, pipe.text_encoder(input_ids=ids, use_cache=False).last_hidden_state)
        vectors.grad = None
        seen.sum().backward()
        assert bool(vectors.grad.any())
    assert counter.frame_count == 1
    pipe.text_encoder.to(torch.bfloat16)
    before = tiny.snapshot(pipe.text_encoder)
    embedded = pipe.text_encoder.get_input_embeddings()(ids)
    assert embedded.dtype == torch.bfloat16
    place = ids[0].tolist().index(pipe.tokenizer.convert_tokens_to_ids("<thing>"))
    assert torch.equal(embedded[0, place : place + 2], vectors.to(torch.bfloat16))
    train(pipe, lambda: text.encoded(pipe, PROMPT).float().square().mean(), 3, 0.01)
    assert vectors.grad.dtype == torch.float32
    assert tiny.same_bits(pipe.text_encoder, before)


@pytest.mark.parametrize("kind", ["unet", "sdxl"])
def test_diffusers_reads_what_was_trained(kind, tmp_path):
    pipe = pipeline(kind)
    pipe.load_adapter(adapter(pipe), adapter_name="t", trainable=True)
    goal = torch.zeros_like(text.encoded(pipe, PROMPT))
    losses = train(pipe, lambda: (text.encoded(pipe, PROMPT) - goal).square().mean(), 5, 0.02)
    assert losses[-1] < losses[0]
    trained = text.encoded(pipe, PROMPT).detach()
    path = pipe.adapters.save("t", tmp_path / "other-name.safetensors", dialect="diffusers")
    read = diffadapt.read_adapter(path)
    assert list(read.embeddings) == ["<thing>"]
    assert not read.unmatched
    learnt = read.embeddings["<thing>"].vectors
    assert [torch.equal(*pair) for pair in zip(learnt.values(), pipe.adapters.parameters("t"), strict=True)]
    theirs = shapes.load("unet") if kind == "unet" else text.sdxl()
    file = load_file(path)
    if kind == "unet":
        assert set(file) == {"<thing>"}
        theirs.load_textual_inversion(str(path))
    else:
        assert set(file) == {"clip_l", "clip_g"}
        for key, number in (("clip_l", ""), ("clip_g", "_2")):
            theirs.load_textual_inversion(
                file[key], token="<thing>", text_encoder=getattr(theirs, f"text_encoder{number}"),
                tokenizer=getattr(theirs, f"tokenizer{number}"),
            )  # fmt: skip
    torch.testing.assert_close(text.encoded(theirs, PROMPT), trained, rtol=1e-5, atol=1e-5)
    for part, vectors in learnt.items():
        index = getattr(theirs, part.replace("text_encoder", "tokenizer")).convert_tokens_to_ids("<thing>_1")
        assert torch.equal(getattr(theirs, part).get_input_embeddings().weight[index], vectors[1])


def test_beside_a_lora_in_one_file(tmp_path):
    sample = next(one for one in shapes.adapters("unet") if one.algorithm == "LoRA" and "ohya" in one.layout)
    pipe = pipeline("unet")
    both = dataclasses.replace(diffadapt.read_adapter(sample.path), embeddings=adapter(pipe).embeddings)
    pipe.load_adapter(both, adapter_name="both", trainable=True)
    (vectors,) = [p for p in pipe.adapters.parameters("both") if p.shape == (2, 64)][-1:]
    goal = denoised(pipe, "unet", "a star on a blue background").detach()
    parameters = pipe.adapters.parameters("both")
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    for _ in range(3):
        loss = (denoised(pipe, "unet", PROMPT) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert bool(vectors.grad.any())
    trained = denoised(pipe, "unet", PROMPT).detach()
    path = pipe.adapters.save("both", tmp_path / "both.safetensors", dialect="kohya")
    assert {key for key in load_file(path) if not key.startswith("lora_")} == {"bundle_emb.<thing>.clip_l"}
    again = pipeline("unet")
    report = again.load_adapter(path, adapter_name="both")
    assert report.complete
    assert report.embeddings == ("<thing>",)
    torch.testing.assert_close(denoised(again, "unet", PROMPT), trained, rtol=1e-4, atol=1e-5)
