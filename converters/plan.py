"""What a conversion is asked for: the same for every file of a batch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any

import torch

from diffadapt.dialects import dialect_named
from diffadapt.errors import ConvertError

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
PARTS = ("unet", "te")
"""What `only` may keep: what runs at every step (whatever its class), or the text encoders."""


@dataclass(frozen=True)
class Plan:
    """What is made of every file.

    to: the dialect; None: each file's own. dtype: "fp16", "bf16", "fp32"; None: as it is. algorithm: "lora", exact
    where that is possible, else of `rank`; None: as it is. rank, ratio, share, cumulative: smaller ranks by the rules
    of `diffadapt.resize`. only: "unet" or "te". strip: drop metadata but what the numbers' meaning hangs on, and what
    `keep` names (patterns). strict: a key that no delta explains is an error. verify: read the file again and compare.
    check: refuse NaN and infinity, which reads all data. Raises ConvertError for values that do not go together.
    """

    to: str | None = None
    dtype: str | None = None
    algorithm: str | None = None
    rank: int | None = None
    ratio: float | None = None
    share: float | None = None
    cumulative: float | None = None
    only: str | None = None
    strip: bool = False
    keep: tuple[str, ...] = ()
    strict: bool = False
    verify: bool = False
    check: bool = False

    def __post_init__(self) -> None:
        if self.to is not None:
            dialect_named(self.to)
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("algorithm", self.algorithm, ("lora",))
        _one_of("only", self.only, PARTS)
        if self.keep and not self.strip:
            raise ConvertError("keep= names metadata that strip=True leaves; without it all are kept.")
        if self.rank is not None and self.rank < 1:
            raise ConvertError(f"rank is {self.rank}; expected at least 1.")

    @property
    def resizes(self) -> bool:
        """Whether ranks are made smaller."""
        return any(value is not None for value in (self.ratio, self.share, self.cumulative)) or (
            self.rank is not None and self.algorithm is None
        )

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults, for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v}

    @property
    def key(self) -> str:
        """16 hex that stand for the plan in journals and files."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def _one_of(name: str, value: str | None, choices: Any) -> None:
    if value is not None and value not in choices:
        raise ConvertError(f"{name} is {value!r}; expected one of {', '.join(choices)}.")
