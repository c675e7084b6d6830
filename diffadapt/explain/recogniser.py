"""Headers explained: of one file or of many thousands.

What recognition says is decided by keys, shapes, scalars and a few lines of metadata, and a collection of adapters
repeats these: each structure is worked out once, by reading stand-ins of its tensors exactly as a file is read, and
remembered together with what was asked of the metadata on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from diffadapt.adapter import Adapter
from diffadapt.dialects.peft_methods import refuse_method
from diffadapt.dialects.refusals import refuse
from diffadapt.errors import NotAnAdapterError, SourceError
from diffadapt.explain.build import of_structure, with_metadata
from diffadapt.explain.explanation import Explanation, Problem
from diffadapt.io.checkpoint import RawCheckpoint
from diffadapt.io.headers import HeaderText
from diffadapt.io.structures import Seen, Structures, Variant
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


class Recogniser:
    """Explains headers, and remembers structures. One for each process."""

    def __init__(self, sampled: bool = False) -> None:
        """sampled: alphas are read for one module of each kind only (see `headers.small_tensors`)."""
        self.sampled = sampled
        self._structures: Structures[Explanation] = Structures(_STRUCTURES, _VARIANTS, sampled)

    def explain(self, header: HeaderText) -> Explanation:
        """The explanation of a file by its header. Errors as for `read_adapter`."""
        seen = self._structures.see(header)
        known = seen.known(header.config)
        found = with_metadata(self._found(seen) if known is None else known.found, seen.metadata, header.config)
        sampled = bool(seen.structure.small.alike) and header.path is not None
        return replace(
            found, source=header.name, file_bytes=header.file_bytes, header_only=True, alphas_sampled=sampled
        )

    def _found(self, seen: Seen[Explanation]) -> Explanation:
        """What is worked out for this file now, and remembered for those that differ in nothing that was asked."""
        header, parsed, noted = seen.header, seen.parse(), Noted(seen.metadata)
        if not parsed.tensors:
            raise NotAnAdapterError(f"{header.name}: holds no tensors. Expected an adapter's weights.")
        local = header.path is not None
        raw = header.checkpoint(parsed, seen.small() if local else {})
        found = of_structure(read(replace(raw, metadata=noted)), alphas_read=local)
        if noted.unanswered:
            found = replace(found, problems=(*found.problems, _SPLIT))
        # An embedding that has no name in the file takes the file's own.
        if not noted.listed and not found.embeddings:
            self._structures.remember(seen, Variant(seen.scalars, header.config, noted.asked, found))
        return found


def read(raw: RawCheckpoint) -> Adapter:
    """The adapter that a checkpoint holds, by the steps of `read_adapter`; one that cannot be told is a SourceError."""
    refuse_method(raw.config, raw.name)
    refuse(raw.tensors.keys(), raw.name, raw.config)
    name = raw.path.stem if raw.path is not None else raw.name.rpartition("/")[2].removesuffix(".safetensors")
    try:
        return interpret(raw, name=name)
    except (NotImplementedError, RuntimeError) as error:
        # torch's, where a stand-in without storage is asked for its values.
        raise SourceError(
            f"{raw.name}: its header alone does not tell what it is ({type(error).__name__}). Read the file itself."
        ) from error
