"""`diffadapt.pipeline_for(source)`: the pipeline that an adapter was trained on, with the adapter in it."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from diffadapt.adapter import Adapter
from diffadapt.errors import SourceError
from diffadapt.families.repositories import REPOSITORIES
from diffadapt.inject.scaling import Strength
from diffadapt.io.hub import client_errors, is_hub_id
from diffadapt.io.plain_json import clip
from diffadapt.pipeline import enable, load_adapter
from diffadapt.reading import read_adapter

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_INDEX, _CARD = "model_index.json", "README.md"
# Header keys that name a model: exactly, or by a file name or an id that its user had.
_NAMES = ("base_model", "base_model_name_or_path", "modelspec.base_model", "ss_sd_model_name", "ss_base_model_version")
_CHECKPOINT = re.compile(r"\.(safetensors|ckpt|pt|pth|bin|gguf)$", re.IGNORECASE)
_LARGEST_CARD = 1 << 20
_SHARED = ("token", "cache_dir", "local_files_only", "force_download")
"""Options of the Hub that hold for the adapter and for its base."""


class GuessedBaseWarning(UserWarning):
    """An adapter does not name a base that can be fetched, and its family's usual one was taken."""


class Base(NamedTuple):
    """A pipeline to try: a folder or a Hub id. said_by: what names it. revision: of the repository, if that is told."""

    place: str
    said_by: str
    revision: str | None = None


def pipeline_for(
    source: str | os.PathLike[str] | Mapping[str, Tensor] | Adapter,
    *,
    base: str | os.PathLike[str] | None = None,
    adapter_name: str | None = None,
    weight: Strength = 1.0,
    trainable: bool = False,
    strict: bool = False,
    weight_name: str | None = None,
    subfolder: str | None = None,
    adapter_revision: str | None = None,
    **options: Any,
) -> DiffusionPipeline:
    """Build the pipeline that an adapter names as its base, enable it, and load the adapter into it.

    source, weight_name, subfolder: as in `read_adapter`; adapter_revision: of its repository.
    base: a folder or a Hub id, whatever the adapter says. Else what names it: PEFT's config, the file's header, the
        model card beside the file or in its repository; where that is nothing that can be fetched, the repository that
        the adapter's family usually means, with a `GuessedBaseWarning`.
    adapter_name, weight, trainable, strict: as in `load_adapter`.
    options: of `DiffusionPipeline.from_pretrained` (`torch_dtype`, `variant`, `revision`, ...). `token`, `cache_dir`,
        `local_files_only` and `force_download` hold for the adapter too.

    Raises SourceError where the base cannot be found or fetched, and what `read_adapter` and `load_adapter` raise.
    """
    reading = {name: options[name] for name in _SHARED if name in options}
    reading |= {"weight_name": weight_name, "subfolder": subfolder, "revision": adapter_revision}
    adapter = read_adapter(source, **reading)
    bases = [Base(os.fspath(base), "base=")] if base is not None else list(_named(source, adapter, reading))
    pipe = enable(_build(bases, adapter, options, guess=base is None))
    # Where names and shapes fit several families, the pipeline decides: the adapter is read again for it.
    certain = len(adapter.candidates) <= 1 or isinstance(source, Adapter)
    load_adapter(
        pipe, adapter if certain else source, adapter_name=adapter_name, weight=weight, trainable=trainable,
        strict=strict, **({} if certain else reading),
    )  # fmt: skip
    return pipe


def _named(source: object, adapter: Adapter, reading: Mapping[str, Any]) -> Iterator[Base]:
    """What the adapter's own files name as its base, the most exact first."""
    config = (adapter.origin.config if adapter.origin is not None else None) or {}
    told, revision = config.get("base_model_name_or_path"), config.get("revision")
    if isinstance(told, str) and told:
        yield Base(told, "adapter_config.json", revision if isinstance(revision, str) else None)
    for key in _NAMES:
        if value := adapter.metadata.raw.get(key, "").strip():
            yield Base(value, f"{key} of the header")
    for value in _of_card(_card(source, adapter, reading)):
        yield Base(value, "the model card")


def _build(bases: list[Base], adapter: Adapter, options: Mapping[str, Any], *, guess: bool) -> DiffusionPipeline:
    """The pipeline of the first base that there is; the family's, with a warning, where there is none."""
    seen: list[str] = []
    for base in bases:
        place = _place(base.place)
        why = "which is no folder here and no Hub id"
        if place is not None:
            pipe, why = _fetched(base._replace(place=place), options)
            if pipe is not None:
                return pipe
        seen.append(f"{base.said_by} names {clip(base.place)}, {why}")
    usual = REPOSITORIES.get(adapter.family or "") if guess else None
    what = "; ".join(seen) or "no file names the base"
    if usual is None:
        family = f"family {adapter.family}" if adapter.family else "no known family"
        raise SourceError(
            f"{adapter.source} ({family}): {what}. Pass base=, a folder or a Hub id in Diffusers' layout; of a "
            "checkpoint in one file, make the pipeline with from_single_file and use diffadapt.enable."
        )
    warnings.warn(
        f"{adapter.source}: {what}. Took {usual}, the usual base of {adapter.family}; pass base= for another.",
        GuessedBaseWarning,
        stacklevel=4,
    )
    pipe, why = _fetched(Base(usual, f"family {adapter.family}"), options)
    if pipe is None:
        raise SourceError(f"{usual}: the usual base of {adapter.family}, {why}. Pass base=, a folder or a Hub id.")
    return pipe


def _place(text: str) -> str | None:
    """The pipeline's folder or the Hub id that a name stands for; None where it can be neither.

    PEFT and Diffusers note the folder of the model itself, which lies in its pipeline's.
    """
    try:
        path = Path(text).expanduser()
        folder = next((place for place in (path, path.parent) if (place / _INDEX).is_file()), None)
    except (OSError, ValueError, RuntimeError):
        return None
    if folder is not None and path.is_dir():
        return str(folder)
    return text if is_hub_id(text) and not _CHECKPOINT.search(text) else None


def _fetched(base: Base, options: Mapping[str, Any]) -> tuple[DiffusionPipeline | None, str]:
    """The pipeline of a base, or None and why there is none of this name.

    Raises SourceError where there may be one that cannot be had now: gated, offline, broken.
    """
    from diffusers import DiffusionPipeline
    from huggingface_hub import errors

    said = {"revision": base.revision} if base.revision else {}
    try:
        pipe: DiffusionPipeline = DiffusionPipeline.from_pretrained(base.place, **{**said, **options})
    except client_errors() as error:
        causes = list(_causes(error))
        missing = any(isinstance(cause, errors.RepositoryNotFoundError) for cause in causes)
        if any(isinstance(cause, errors.GatedRepoError) for cause in causes):
            text = "is gated: accept its conditions on its page, then log in or pass token="
        elif missing:
            return None, "which does not exist on the Hub, or is private and needs token="
        elif any(type(cause) is errors.EntryNotFoundError or _is_remote_entry(cause) for cause in causes):
            return None, f"which holds no pipeline ({_INDEX})"
        else:
            text = f"could not be built ({type(error).__name__}: {clip(str(error))}). Check the network, or pass base="
        raise SourceError(f"{base.place} (named by {base.said_by}) {text}.") from error
    return pipe, ""


def _is_remote_entry(error: BaseException) -> bool:
    """Whether the Hub itself says that a file is not there; the cache, that it has none, says less."""
    from huggingface_hub import errors

    return isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _card(source: object, adapter: Adapter, reading: Mapping[str, Any]) -> Path | None:
    """The model card of the adapter: beside its file, or in its repository on the Hub."""
    beside = adapter.path.with_name(_CARD) if adapter.path is not None else None
    if beside is not None and beside.is_file():
        return beside
    text = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    if not isinstance(text, str) or not is_hub_id(text) or Path(text).exists():
        return None
    from huggingface_hub import hf_hub_download

    hub = {name: reading[name] for name in (*_SHARED, "revision") if reading.get(name) is not None}
    try:
        return Path(hf_hub_download(text, _CARD, **hub))
    except client_errors():
        return None  # a repository without a card


def _of_card(path: Path | None) -> tuple[str, ...]:
    """The `base_model` of a card's front matter, one or several; () where it has none that can be read."""
    from huggingface_hub.repocard import metadata_load
    from yaml import YAMLError

    try:
        if path is None or path.stat().st_size > _LARGEST_CARD:
            return ()
        front = metadata_load(path)
    except (OSError, ValueError, YAMLError, RecursionError):
        return ()
    told = front.get("base_model") if isinstance(front, dict) else None
    values = told if isinstance(told, list) else [told]
    return tuple(value for value in values if isinstance(value, str) and value)
