"""A model with an adapter's parameters as its own, for what wraps modules: accelerate, DDP, FSDP2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn


class TrainedModel(nn.Module):
    """Calls a model; its trainable parameters are the adapter's. The model's own are there too, frozen, so that FSDP
    spreads them as well.

    Its `state_dict` is for checkpoints of the wrapper's own kind; a file of the adapter is what `pipe.adapters.save`
    writes.
    """

    def __init__(self, model: nn.Module, trained: Sequence[nn.Module], forward: Callable[..., Any] | None) -> None:
        """trained: the modules that hold the adapter's parameters. forward: what is called in place of the model."""
        super().__init__()
        self.model = model
        self.adapter = nn.ModuleList(trained)
        self._call = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward, or the one that was given."""
        return (self._call or self.model)(*args, **kwargs)
