"""Trainable tokens: single rows of an embedding are replaced.

`trainable_tokens_delta` (n, dim) are, despite the name, the new rows of the tokens listed in the config's
`token_indices`, or in LoRA's `trainable_token_indices` (a list, or a list by module). Source: PEFT
`tuners/trainable_tokens`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class TrainedTokens(Delta):
    """vectors (n, dim) that replace the rows `tokens` of an embedding."""

    algorithm: ClassVar[str] = "tokens"

    vectors: Tensor
    tokens: tuple[int, ...]

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        vectors = group.take_optional("trainable_tokens_delta")
        if vectors is None:
            return None
        listed = context.config.get("token_indices") or context.config.get("trainable_token_indices")
        if isinstance(listed, Mapping):
            listed = next((value for name, value in listed.items() if f".{group.name}".endswith(f".{name}")), None)
        whole = isinstance(listed, (list, tuple)) and all(type(token) is int and token >= 0 for token in listed)
        if not listed or not whole or vectors.ndim != 2 or len(listed) != len(vectors):
            raise AlgorithmError(
                f"{group.name}: trainable_tokens_delta {tuple(vectors.shape)} needs as many token indices in "
                f"adapter_config.json; seen {listed!r}."
            )
        return cls(vectors, tuple(listed))

    def weight_delta(self, weight: Tensor) -> Tensor:
        rows = torch.tensor(self.tokens, device=weight.device)
        change = f32(self.vectors, weight) - f32(weight[rows])
        return torch.zeros(weight.shape, device=weight.device).index_put((rows,), change)

    def check(self, layer: Layer) -> None:
        if layer.kind != "embedding" or layer.shape[1] != self.vectors.shape[1] or max(self.tokens) >= layer.shape[0]:
            raise AlgorithmError(
                f"tokens: {tuple(self.vectors.shape)} for tokens up to {max(self.tokens)} does not fit a {layer.kind} "
                f"of {layer.shape}."
            )

    def peft_fields(self, module: str) -> Fields | None:
        """Beside a LoRA the tokens are its `trainable_token_indices`."""
        return {"peft_type": "TRAINABLE_TOKENS", "token_indices": self.tokens}

    def tensors(self) -> dict[str, Tensor]:
        """The vectors; which tokens they are is the config's."""
        return {"trainable_tokens_delta": self.vectors}
