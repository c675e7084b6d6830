"""The contract of a dialect: recognise a file by its keys, take each key apart, and write keys back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from diffadapt.algorithms.base import Context


@dataclass(frozen=True)
class Key:
    """A file's key, taken apart.

    component: "unet", "text_encoder", ... as the prefix says, or None where the key does not say (`base_model.model.`).
    module: the module as the file names it, `flat` if its dots are underscores. role: canonical role (see TensorGroup).
    """

    component: str | None
    module: str
    role: str
    flat: bool


@dataclass(frozen=True)
class Recognition:
    """Why a dialect claims a file: the deciding keys, in words."""

    evidence: str


class Dialect(ABC):
    """A way of naming the tensors of an adapter. Stateless; one file each; no maths."""

    name: ClassVar[str]

    @abstractmethod
    def recognise(
        self, keys: Collection[str], metadata: Mapping[str, str], config: Mapping[str, Any] | None
    ) -> Recognition | None:
        """Why this file is in this dialect, or None."""

    @abstractmethod
    def split(self, key: str) -> Key | None:
        """The parts of a key, or None where the key is not of this dialect."""

    @abstractmethod
    def context(
        self, key: Key, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], config: Mapping[str, Any] | None
    ) -> Context:
        """What the algorithms must know of this module: the writer, and the config with its patterns applied."""

    @abstractmethod
    def join(self, component: str, module: str, role: str) -> str:
        """The key of a Diffusers module's tensor in this dialect; the inverse of `split` and the family's names."""
