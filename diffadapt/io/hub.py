"""Adapters on the Hugging Face Hub: through the Hub's client, its cache and its offline switches, and nothing else."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, NoReturn

from diffadapt.errors import SourceError
from diffadapt.io.folder import CONFIG_OF, Choice, choose
from diffadapt.io.plain_json import clip

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class HubOptions:
    """How to reach a repository; the fields mean what they mean in Diffusers' `from_pretrained`."""

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    force_download: bool = False

    def __repr__(self) -> str:
        # A token must not reach logs by way of a traceback that prints locals.
        return f"HubOptions(revision={self.revision!r}, local_files_only={self.local_files_only})"


class HubFiles(NamedTuple):
    """Local copies of a repository's adapter file and of its config files by name."""

    weights: Path
    configs: dict[str, Path]


class HubLink(NamedTuple):
    """A repository's adapter file where it lies, and local copies of its config files by name."""

    url: str
    name: str
    configs: dict[str, Path]


def is_hub_id(text: str) -> bool:
    """Tell whether `text` has the form of a repository id, owner/name."""
    return bool(_ID.fullmatch(text)) and ".." not in text and "--" not in text


def split_address(text: str) -> tuple[str, str | None]:
    """Repository and file of "hf://owner/name/file.safetensors" or "owner/name"; no file: None.

    Raises `SourceError` for what has another form.
    """
    owner, _, rest = text.removeprefix("hf://").partition("/")
    name, _, file = rest.partition("/")
    if not is_hub_id(f"{owner}/{name}"):
        raise SourceError(f"{clip(text)}: is no Hub id. Expected owner/name, or hf://owner/name/file.safetensors.")
    return f"{owner}/{name}", file or None


def revision_of(repo: str, options: HubOptions) -> str:
    """The commit that a repository is at; the cached one where the Hub may not or cannot be asked."""
    from huggingface_hub import HfApi, constants

    if not (options.local_files_only or constants.HF_HUB_OFFLINE):
        try:
            return str(HfApi(token=options.token).repo_info(repo, revision=options.revision).sha)
        except client_errors() as error:
            if not _is_unreachable(error) or not _is_cached(repo, options):
                _refuse(repo, None, error)
    return _snapshot(repo, options).name


def fetch(repo: str, weight_name: str | None, subfolder: str | None, options: HubOptions) -> HubFiles:
    """Bring the adapter file of `repo`, and the configs beside it, into the local cache (or find them there).

    Raises `SourceError` if the repository, the file or the network is not there, or if several files could be meant.
    """
    from huggingface_hub import constants

    folder = (subfolder or "").strip("/")
    if options.local_files_only or constants.HF_HUB_OFFLINE:
        return _from_cache(repo, weight_name, folder, options)
    if weight_name is not None:
        weights = _download(repo, _join(folder, weight_name), options)
        return HubFiles(weights, _optional_configs(repo, _join(folder, weight_name), options))
    names = _listed(repo, folder, options)
    if names is None:
        return _from_cache(repo, None, folder, options)
    choice = choose(names, None, _label(repo, folder))
    configs = {name: _download(repo, _join(folder, name), options) for name in choice.configs}
    return HubFiles(_download(repo, _join(folder, choice.weights), options), configs)


def locate(repo: str, weight_name: str | None, options: HubOptions) -> HubLink | HubFiles:
    """Find the adapter file of `repo` without fetching it; from the cache where the Hub may not or cannot be asked.

    weight_name: the file's path in the repository. Only its small config files are downloaded. Errors as for `fetch`.
    """
    from huggingface_hub import constants, hf_hub_url

    if options.local_files_only or constants.HF_HUB_OFFLINE:
        return _from_cache(repo, weight_name, "", options)
    if weight_name is not None:
        configs = _optional_configs(repo, weight_name, options)
        return HubLink(hf_hub_url(repo, weight_name, revision=options.revision), weight_name, configs)
    names = _listed(repo, "", options)
    if names is None:
        return _from_cache(repo, None, "", options)
    choice = choose(names, None, repo)
    url = hf_hub_url(repo, choice.weights, revision=options.revision)
    return HubLink(url, choice.weights, {name: _download(repo, name, options) for name in choice.configs})


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _label(repo: str, folder: str) -> str:
    return f"{repo} (subfolder {clip(folder)})" if folder else repo


def _from_cache(repo: str, weight_name: str | None, folder: str, options: HubOptions) -> HubFiles:
    """Look only at the snapshot in the local cache."""
    root = _snapshot(repo, options) / folder
    names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()] if root.is_dir() else []
    label = f"{_label(repo, folder)} in the local cache (offline)"
    choice: Choice = choose(names, weight_name, label)
    return HubFiles(root / choice.weights, {name: root / name for name in choice.configs})


def _snapshot(repo: str, options: HubOptions) -> Path:
    """Find the cached snapshot's folder; a partial one, of single downloaded files, counts too."""
    from huggingface_hub import constants

    revision = options.revision or constants.DEFAULT_REVISION
    storage = Path(options.cache_dir or constants.HF_HUB_CACHE) / ("models--" + repo.replace("/", "--"))
    if ".." in PurePosixPath(revision).parts:
        raise SourceError(f"{repo}: {clip(revision)} is no revision. Pass a branch, tag or commit.")
    reference = storage / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = storage / "snapshots" / commit
    if "/" in commit or not snapshot.is_dir():
        raise SourceError(
            f"{repo}: revision {clip(revision)} is not in the local cache, and the Hub may not be asked "
            "(local_files_only or HF_HUB_OFFLINE). Download it once while online, or check the id; "
            "a folder of this name does not exist here either."
        )
    return snapshot


def _listed(repo: str, folder: str, options: HubOptions) -> list[str] | None:
    """List the repository's files, relative to `folder`; None if the Hub does not answer but the cache will do."""
    from huggingface_hub import HfApi

    try:
        names = HfApi(token=options.token).list_repo_files(repo, revision=options.revision)
    except client_errors() as error:
        if not _is_unreachable(error) or not _is_cached(repo, options):
            _refuse(repo, None, error)
        return None
    prefix = f"{folder}/" if folder else ""
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _is_cached(repo: str, options: HubOptions) -> bool:
    """Tell whether a snapshot may stand in for the Hub, as the Hub's own client lets it for single files."""
    try:
        _snapshot(repo, options)
    except SourceError:
        return False
    return not options.force_download


def _download(repo: str, filename: str, options: HubOptions) -> Path:
    """Download one file, or take it from the cache."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(
                repo,
                filename,
                revision=options.revision,
                token=options.token,
                cache_dir=options.cache_dir,
                force_download=options.force_download,
            )
        )
    except client_errors() as error:
        _refuse(repo, filename, error)


def _optional_configs(repo: str, weights: str, options: HubOptions) -> dict[str, Path]:
    """Fetch the config that may lie beside a file named by the user; its absence is normal."""
    from huggingface_hub.errors import EntryNotFoundError

    path = PurePosixPath(weights)
    wanted = CONFIG_OF.get(path.stem)
    if wanted is None:
        return {}
    try:
        return {wanted: _download(repo, str(path.with_name(wanted)), options)}
    except SourceError as error:
        if isinstance(error.__cause__, EntryNotFoundError):
            return {}
        raise


def client_errors() -> tuple[type[Exception], ...]:
    """Name what the Hub's client raises; its HTTP library, and so its base class, changed with version 1."""
    from huggingface_hub import errors

    transport = next(kind for kind in errors.HfHubHTTPError.__mro__[1:] if kind.__name__ == "HTTPError")
    return (transport, errors.EntryNotFoundError, OSError, ValueError)


def _is_unreachable(error: Exception) -> bool:
    """Tell a network that does not answer from an answer that says no."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return getattr(error.response, "status_code", 500) >= 500
    return not isinstance(error, ValueError)


def _refuse(repo: str, filename: str | None, error: Exception) -> NoReturn:
    """Say what the Hub's client met; its own text may hold signed addresses and is only the cause."""
    from huggingface_hub import errors

    what = f" file {clip(filename)}" if filename else ""
    if isinstance(error, errors.GatedRepoError):
        text = "is gated: accept its conditions on its page, then log in or pass token="
    elif isinstance(error, errors.RepositoryNotFoundError):
        text = "does not exist on the Hub, or is private and needs token=. No such local file or folder exists either"
    elif isinstance(error, errors.RevisionNotFoundError):
        text = "has no such revision. Pass a branch, tag or commit that exists"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        text = "is not in the local cache and the Hub cannot be reached. Check the network, or pass a local file"
    elif isinstance(error, errors.EntryNotFoundError):
        text = "does not exist in the repository. Look at its file list and pass weight_name= and subfolder="
    elif isinstance(error, ValueError):
        text = "cannot be asked for: the Hub's client refuses the id, revision or file name. Check their spelling"
    else:
        text = f"could not be fetched ({type(error).__name__}). Check the network, or pass a local file"
    raise SourceError(f"{repo}:{what} {text}.") from error
