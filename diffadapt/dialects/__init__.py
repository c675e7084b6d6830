"""Dialects by name, in the order in which they look at a file's keys. A new one: its file and a line here."""

from __future__ import annotations

from collections.abc import Collection

from diffadapt.dialects.attention_processors import AttentionProcessors
from diffadapt.dialects.bare import Bare
from diffadapt.dialects.base import Dialect, Facts, Key, Recognition
from diffadapt.dialects.comfy import Comfy
from diffadapt.dialects.diffusers import Diffusers
from diffadapt.dialects.kohya import Kohya, KohyaOFT
from diffadapt.dialects.lycoris import Lycoris
from diffadapt.dialects.onetrainer import OneTrainer
from diffadapt.dialects.peft import Peft
from diffadapt.dialects.xlabs import XLabs
from diffadapt.errors import DialectError

DIALECTS: tuple[Dialect, ...] = (
    KohyaOFT(), Lycoris(), Kohya(), OneTrainer(), XLabs(), AttentionProcessors(), Peft(), Comfy(), Diffusers(), Bare(),
)  # fmt: skip

__all__ = ["DIALECTS", "Dialect", "Facts", "Key", "Recognition", "dialect_named", "recognise"]


def recognise(keys: Collection[str]) -> tuple[Dialect, Recognition] | None:
    """The first dialect that claims the keys, and why; None where none does."""
    for dialect in DIALECTS:
        recognition = dialect.recognise(keys)
        if recognition is not None:
            return dialect, recognition
    return None


def dialect_named(name: str) -> Dialect:
    """The dialect of this name. Raises DialectError for a name that none has."""
    for dialect in DIALECTS:
        if dialect.name == name:
            return dialect
    raise DialectError(f"There is no dialect {name!r}; choose one of {', '.join(d.name for d in DIALECTS)}.")
