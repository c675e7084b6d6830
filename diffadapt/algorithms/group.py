"""What an algorithm is given to read: the tensors of one module, and what their file says beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diffadapt.algorithms.bank import Bank
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True)
class Context:
    """What the maths needs beside the tensors of a module.

    writer: whose conventions hold where tensors alone do not tell: "kohya", "kohya_oft", "lycoris", "peft",
        "diffusers", "onetrainer", "ai_toolkit".
    config: the PEFT config (or `lora_adapter_metadata`, or `lycoris_config`) with the patterns of this module applied:
        `r` and `lora_alpha` are this module's own.
    alpha: overrides every alpha of the file (for files that lost theirs), or None.
    metadata: the file's own header.
    bank: what this module shares with the others of the file (some PEFT methods).
    """

    writer: str = "kohya"
    config: Mapping[str, Any] = field(default_factory=dict)
    alpha: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    bank: Bank = field(default_factory=Bank)

    @property
    def options(self) -> Mapping[str, Any]:
        """The trainer's options: the config's, and below them sd-scripts' `ss_network_args` (values are strings)."""
        try:
            arguments = json.loads(self.metadata.get("ss_network_args") or "{}")
        except ValueError:
            arguments = {}
        return (arguments if isinstance(arguments, dict) else {}) | dict(self.config)


class TensorGroup:
    """The tensors of one module by canonical role; a tensor that nobody takes is an error later, never lost.

    Canonical roles are Kohya's and LyCORIS' names without `.weight`: `lora_down`, `lora_up`, `lora_mid`, `alpha`,
    `dora_scale`, `hada_w1_a`, `lokr_w2`, `oft_blocks`, `rescale`, `a1`, `diff`, `w_norm`, ...; PEFT's where there is no
    other name: `oft_R`, `boft_s`, `ia3_l`, `lora_E`. Dialects translate (`lora_A` -> `lora_down`).
    """

    def __init__(self, name: str, tensors: Mapping[str, Tensor], keys: Mapping[str, str] | None = None) -> None:
        """name: the module as the file calls it; keys: role -> the file's key, for messages."""
        self.name = name
        self.keys = dict(keys or {})
        self._tensors = dict(tensors)

    def __contains__(self, role: str) -> bool:
        return role in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def peek(self, role: str) -> Tensor | None:
        """The tensor of a role, left in the group."""
        return self._tensors.get(role)

    def take(self, role: str) -> Tensor:
        """The tensor of a role, read once. Raises AlgorithmError where it is missing (half a pair)."""
        if role not in self._tensors:
            near = ", ".join(sorted(self.keys.get(r, r) for r in self._tensors)) or "nothing else"
            raise AlgorithmError(
                f"{self.name}: the tensor '{role}' is missing; the file has {near}. "
                "The file is incomplete: save or download it again."
            )
        return self._tensors.pop(role)

    def take_optional(self, role: str) -> Tensor | None:
        return self._tensors.pop(role, None)

    def take_alpha(self, rank: int, context: Context) -> float:
        """The alpha of a low-rank module: the override, the file's, the config's, else the rank (scale 1).

        A stored alpha of 0 means "not set" to every trainer of the LoRA family, and gives the rank too.
        """
        stored = self.take_optional("alpha")
        if context.alpha is not None:
            return context.alpha
        if stored is not None:
            value = float(stored.item()) if stored.numel() == 1 else float("nan")
            if value != value or value in (float("inf"), float("-inf")):
                raise AlgorithmError(f"{self.name}: alpha is {stored.tolist()!r}; expected one finite number.")
            return value or float(rank)
        configured = context.config.get("lora_alpha", context.config.get("alpha"))
        return float(configured) if configured else float(rank)
