"""What is worked out of one file's structure holds for every file alike: equal keys, types, shapes and offsets, which
is seen without parsing a header; and equal scalars, config and answers of the metadata.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Generic, TypeVar

from diffadapt.io.headers import HeaderText, Small, read_small, small_tensors
from diffadapt.io.safetensors import SafetensorsHeader

Found = TypeVar("Found")


@dataclass(frozen=True)
class Variant(Generic[Found]):
    """What was found for these scalars and for what lies beside the structure, where the metadata answer so.

    asked: metadata that were looked at -> what they say, None where they are missing.
    """

    scalars: bytes
    beside: object
    asked: Mapping[str, str | None]
    found: Found


@dataclass
class _Structure(Generic[Found]):
    """small: the scalars. data_bytes: the size of the data section. metadata: where they were a part of what was
    compared, else None. variants: the latest first."""

    small: Small
    data_bytes: int
    metadata: Mapping[str, str] | None
    variants: list[Variant[Found]] = field(default_factory=list)


@dataclass(frozen=True)
class Seen(Generic[Found]):
    """A file beside what is known of its structure. scalars: their bytes, one after the other; none of a remote file.
    parsed: the header, where it had to be."""

    header: HeaderText
    metadata: Mapping[str, str]
    scalars: bytes
    parsed: SafetensorsHeader | None
    structure: _Structure[Found]

    def parse(self) -> SafetensorsHeader:
        """The header, checked in full; errors as for `read_header`."""
        return self.parsed or self.header.parse()

    def small(self) -> dict[str, bytes]:
        """The scalars by key."""
        return self.structure.small.by_key(self.scalars)

    def known(self, beside: object) -> Variant[Found] | None:
        """What was found for a file that differs in nothing that was asked. beside: see `Variant`."""
        for variant in self.structure.variants:
            alike = variant.scalars == self.scalars and variant.beside == beside
            if alike and all(self.metadata.get(key) == value for key, value in variant.asked.items()):
                return variant
        return None


class Structures(Generic[Found]):
    """Remembers structures."""

    def __init__(self, structures: int, variants: int, sampled: bool = False) -> None:
        """How many are remembered, and how many variants of each. sampled: see `small_tensors`."""
        self._most, self._variants, self._sampled = structures, variants, sampled
        self._known: OrderedDict[bytes, _Structure[Found]] = OrderedDict()

    def see(self, header: HeaderText) -> Seen[Found]:
        """A file beside what is known. Errors as for `read_header`, for which a known structure is not parsed again:
        its text is as it was, and so is the size of its data."""
        metadata, rest = header.parts()
        digest = blake2b(rest).digest()
        parsed = None
        known = self._known.get(digest)
        if known is None or header.file_bytes not in (None, 8 + len(header.text) + known.data_bytes):
            parsed = header.parse()
            own = parsed.metadata if metadata is None else None
            known = _Structure(small_tensors(parsed.tensors, self._sampled), parsed.file_bytes - parsed.data_start, own)
            self._known[digest] = known
        self._known.move_to_end(digest)
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        scalars = b""
        if header.path is not None:
            # By themselves, and not through a mapping: each would bring its page, and those around it, into memory.
            scalars = read_small(header.path, 8 + len(header.text), known.small)
        return Seen(header, (metadata if known.metadata is None else known.metadata) or {}, scalars, parsed, known)

    def remember(self, seen: Seen[Found], variant: Variant[Found]) -> None:
        """Remember what was found for a file."""
        seen.structure.variants[:0] = [variant]
        del seen.structure.variants[self._variants :]
