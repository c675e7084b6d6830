"""What reading a source gives: raw tensors by raw key, with what the file says about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from diffadapt.errors import NonFiniteError
from diffadapt.io.finite import has_nonfinite
from diffadapt.io.mapped import MappedTensors

_SHOWN = 3


@dataclass(frozen=True)
class RawCheckpoint:
    """Tensors as a source holds them, before any dialect has looked at the keys.

    tensors: by raw key; views of the mapped file where there is one.
    metadata: the safetensors `__metadata__`, or the plain values beside the tensors of a pickle; else empty.
    config: the JSON that lies beside the file (`adapter_config.json`; `lycoris_config.json` under that key), else None.
    name: a short name for messages, never an absolute path.
    path: the file on disk, or None for a state dict.
    """

    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    name: str = "state dict"
    path: Path | None = None

    def check_finite(self, keys: Iterable[str] | None = None) -> None:
        """Raise `NonFiniteError` if a tensor (of `keys`, or any) holds NaN or infinity; it names the first of them.

        Alphas are left to the algorithms: ai-toolkit saves infinity beside full Kronecker factors, where it is unused.
        """
        found = self._nonfinite(self.tensors if keys is None else dict.fromkeys(keys))
        bad = [key for key in found if not (key.endswith(".alpha") and self.tensors[key].numel() == 1)]
        if not bad:
            return
        shown = ", ".join(repr(key) for key in bad[:_SHOWN]) + (", ..." if len(bad) > _SHOWN else "")
        raise NonFiniteError(
            f"{self.name}: {len(bad)} of {len(self.tensors)} tensors hold NaN or infinite values: {shown}. "
            "Expected finite numbers only; the training run diverged or the file is damaged: use an earlier checkpoint."
        )

    def _nonfinite(self, keys: Iterable[str]) -> list[str]:
        """Keys of the tensors with non-finite values, in the order of `keys`."""
        if not isinstance(self.tensors, MappedTensors):
            return [key for key in keys if has_nonfinite(self.tensors[key])]
        wanted = list(keys)
        bad: set[str] = set()
        for run, flat in self.tensors.runs(wanted):
            if has_nonfinite(flat):
                bad.update(key for key in run if has_nonfinite(self.tensors[key]))
        return [key for key in wanted if key in bad]
