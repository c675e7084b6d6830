"""Fresh prefixes: keys and values that are trained before those of a language model's attentions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffadapt.adapter import Prefix
from diffadapt.errors import StackError
from diffadapt.inject.embeddings import tokenizer_of
from diffadapt.inject.locate import components
from diffadapt.inject.prefix import Attentions
from diffadapt.inject.token_rows import place_of


def new_prefix(
    owner: Any,
    component: str = "text_encoder",
    virtual_tokens: int = 20,
    generator: torch.Generator | None = None,
    *,
    start: str = "random",
) -> Prefix:
    """A prefix for an `Adapter`'s `prefixes`, in float32 on the CPU. Changes nothing.

    component: a text encoder that is a language model; of a bare model, the model itself.
    virtual_tokens: how many keys and values each attention gets.
    start: "random", normal numbers, or "zero", as PEFT begins; or a text, whose own keys and values these are at first
        (from the beginning again, where it is too short).
    Raises StackError for an unknown component and an empty text, TargetError for a model that keeps no keys and values.
    """
    parts = components(owner)
    part = parts.get(component) or (next(iter(parts.values())) if len(parts) == 1 else None)
    if part is None or virtual_tokens < 1:
        raise StackError(
            f"A prefix of {virtual_tokens} virtual tokens for {component!r}; expected at least one, for one of "
            f"{', '.join(name for name in parts if 'encoder' in name) or 'no text encoders'}."
        )
    shape = Attentions.of(part.model, part.name)
    if start == "random":
        values = torch.randn(virtual_tokens, shape.width, generator=generator)
    elif start == "zero":
        values = torch.zeros(virtual_tokens, shape.width)
    else:
        values = _of_text(start, virtual_tokens, tokenizer_of(owner, component), shape)
    return Prefix(values, shape.layers, shape.heads)


@torch.no_grad()
def _of_text(text: str, count: int, tokenizer: Any, shape: Attentions) -> Tensor:
    """The keys and values that the model itself has for a text."""
    ids = [] if tokenizer is None else tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise StackError(f"{text!r} has no tokens here to start a prefix from; start from 'random' or 'zero'.")
    device = place_of(next(shape.decoder.parameters()))
    repeated = torch.tensor([(ids * (count // len(ids) + 1))[:count]], device=device)
    seen = shape.decoder(input_ids=repeated, use_cache=True)
    cache = seen.get("cache") if seen.get("cache") is not None else seen["past_key_values"]
    pairs = [torch.stack(tuple(layer)[:2])[:, 0] for layer in cache]  # (2, heads, tokens, head dim) of each layer
    return torch.stack(pairs).permute(3, 0, 1, 2, 4).reshape(count, shape.width).to("cpu", torch.float32)
