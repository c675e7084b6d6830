"""Headers explained: of one file or of many thousands.

What recognition says is decided by keys, shapes, scalars and a few lines of metadata, and a collection of adapters
repeats these: each structure is worked out once, by reading stand-ins of its tensors exactly as a file is read, and
remembered together with what was asked of the metadata on the way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, NamedTuple

from diffadapt.adapter import Adapter
from diffadapt.dialects.peft_methods import refuse_method
from diffadapt.dialects.refusals import refuse
from diffadapt.errors import NotAnAdapterError, SourceError
from diffadapt.explain.build import of_structure, with_metadata
from diffadapt.explain.explanation import Explanation, Problem
from diffadapt.io.checkpoint import RawCheckpoint
from diffadapt.io.headers import HeaderText, Small, read_small, small_tensors
from diffadapt.io.safetensors import SafetensorsHeader
from diffadapt.reading import interpret

_STRUCTURES = 1024
_VARIANTS = 16
# What only tells of the training and is never asked for to decide anything; different in every file.
_TOLD_ONLY = frozenset(
    {"ss_tag_frequency", "modelspec.trigger_phrase", "modelspec.trigger_word", "trigger_word", "trigger_words",
     "ss_trigger_word", "modelspec.comment"}
)  # fmt: skip


_SPLIT_QKV = "split_qkv"


class Noted(Mapping[str, str]):
    """Metadata that note what is asked of them."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self._metadata = metadata
        self.asked: dict[str, str | None] = {}
        self.listed = False
        self.unanswered = False

    def __getitem__(self, key: str) -> str:
        if key in _TOLD_ONLY:
            raise KeyError(key)
        self.asked[key] = self._metadata.get(key)
        value = self._metadata[key]
        if key == "ss_network_args" and _SPLIT_QKV in value:
            # Whether it holds for a module is seen in its values, and stand-ins have none.
            self.unanswered = True
            return value.replace(_SPLIT_QKV, "")
        return value

    def __iter__(self) -> Iterator[str]:
        self.listed = True
        return (key for key in self._metadata if key not in _TOLD_ONLY)

    def __len__(self) -> int:
        self.listed = True
        return len(self._metadata.keys() - _TOLD_ONLY)


_SPLIT = Problem(
    "alpha", "trained with split_qkv: fused modules may have 3 or 4 times this scale, which only their values tell"
)


class _Variant(NamedTuple):
    """One explanation of a structure, for these scalars, this config and these answers of the metadata."""

    scalars: bytes
    config: Mapping[str, Any] | None
    asked: Mapping[str, str | None]
    found: Explanation


@dataclass
class _Structure:
    """What is remembered of files with equal keys, types, shapes and offsets.

    metadata: where they were a part of what was compared, else None. data_bytes: the size of the data section.
    """

    small: Small
    data_bytes: int
    metadata: Mapping[str, str] | None
    variants: list[_Variant] = field(default_factory=list)


class Recogniser:
    """Explains headers, and remembers structures. One for each process."""

    def __init__(self, sampled: bool = False) -> None:
        """sampled: alphas are read for one module of each kind only (see `headers.small_tensors`)."""
        self.sampled = sampled
        self._structures: OrderedDict[bytes, _Structure] = OrderedDict()

    def explain(self, header: HeaderText) -> Explanation:
        """The explanation of a file by its header. Errors as for `read_adapter`."""
        metadata, rest = header.parts()
        digest = blake2b(rest).digest()
        known = self._structures.get(digest)
        parsed: SafetensorsHeader | None = None
        if known is None or header.file_bytes not in (None, 8 + len(header.text) + known.data_bytes):
            parsed = header.parse()
            if not parsed.tensors:
                raise NotAnAdapterError(f"{header.name}: holds no tensors. Expected an adapter's weights.")
            own = parsed.metadata if metadata is None else None
            known = _Structure(small_tensors(parsed.tensors, self.sampled), parsed.file_bytes - parsed.data_start, own)
            self._remember(digest, known)
        metadata = metadata if known.metadata is None else known.metadata
        found = self._found(header, known, metadata or {}, parsed)
        found = with_metadata(found, metadata or {}, header.config)
        sampled = bool(known.small.alike) and header.path is not None
        return replace(
            found, source=header.name, file_bytes=header.file_bytes, header_only=True, alphas_sampled=sampled
        )

    def _remember(self, digest: bytes, known: _Structure) -> None:
        self._structures[digest] = known
        if len(self._structures) > _STRUCTURES:
            self._structures.popitem(last=False)

    @staticmethod
    def _found(
        header: HeaderText, known: _Structure, metadata: Mapping[str, str], parsed: SafetensorsHeader | None
    ) -> Explanation:
        """What was worked out for a file that differs in nothing that was asked, or for this one now."""
        local = header.path is not None
        scalars = read_small(header.path, 8 + len(header.text), known.small) if header.path is not None else b""
        for variant in known.variants:
            alike = variant.scalars == scalars and variant.config == header.config
            if alike and all(metadata.get(key) == value for key, value in variant.asked.items()):
                return variant.found
        noted = Noted(metadata)
        raw = header.checkpoint(parsed or header.parse(), known.small.by_key(scalars) if local else {})
        found = of_structure(read(replace(raw, metadata=noted)), alphas_read=local)
        if noted.unanswered:
            found = replace(found, problems=(*found.problems, _SPLIT))
        # An embedding that has no name in the file takes the file's own.
        if not noted.listed and not found.embeddings:
            known.variants[:0] = [_Variant(scalars, header.config, noted.asked, found)]
            del known.variants[_VARIANTS:]
        return found


def read(raw: RawCheckpoint) -> Adapter:
    """The adapter that a checkpoint holds, by the steps of `read_adapter`; one that cannot be told is a SourceError."""
    refuse_method(raw.config, raw.name)
    refuse(raw.tensors.keys(), raw.name)
    name = raw.path.stem if raw.path is not None else raw.name.rpartition("/")[2].removesuffix(".safetensors")
    try:
        return interpret(raw, name=name)
    except (NotImplementedError, RuntimeError) as error:
        # torch's, where a stand-in without storage is asked for its values.
        raise SourceError(
            f"{raw.name}: its header alone does not tell what it is ({type(error).__name__}). Read the file itself."
        ) from error
