"""The one way in: a path, a folder, a Hub id, a state dict or an already read checkpoint becomes a `RawCheckpoint`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import cast

import torch

from diffadapt.errors import NotAnAdapterError, SourceError, UnsafeFileError
from diffadapt.io.checkpoint import RawCheckpoint
from diffadapt.io.folder import SUFFIXES, choose, gather_config
from diffadapt.io.hub import HubOptions, fetch, is_hub_id
from diffadapt.io.pickles import read_pickle
from diffadapt.io.plain_json import clip, read_object
from diffadapt.io.safetensors import read_safetensors
from diffadapt.io.sniff import FileKind, sniff

Source = str | os.PathLike[str] | Mapping[str, torch.Tensor] | RawCheckpoint

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def read_checkpoint(
    source: Source,
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    use_safetensors: bool | None = None,
    **ignored: object,
) -> RawCheckpoint:
    """Read the raw tensors of an adapter; no dialect is looked at yet.

    source: a file, a folder (PEFT, Diffusers, LyCORIS, or with one adapter file), a Hub id "owner/name", a state dict,
        or a `RawCheckpoint`, which is given back as it is. A local path wins over a Hub id of the same text.
    weight_name, subfolder: the file within a folder or repository, where there are several.
    revision, token, cache_dir, local_files_only, force_download: as in Diffusers; for Hub ids only.
    use_safetensors: True refuses pickles. False and None read both; a pickle never runs code here.
    ignored: further options that Diffusers' loaders take (`proxies`, `user_agent`); they do nothing.

    Raises `SourceError` for what cannot be found or read, `UnsafeFileError` for what breaks a safety limit,
    `NotAnAdapterError` for what is plainly something else.
    """
    if isinstance(source, RawCheckpoint):
        return source
    if isinstance(source, Mapping):
        return _state_dict(source)
    path = _as_text(source)
    options = HubOptions(revision, token, cache_dir, local_files_only, force_download)
    if _exists(Path(path).expanduser()):
        return _local(Path(path).expanduser(), weight_name, subfolder, use_safetensors is True)
    return _from_hub(path, weight_name, subfolder, options, use_safetensors is True)


def _as_text(source: object) -> str:
    """Give the text of a path or Hub id."""
    if not isinstance(source, str | os.PathLike):
        raise SourceError(
            f"A {type(source).__name__} is no source of an adapter. Expected a path, a Hub id or a state dict."
        )
    text = os.fsdecode(source)
    if not text or not text.isprintable():
        raise SourceError(f"{clip(text)} is no path and no Hub id. Expected plain text.")
    return text


def _from_hub(
    repo: str, weight_name: str | None, subfolder: str | None, options: HubOptions, only_safe: bool
) -> RawCheckpoint:
    """Read an adapter of a Hub repository."""
    _check_hub_id(repo)
    files = fetch(repo, weight_name, subfolder, options)
    config = gather_config(tuple(files.configs), lambda name: read_object(files.configs[name], repo))
    return _file(files.weights, repo, config, only_safe)


def _exists(path: Path) -> bool:
    """Tell whether the path exists; one that the system cannot even look up does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _check_hub_id(text: str) -> None:
    """Refuse, with the reason, what is neither an existing path nor of a Hub id's form."""
    scheme = _SCHEME.match(text)
    if scheme:
        raise SourceError(
            f"A {scheme.group(1)}:// address is not opened. Download the file first and pass its path, "
            'or pass the Hub id "owner/name" with weight_name="file.safetensors".'
        )
    # A Hub name may end like a file, but a file that is meant and missing is by far the likelier case.
    if text.lower().endswith(SUFFIXES) or not is_hub_id(text):
        shown = PurePosixPath(text.replace("\\", "/")).name or text
        raise SourceError(
            f"{clip(shown)}: no such file or folder. Check the path; a Hub id would have the form owner/name."
        )


def _state_dict(source: Mapping[str, torch.Tensor]) -> RawCheckpoint:
    """Take an in-memory state dict after checking that it is one."""
    tensors: dict[str, torch.Tensor] = {}
    for key, value in cast(Mapping[object, object], source).items():
        if not isinstance(key, str):
            raise SourceError(f"state dict: key {clip(str(key))} is a {type(key).__name__}, expected text.")
        if not isinstance(value, torch.Tensor) or value.is_meta or value.layout != torch.strided:
            kind = f"{value.layout} {value.device}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise SourceError(f"state dict: {clip(key)} is a {kind}, expected a dense tensor with data.")
        tensors[key] = value
    if not tensors:
        raise NotAnAdapterError("state dict: is empty, expected tensors by name.")
    return RawCheckpoint(tensors)


def _local(path: Path, weight_name: str | None, subfolder: str | None, only_safe: bool) -> RawCheckpoint:
    """Read a file, or the adapter of a folder."""
    if not path.is_dir():
        beside = [entry.name for entry in path.parent.iterdir()] if os.access(path.parent, os.R_OK) else [path.name]
        choice = choose({path.name, *beside}, path.name, path.name)
        folder, name = path.parent, path.name
    else:
        folder = _within(path, subfolder or "", path.name)
        name = folder.name or "folder"
        if not folder.is_dir():
            raise SourceError(f"{path.name}: has no subfolder {clip(subfolder)}. Check subfolder=.")
        wanted = None if weight_name is None else _within(folder, weight_name, name).relative_to(folder).as_posix()
        choice = choose(_names(folder, wanted), wanted, name)
        name = PurePosixPath(choice.weights).name
    config = gather_config(choice.configs, lambda config_name: read_object(folder / config_name, name))
    return _file(folder / choice.weights, name, config, only_safe)


def _within(folder: Path, relative: str, name: str) -> Path:
    """Join a relative name, which must stay inside the folder."""
    parts = PurePosixPath(relative.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise SourceError(f"{name}: {clip(relative)} leaves the folder. Expected a name inside it.")
    return folder.joinpath(*parts.parts)


def _names(folder: Path, wanted: str | None) -> set[str]:
    """List the files of a folder and one level below (for the listing in errors), with `wanted` if it exists."""
    names = {path.relative_to(folder).as_posix() for pattern in ("*", "*/*") for path in folder.glob(pattern)}
    if wanted is not None and (folder / wanted).is_file():
        beside = (folder / wanted).parent
        names |= {path.relative_to(folder).as_posix() for path in beside.iterdir()}
    return {name for name in names if not (folder / name).is_dir()}


def _file(path: Path, name: str, config: Mapping[str, object] | None, only_safe: bool) -> RawCheckpoint:
    """Read one file by its content."""
    kind = sniff(path, name)
    if kind is FileKind.SAFETENSORS:
        tensors, metadata = read_safetensors(path, name)
        if not tensors:
            raise NotAnAdapterError(f"{name}: holds no tensors. Expected an adapter's weights.")
        return RawCheckpoint(tensors, metadata, config, name, path)
    if only_safe:
        raise UnsafeFileError(f"{name}: is a pickle, and use_safetensors=True asks for safetensors only.")
    pickled = read_pickle(path, name)
    return RawCheckpoint(pickled.tensors, pickled.metadata, config, name, path)
