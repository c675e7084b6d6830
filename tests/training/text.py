"""Text encoders to train on: language models of a few thousand numbers, their tokenizers, and pipelines around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionXLPipeline, ZImagePipeline
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

import diffadapt
from diffadapt import shapes
from diffadapt.adapter import Adapter
from diffadapt.training.tokens import new_embeddings
from tests import tiny
from tests.zoo import ZOO

WORDS = ["a red circle on a blue background", "a green star and a small square", "the photo of a cat"]
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} [end]{% endfor %}"

SIZES = {
    "vocab_size": 400, "hidden_size": 20, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WIDE = {**SIZES, "head_dim": 16}
LANGUAGE_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2": ("Qwen2Model", "Qwen2Config", {**SIZES, "hidden_size": 32}),
    "qwen3": ("Qwen3Model", "Qwen3Config", WIDE),
    "llama": ("LlamaForCausalLM", "LlamaConfig", WIDE),
    "mistral": ("MistralModel", "MistralConfig", {**WIDE, "sliding_window": 4}),
    "gemma2": ("Gemma2Model", "Gemma2Config", {**WIDE, "sliding_window": 4, "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3TextModel", "Gemma3TextConfig", {**WIDE, "sliding_window": 4, "query_pre_attn_scalar": 16}),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig",
        {"text_config": {**SIZES, "hidden_size": 32, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}},
         "vision_config": {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
                           "out_hidden_size": 32}},
    ),
}  # fmt: skip
"""name -> (model class, config class, config): what Z-Image, HiDream, Flux.2, Lumina 2 and Qwen-Image read with."""


def language_model(name: str, seed: int = 0) -> Any:
    model, config, sizes = LANGUAGE_MODELS[name]
    torch.manual_seed(seed)
    return getattr(transformers, model)(getattr(transformers, config)(**sizes)).eval()


def tokenizer() -> Any:
    """A byte-level one, in which a word is another token behind a space, as Qwen's and Llama's are."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        WORDS * 3, trainers.BpeTrainer(vocab_size=380, special_tokens=["<pad>"], initial_alphabet=letters)
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", chat_template=TEMPLATE)


def zimage(name: str = "qwen3") -> ZImagePipeline:
    """Z-Image around a language model, without a VAE: its class has no textual inversion, its prompts a template."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    return ZImagePipeline(scheduler, None, language_model(name), tokenizer(), ZOO["zimage"].build())


def sdxl() -> StableDiffusionXLPipeline:
    """SDXL around the two CLIPs of Shapes-DiT."""
    dit = shapes.load("dit")
    return StableDiffusionXLPipeline(
        vae=None, text_encoder=dit.text_encoder, text_encoder_2=dit.text_encoder_2, tokenizer=dit.tokenizer,
        tokenizer_2=dit.tokenizer_2, unet=tiny.unet(), scheduler=dit.scheduler, add_watermarker=False,
    )  # fmt: skip


def encoded(pipe: Any, prompt: str) -> Tensor:
    """All that a pipeline's text encoders make of a prompt, flat."""
    several = {"StableDiffusion3Pipeline": 2, "StableDiffusionXLPipeline": 1}.get(type(pipe).__name__, 0)
    made = pipe.encode_prompt(prompt, *[None] * several, device="cpu", do_classifier_free_guidance=False,
                              **({"num_images_per_prompt": 1} if several or hasattr(pipe, "unet") else {}))  # fmt: skip
    parts = [part for one in made if one is not None for part in (one if isinstance(one, list) else [one])]
    return torch.cat([part.flatten() for part in parts if isinstance(part, Tensor)])


def encoders(pipe: Any) -> dict[str, nn.Module]:
    """The text encoders by name."""
    return {name: part for name, part in pipe.components.items() if "text_encoder" in name and part is not None}


def tokenizers(pipe: Any) -> dict[str, Any]:
    return {name: part for name, part in pipe.components.items() if "tokenizer" in name and part is not None}


def adapter(pipe: Any, starts: Any = None, **options: Any) -> Adapter:
    """Untrained placeholders for all text encoders of a pipeline."""
    generator = torch.Generator().manual_seed(3)
    made = new_embeddings(pipe, starts or {"<thing>": ("circle", 2)}, generator=generator, **options)
    return Adapter("t", "diffusers", {}, embeddings=made)


def pipeline(kind: str) -> Any:
    """A pipeline by name, enabled, without dropouts."""
    pipe = diffadapt.enable(shapes.load(kind) if kind in shapes.PIPELINES else {"zimage": zimage, "sdxl": sdxl}[kind]())
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    return pipe


def train(pipe: Any, loss: Callable[[], Tensor], steps: int, lr: float) -> list[float]:
    """Train what is in training; the losses."""
    parameters = pipe.adapters.parameters()
    optimizer, losses = torch.optim.Adam(parameters, lr=lr), []
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert all(p.grad is not None and bool(p.grad.any()) for p in parameters)
    return losses


class Pair:
    """A text encoder and a tokenizer, as a pipeline has them."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.text_encoder, self.tokenizer = model, tokenizer
        self.components = {"text_encoder": model, "tokenizer": tokenizer}


class Numbers:
    """A tokenizer of numbers, for encoders of any vocabulary."""

    unk_token_id = eos_token_id = None

    def __init__(self, size: Any) -> None:
        self.size, self.names = size, []
        self._added_tokens_decoder, self._added_tokens_encoder = {}, {}

    def convert_tokens_to_ids(self, token: Any) -> Any:
        if isinstance(token, list):
            return [self.convert_tokens_to_ids(one) for one in token]
        return self._added_tokens_encoder.get(token)

    def convert_ids_to_tokens(self, index: Any) -> Any:
        return self._added_tokens_decoder[index].content

    def add_tokens(self, tokens: Any) -> None:
        for token in tokens:
            index = self.size + len(self._added_tokens_decoder)
            self._added_tokens_decoder[index], self._added_tokens_encoder[token.content] = token, index
