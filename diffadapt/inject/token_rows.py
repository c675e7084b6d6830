"""The vectors of placeholders, put where their ids stand by hooks on a text encoder's input embedding.

The matrix itself is not touched: it keeps its size and its bits, whether it is tied to an output layer, quantised,
offloaded or padded beyond the tokenizer, and gradients reach the vectors alone.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from diffadapt.inject.vocabulary import Vocabulary


class Values(nn.Module):
    """A tensor as a module: a float32 parameter where it is trained, else as it is."""

    values: Tensor

    def __init__(self, values: Tensor, trainable: bool) -> None:
        super().__init__()
        if trainable:
            self.values = nn.Parameter(values.detach().to(torch.float32, copy=True))
        else:
            self.register_buffer("values", values.detach())

    def forward(self) -> Tensor:
        # FSDP takes a parameter's memory away when its module's forward is over.
        return self.values.clone() if self.values.requires_grad else self.values


def place_of(weight: Tensor) -> torch.device:
    """Where tensors beside a weight are kept: with it, or on the CPU while accelerate keeps it elsewhere."""
    return torch.device("cpu") if weight.device.type == "meta" else weight.device


class TokenRows:
    """All placeholders of one text encoder.

    sources: token -> the module whose forward gives its vectors, (tokens, dim).
    """

    def __init__(self, model: nn.Module, vocabulary: Vocabulary) -> None:
        self.vocabulary, self._model = vocabulary, model
        self.sources: dict[str, nn.Module] = {}
        self._modules = embeddings_of(model)
        self._ends = _ends(model, vocabulary.tokenizer, self._modules[0].num_embeddings)
        self._ids = torch.empty(0, dtype=torch.long)
        self._hits: Tensor | None = None
        self._handles: list[RemovableHandle] = []

    @classmethod
    def of(cls, model: nn.Module, vocabulary: Vocabulary) -> Self:
        """The rows of a text encoder; there are one each."""
        for hook in model._forward_pre_hooks.values():
            found = getattr(hook, "__self__", None)
            if isinstance(found, cls):
                return found
        return cls(model, vocabulary)

    def add(self, token: str, source: nn.Module, count: int) -> None:
        """Put a placeholder of `count` vectors in. Errors as for `Vocabulary.add`."""
        self.vocabulary.add(token, count, self.refresh)
        self.sources[token] = source.to(place_of(self._modules[0].weight))
        self.refresh()
        self._attach()

    def remove(self, token: str) -> None:
        """Take a placeholder out; with the last one, the encoder has no hooks left."""
        del self.sources[token]
        self.vocabulary.remove(token, self.refresh)
        self.refresh()
        self._attach()

    def refresh(self) -> None:
        """Ask the tokenizer for the ids again."""
        found = [index for token in self.sources for index in self.vocabulary.ids(token)]
        self._ids = torch.tensor(found, dtype=torch.long, device=place_of(self._modules[0].weight))

    def _attach(self) -> None:
        """Hook the modules anew, behind whatever else is hooked there; none where nothing is left."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for module, before, end in self._ends:
            vars(module)["eos_token_id"] = end if self.sources else before
        if self.sources:
            self._handles.append(self._model.register_forward_pre_hook(self._follow))
        for module in self._modules if self.sources else ():
            self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after))

    def _follow(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        """Take up another embedding: Diffusers' `unload_textual_inversion` puts one in, and moves ids."""
        if not torch.compiler.is_compiling() and model.get_input_embeddings() is not self._modules[0]:  # type: ignore[operator]
            self._modules = embeddings_of(model)
            self.refresh()
            self._attach()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note where placeholders stand, and look up row 0 for them: the matrix has none of theirs."""
        ids = args[0] if args else kwargs["input"]
        self._hits = ids.unsqueeze(-1) == self._ids.to(ids.device)
        return (ids.masked_fill(self._hits.any(-1), 0), *args[1:]), {k: v for k, v in kwargs.items() if k != "input"}

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Put the vectors there, in the output's dtype; gradients are summed in float32."""
        hits, self._hits = self._hits, None
        if hits is None:
            return output
        rows = torch.cat([source().to(output.device, torch.float32) for source in self.sources.values()])
        chosen = functional.embedding(hits.to(torch.int32).argmax(-1), rows).to(output.dtype)
        scale = getattr(module, "embed_scale", None)  # Gemma 3 and T5Gemma scale what they look up
        if scale is not None:
            chosen = chosen * (scale.to(output.dtype) if isinstance(scale, Tensor) else scale)
        return torch.where(hits.any(-1, keepdim=True), chosen, output)


def embeddings_of(model: nn.Module) -> list[nn.Embedding]:
    """The modules that look ids up: the model's input embedding, and those tied to it (a T5's encoder has its own)."""
    first: nn.Embedding = model.get_input_embeddings()  # type: ignore[operator]
    tied = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not first and m.weight is first.weight]
    return [first, *tied]


def _ends(model: nn.Module, tokenizer: Any, size: int) -> list[tuple[nn.Module, int, int]]:
    """The CLIP models that take the highest id for the prompt's end, what they have for it, and the end's real id.

    CLIP's published configs say 2 for the end, upon which transformers pools at the highest id. That is the end's as
    long as nothing is added; a placeholder's is higher.
    """
    end = getattr(tokenizer, "eos_token_id", None)
    highest = {size - 1, getattr(tokenizer, "vocab_size", size) - 1}  # rows of Diffusers' own come behind
    if end not in highest or end == 2:
        return []
    named = [module for module in model.modules() if type(module).__name__.startswith("CLIPText")]
    return [(module, 2, end) for module in named if vars(module).get("eos_token_id") == 2]
