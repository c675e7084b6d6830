"""The contract of a dialect: recognise a file by its keys, take each key apart, and write keys back."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from diffadapt.adapter import TargetKey
from diffadapt.algorithms.bank import Bank
from diffadapt.algorithms.base import Context
from diffadapt.dialects.roles import split_role
from diffadapt.families.base import Family

Slot = str
"""What a dialect calls a part of the pipeline: "denoiser" where the prefix says no more, else "unet", "transformer",
"controlnet", "text_encoder", "text_encoder_2", "text_encoder_3", "clip_l", "clip_g", "clip_h", "t5xxl", ... Families
turn slots into components."""


class Key(NamedTuple):
    """A file's key, taken apart.

    slot: what the prefix says, or None where the key does not say (`base_model.model.`, `lycoris_`).
    module: the module as the file names it, `flat` if its dots are underscores; empty for a tensor of the whole model
    (see Bank). role: canonical role (see TensorGroup).
    """

    slot: Slot | None
    module: str
    role: str
    flat: bool


@dataclass(frozen=True)
class Recognition:
    """Why a dialect claims a file: the deciding keys, in words."""

    evidence: str


@dataclass(frozen=True)
class Facts:
    """What a file holds beside its tensors.

    roles: every canonical role that occurs. metadata: the file's header. config: the JSON beside the file, or None.
    alpha: the caller's override. bank: the tensors that belong to no module but to all of them.
    """

    roles: frozenset[str] = frozenset()
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    alpha: float | None = None
    bank: Bank = field(default_factory=Bank)


ContextOf = Callable[[Slot | None, str], Context]
"""What the algorithms must know of a module (slot, name as the file has it)."""


class Dialect(ABC):
    """A way of naming the tensors of an adapter. Stateless; one file each; no maths."""

    name: ClassVar[str]

    @abstractmethod
    def recognise(self, keys: Collection[str]) -> Recognition | None:
        """Why this file is in this dialect, or None."""

    @abstractmethod
    def split(self, key: str) -> Key | None:
        """The parts of a key, or None where the key is not of this dialect."""

    @abstractmethod
    def contexts(self, facts: Facts) -> ContextOf:
        """The contexts of the file's modules: the writer, and the config with the patterns of each module applied."""

    @abstractmethod
    def join(self, target: TargetKey, role: str, family: Family | None) -> str:
        """The key of a Diffusers module's tensor in this dialect; the inverse of `split` and the family's names.

        Raises DialectError where the dialect has no name for the component or the role.
        """


class Prefixed(Dialect):
    """A dialect whose keys begin with the component. prefixes: the beginning of a key -> the slot it says, if any."""

    prefixes: ClassVar[Mapping[str, Slot | None]]

    def recognise(self, keys: Collection[str]) -> Recognition | None:
        return prefixed(keys, self.prefixes)

    def split(self, key: str) -> Key | None:
        ending = split_role(key)
        if ending is None:
            return None
        for prefix, slot in self.prefixes.items():
            if ending.module.startswith(prefix):
                return self.behind(slot, ending.module[len(prefix) :], ending.role)
        return None

    @abstractmethod
    def behind(self, slot: Slot | None, module: str, role: str) -> Key:
        """The key whose prefix and role are taken off."""


COMPONENT_WORD = re.compile(
    r"(?:transformer|unet)_(?=(?:single_)?transformer_blocks_|(?:down|up)_blocks_|mid_block_|(?:double|single)_blocks_)"
)
"""The component in front of a flat name, where a whole pipeline was wrapped: `transformer_transformer_blocks_0_...`."""


def prefixed(keys: Collection[str], prefixes: Iterable[str]) -> Recognition | None:
    """A recognition by the beginnings of keys, naming those that occur."""
    begins = tuple(prefixes)
    found = [key for key in keys if key.startswith(begins)]
    if not found:
        return None
    seen = [prefix for prefix in begins if any(key.startswith(prefix) for key in found)]
    return Recognition(f"{len(found)} of {len(keys)} keys begin with {' or '.join(seen)} (e.g. {found[0]!r})")


def evidence(keys: Collection[str], deciding: Callable[[str], bool], words: str) -> Recognition | None:
    """A recognition that counts the deciding keys and shows one, or None where there is none."""
    found = [key for key in keys if deciding(key)]
    return Recognition(f"{len(found)} of {len(keys)} keys {words} (e.g. {found[0]!r})") if found else None
