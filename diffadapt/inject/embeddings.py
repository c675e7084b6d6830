"""Textual-inversion vectors that come with an adapter: into the tokenizers and text encoders, and out again.

It is done here and not by Diffusers' `load_textual_inversion`, which half of the pipelines lack (SD3, Z-Image,
Qwen-Image, ...), which makes matrices smaller that are padded beyond their tokenizer (T5, Qwen), and which has nowhere
for a gradient to go. The tokens have the names that it would give them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffadapt.adapter import Adapter, Embedding
from diffadapt.errors import StackError, TargetError
from diffadapt.inject.locate import unwrap
from diffadapt.inject.token_rows import TokenRows, Values
from diffadapt.inject.vocabulary import Vocabulary, knows, spelt, taken_message


@dataclass(eq=False)
class Placeholder:
    """One placeholder in one text encoder. source: the module whose forward gives its vectors, (count, dim)."""

    token: str
    component: str
    count: int
    source: nn.Module


@dataclass(eq=False)
class InstalledEmbeddings:
    """The placeholders of one adapter on one pipeline.

    steps: those that can be installed here; installed: those that are. embeddings: the adapter's.
    """

    steps: list[Placeholder] = field(default_factory=list)
    installed: list[tuple[TokenRows, Placeholder]] = field(default_factory=list)
    embeddings: Mapping[str, Embedding] = field(default_factory=dict)
    trainable: bool = False

    @property
    def tokens(self) -> list[str]:
        return list(dict.fromkeys(step.token for step in self.steps))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in float32; nothing where the adapter is not trainable."""
        return [parameter for step in self.steps for parameter in step.source.parameters()]

    @classmethod
    def plan(cls, adapter: Adapter, owner: Any, trainable: bool = False) -> InstalledEmbeddings:
        """What can be installed here. Changes nothing.

        Raises TargetError for vectors of another width than the text encoder's, and for a token that the tokenizer has.
        """
        steps = []
        for embedding in adapter.embeddings.values():
            for component, vectors in embedding.vectors.items():
                tokenizer, encoder = tokenizer_of(owner, component), getattr(owner, component, None)
                if tokenizer is None or encoder is None:
                    continue
                width = unwrap(encoder).get_input_embeddings().weight.shape[-1]  # type: ignore[operator]
                if vectors.shape[-1] != width:
                    raise TargetError(
                        f"{adapter.source}: the embedding '{embedding.token}' has width {vectors.shape[-1]}, the "
                        f"pipeline's {component} has {width}: it is for another model."
                    )
                rows = vectors.reshape(-1, width)
                names = spelt(embedding.token, rows.shape[0])
                taken = next((name for name in names if knows(tokenizer, name)), None)
                if taken is not None:
                    raise TargetError(f"{adapter.source}: {taken_message(taken)}")
                steps.append(Placeholder(embedding.token, component, rows.shape[0], Values(rows, trainable)))
        return cls(steps, embeddings=adapter.embeddings, trainable=trainable)

    def reparametrise(self, make: Callable[[Tensor], nn.Module]) -> None:
        """Train, in place of the vectors themselves, what makes them: `make` is called with the vectors of each
        placeholder and encoder, and gives a module whose forward gives vectors of that shape (`PromptEncoder.of(...)`).

        Raises StackError where the adapter is not trainable.
        """
        if not self.trainable:
            raise StackError("These tokens are not in training: load or add the adapter with trainable=True first.")
        made = [(step, make(step.source().detach())) for step in self.steps]
        for step, source in made:
            step.source = source.to(self._device(step))
        for rows, step in self.installed:
            rows.sources[step.token] = step.source

    def _device(self, step: Placeholder) -> torch.device:
        return next(step.source.parameters()).device

    def install(self, owner: Any) -> None:
        """Add the tokens and their vectors. Raises TargetError, with none added, where a name is taken."""
        try:
            for step in self.steps:
                vocabulary = Vocabulary.of(tokenizer_of(owner, step.component))
                rows = TokenRows.of(unwrap(getattr(owner, step.component)), vocabulary)
                rows.add(step.token, step.source, step.count)
                self.installed.append((rows, step))
        except TargetError:
            self.uninstall(owner)
            raise

    def uninstall(self, owner: Any) -> None:
        """Take the tokens out again: tokenizers and text encoders are as before."""
        for rows, step in reversed(self.installed):
            rows.remove(step.token)
        self.installed = []

    def to(self, device: torch.device | str | int) -> None:
        """Keep the vectors on a device; they are copied to where their encoder computes. Parameters stay themselves."""
        for step in self.steps:
            step.source.to(device)

    @torch.no_grad()
    def current(self) -> dict[str, Embedding]:
        """The adapter's embeddings by token, with copies of what has been learnt."""
        found = {token: dict(embedding.vectors) for token, embedding in self.embeddings.items()}
        for step in self.steps if self.trainable else ():
            found[step.token][step.component] = step.source().detach().clone()
        return {token: Embedding(token, vectors) for token, vectors in found.items()}


def tokenizer_of(owner: Any, component: str) -> Any | None:
    """The tokenizer of a text encoder, also within a processor; None where the pipeline has none for it."""
    if "text_encoder" not in component or component.endswith("_out"):
        return None
    found = getattr(owner, component.replace("text_encoder", "tokenizer"), None)
    return getattr(found, "tokenizer", None) or found
