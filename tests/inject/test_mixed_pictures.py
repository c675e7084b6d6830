"""Pipelines whose prompts carry different adapters: every picture is the one of a run with its own adapters alone."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import nn

import diffadapt
from tests import tiny
from tests.shapes.conftest import EXAMPLES
from tests.zoo.pipelines import PIPELINES, prompt

PICTURE = 2e-4
"""Of the change of a picture, in float32: two steps of a whole network repeat the rounding of its sums."""

ENTRIES = ("ink", "__base__", {"ink": 0.4, "turn": 0.6})
WORDS = ("a red circle", "two blue squares", "a green ring at the left")


def pair(modules, prefix, seed, suffix=("lora_A.weight", "lora_B.weight")):
    """A LoRA on every attention's Linear."""
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, m in modules:
        if isinstance(m, nn.Linear) and any(part in name for part in ("attn", "ff", "mlp", "Attention")):
            tensors[f"{prefix}.{name}.{suffix[0]}"] = 0.3 * torch.randn(3, m.in_features, generator=g)
            tensors[f"{prefix}.{name}.{suffix[1]}"] = 0.3 * torch.randn(m.out_features, 3, generator=g)
    return tensors


def turned(modules, prefix, seed):
    """An OFT on queries and keys."""
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, m in modules:
        if isinstance(m, nn.Linear) and name.endswith(("to_q", "to_k")):
            key = f"{prefix}_{name.replace('.', '_')}"
            tensors[f"{key}.oft_blocks"] = 0.3 * torch.randn(m.out_features // 8, 8, 8, generator=g)
            tensors[f"{key}.alpha"] = torch.tensor(0.0)
    return tensors


def pictures(pipe, prompts, seeds, images=2):
    """Latents of two steps with guidance; a seed for every picture."""
    made = pipe(
        list(prompts), num_inference_steps=2, guidance_scale=4.0, num_images_per_prompt=images, output_type="latent",
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    )  # fmt: skip
    return made.images


@pytest.mark.parametrize("make", ["unet_pipeline", "dit_pipeline"])
@torch.no_grad()
def test_every_picture_is_its_own_adapters(make):
    assert EXAMPLES  # importing it has put the examples' folder on the path
    models = import_module("shapes.models")
    pipe = getattr(models, make)(models.autoencoder())
    pipe.set_progress_bar_config(disable=True)
    denoiser = "unet" if hasattr(pipe, "unet") else "transformer"
    model = getattr(pipe, denoiser)
    ink = pair(model.named_modules(), denoiser, 1)
    ink |= pair(pipe.text_encoder.named_modules(), "text_encoder", 2)
    diffadapt.enable(pipe)
    pipe.load_adapter(ink, adapter_name="ink", weight=0.8)
    pipe.load_adapter(turned(model.named_modules(), f"lora_{denoiser}", 3), adapter_name="turn")
    assert {key.component for key in pipe.adapters.report("ink").applied} == {denoiser, "text_encoder"}
    state, seeds = tiny.snapshot(model), range(6)
    with pipe.adapters.disable():
        base = pictures(pipe, WORDS, seeds)
    with pipe.adapters.mixed(ENTRIES):
        mixed = pictures(pipe, WORDS, seeds)
    assert "encode_prompt" not in pipe.__dict__
    assert tiny.same_bits(model, state)
    # Of these rows no layer sees another number; a matrix product may still sum them in other blocks (SD3's does).
    assert (mixed[2:4] - base[2:4]).norm() <= 1e-5 * base[2:4].norm(), ((mixed[2:4] - base[2:4]).norm(), base.norm())
    for number, entry in ((0, {"ink": 0.8}), (2, ENTRIES[2])):
        pipe.adapters.set(entry)
        rows = slice(2 * number, 2 * number + 2)
        one = pictures(pipe, [WORDS[number]], seeds[rows])
        assert tiny.relative(mixed[rows], one, base[rows]) < PICTURE
    pipe.adapters.set({"ink": 1.0})
    with pipe.adapters.mixed(ENTRIES[:2]), pytest.raises(diffadapt.StackError, match="3 rows"):
        pictures(pipe, WORDS, seeds)


def twice(name, pipe):
    """Two prompts, one like the other, as embeddings."""
    given = {
        key: value.repeat(2, *(1,) * (value.ndim - 1)) if isinstance(value, torch.Tensor) else value
        for key, value in prompt(name, pipe).items()
    }
    if name == "flux":  # guidance by a second call of the transformer
        given |= {f"negative_{key}": given[key].flip(-1) for key in ("prompt_embeds", "pooled_prompt_embeds")}
        given["true_cfg_scale"] = 2.0
    return given


@pytest.mark.parametrize("name", ["flux", "qwen_image", "wan", "sana"])
@torch.no_grad()
def test_transformers_of_other_families(name):
    pipe = diffadapt.enable(PIPELINES[name]())
    pipe.set_progress_bar_config(disable=True)
    given = twice(name, pipe)

    def batch():
        noise = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        return pipe(**given, num_inference_steps=2, generator=noise, output_type="latent", return_dict=False)[0]

    pipe.load_adapter(pair(pipe.transformer.named_modules(), "transformer", 1), adapter_name="ink")
    ink = batch()
    with pipe.adapters.disable():
        base = batch()
    for entries in (["ink", "__base__"], ["__base__", {"ink": 1.0}]):
        with pipe.adapters.mixed(entries):
            mixed = batch()
        for row, entry in enumerate(entries):
            wanted = base if entry == "__base__" else ink
            assert (mixed[row] - wanted[row]).norm() <= PICTURE * (ink - base)[row].norm(), (entries, row)
