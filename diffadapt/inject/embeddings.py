"""Textual-inversion vectors that come with an adapter: into the tokenizers, and out again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diffadapt.adapter import Adapter
from diffadapt.errors import TargetError

_TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", "text_encoder_3": "tokenizer_3"}


@dataclass
class InstalledEmbeddings:
    """The placeholders of one adapter on one pipeline.

    plan: (token, tokenizer name, text encoder name, vectors (n, dim)) for each encoder that has both.
    """

    steps: list[tuple[str, str, str, Tensor]] = field(default_factory=list)
    installed: list[tuple[str, str, str, Tensor]] = field(default_factory=list)

    @property
    def tokens(self) -> list[str]:
        return list(dict.fromkeys(token for token, *_ in self.steps))

    @classmethod
    def plan(cls, adapter: Adapter, owner: Any) -> InstalledEmbeddings:
        """What can be installed here. Raises TargetError for vectors of another width than the text encoder's."""
        steps = []
        for embedding in adapter.embeddings.values():
            for component, vectors in embedding.vectors.items():
                name = _TOKENIZERS.get(component)
                tokenizer, encoder = getattr(owner, name or "", None), getattr(owner, component, None)
                if name is None or tokenizer is None or encoder is None:
                    continue
                width = encoder.get_input_embeddings().weight.shape[-1]
                if vectors.shape[-1] != width:
                    raise TargetError(
                        f"{adapter.source}: the embedding '{embedding.token}' has width {vectors.shape[-1]}, the "
                        f"pipeline's {component} has {width}: it is for another model."
                    )
                steps.append((embedding.token, name, component, vectors.reshape(-1, width)))
        return cls(steps)

    def install(self, owner: Any) -> None:
        """Add the tokens and their vectors, through Diffusers' own textual-inversion code."""
        try:
            for token, tokenizer, encoder, vectors in self.steps:
                model = getattr(owner, encoder)
                owner.load_textual_inversion(
                    vectors.to(model.device, model.dtype), token=token,
                    tokenizer=getattr(owner, tokenizer), text_encoder=model,
                )  # fmt: skip
                self.installed.append((token, tokenizer, encoder, vectors))
        except (ValueError, RuntimeError) as error:
            self.uninstall(owner)
            raise TargetError(f"The embedding could not be added: {error}") from error

    def uninstall(self, owner: Any) -> None:
        """Take the tokens out again: the embedding matrix has its old rows and size."""
        for token, tokenizer, encoder, vectors in reversed(self.installed):
            # Diffusers splits a placeholder of several vectors into token, token_1, ..., and takes out those named.
            tokens = [token, *(f"{token}_{i}" for i in range(1, vectors.shape[0]))]
            owner.unload_textual_inversion(
                tokens=tokens, tokenizer=getattr(owner, tokenizer), text_encoder=getattr(owner, encoder)
            )
        self.installed = []
