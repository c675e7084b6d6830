"""From an `Adapter` to a file of any dialect, checked by reading it back in memory before anything is written."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffadapt.adapter import Adapter, TargetKey
from diffadapt.algorithms import Delta
from diffadapt.algorithms.rows import Wrapped
from diffadapt.dialects import Dialect, dialect_named
from diffadapt.dialects.embeddings import NOTE, bundle_keys, embedding_file
from diffadapt.dialects.peft import Peft
from diffadapt.dialects.peft_config import METADATA_KEY
from diffadapt.dialects.peft_prefix import prefix_file
from diffadapt.dialects.peft_writing import Described, core_of, described, endings, header, method_of, peft_config
from diffadapt.equality import difference
from diffadapt.errors import AlgorithmError, DialectError
from diffadapt.families import Family, family_named
from diffadapt.families.route import exchanged, exchanged_by_onetrainer
from diffadapt.garbage import uncollected
from diffadapt.io.checkpoint import RawCheckpoint
from diffadapt.io.safetensors_writer import write_safetensors, write_whole
from diffadapt.reading import interpret

_CONFIGURED = frozenset({"peft", "diffusers", "bare"})
# Hashes of the file that was read, which are untrue of the one that is written, and a picture.
DROPPED = frozenset(
    {"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "modelspec.thumbnail", METADATA_KEY, NOTE}
)

_OF_TEXT = frozenset({"diffusers", "embedding"})
"""Dialects in which placeholders alone are a file for Diffusers: "embedding" is what such a file is read as."""

# Our own note in the header: which of its two ways of naming UNet blocks a Kohya file of this family had.
_NAMES_KEY, _PLAIN = "diffadapt.names", "diffusers"


@dataclasses.dataclass(frozen=True)
class Composed:
    """A file before it is written: tensors by key, the header's metadata, and the JSON that goes beside it, if any."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    beside: Mapping[str, Any] | None = None


@uncollected()
def compose(adapter: Adapter, dialect: str, *, folder: bool = False, name: str | None = None) -> Composed:
    """What an adapter's file in a dialect holds, checked by reading it back in memory.

    folder: as PEFT's folder, its config beside the file instead of in the header; for "peft" alone. name: of the file,
    for messages. The metadata are the source's, less its hashes. Tensors that need no change are the adapter's own.
    Raises DialectError where the dialect has no name for something or cannot hold an algorithm exactly.
    """
    if adapter.prefixes or (dialect in _OF_TEXT and adapter.embeddings and not (adapter.targets or adapter.foreign)):
        return _text_alone(adapter, dialect, folder, name)
    named, family = dialect_named(dialect), family_named(adapter.family)
    adapter = dataclasses.replace(adapter, targets=_in_files(adapter.targets))
    plain = family is not None and family.native and _plain_names(adapter)
    # A file that came with Diffusers' names under Kohya's prefix goes back so, even by way of another dialect.
    tensors = encode(adapter, named, dataclasses.replace(family, native=False) if family and plain else family)
    configs = _configs(adapter, named) if dialect in _CONFIGURED else {}
    metadata = carried(adapter.metadata.raw)
    if plain and dialect != "kohya":
        metadata[_NAMES_KEY] = _PLAIN
    beside: Mapping[str, Any] | None = None
    if dialect == "peft" and folder:
        beside = configs[None]
    elif configs:
        metadata[METADATA_KEY] = header(configs)
    _verify(adapter, RawCheckpoint(tensors, metadata, beside, name or adapter.source), named)
    return Composed(tensors, metadata, beside)


def _text_alone(adapter: Adapter, dialect: str, folder: bool, name: str | None) -> Composed:
    """The file of an adapter that acts on text alone: a prefix, or placeholders in a file for Diffusers."""
    beside: Mapping[str, Any] | None = None
    metadata = carried(adapter.metadata.raw)
    if adapter.prefixes:
        tensors, beside = prefix_file(adapter, dialect, folder)
    else:
        tensors, note = embedding_file(adapter.embeddings)
        metadata |= note
    again = interpret(RawCheckpoint(tensors, metadata, beside, name or adapter.source), name=adapter.name)
    lost = [token for token in adapter.embeddings if token not in again.embeddings]
    if lost:
        raise DialectError(f"{dialect}: the placeholder {lost[0]!r} would not be found again when the file is read.")
    return Composed(tensors, metadata, beside)


def carried(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a source that its result has too."""
    return {key: text for key, text in metadata.items() if key not in DROPPED}


def write_adapter(adapter: Adapter, path: Path, dialect: str) -> Path:
    """Write an adapter in a dialect and give the path.

    path: the `.safetensors` file; with "peft" also a folder (a path without ending), which gets adapter_config.json.
    Raises DialectError; see `compose`.
    """
    path = Path(path)
    write_composed(compose(adapter, dialect, folder=not path.suffix, name=path.name), path)
    return path


def write_composed(made: Composed, path: Path) -> None:
    """Write a file, or PEFT's folder where something goes beside it. Errors as for `write_safetensors`."""
    write_with(made.beside, path, lambda file: write_safetensors(file, made.tensors, made.metadata))


def write_with(beside: Mapping[str, Any] | None, path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written by `write`: at `path`, or in a folder there that holds what goes beside it, if anything."""
    if beside is None:
        write(path)
        return
    path.mkdir(parents=True, exist_ok=True)
    # The weights come last: where they are, the folder is complete.
    config = json.dumps(beside, indent=2, sort_keys=True) + "\n"
    write_whole(path / "adapter_config.json", lambda file: file.write(config.encode()))
    write(path / "adapter_model.safetensors")


def _in_files(targets: Mapping[TargetKey, Delta]) -> dict[TargetKey, Delta]:
    """The deltas as files hold them: those that were fitted to a layer, as they were before."""
    return {key: d.inner if isinstance(d, Wrapped) and d.has_file else d for key, d in targets.items()}


def encode(adapter: Adapter, dialect: Dialect, family: Family | None) -> dict[str, Tensor]:
    """The adapter's tensors by the dialect's keys. Raises DialectError for what the dialect cannot name."""
    tensors: dict[str, Tensor] = {}
    spelled = _spelling(adapter)
    if isinstance(dialect, Peft):
        tensors |= _shared(adapter, dialect)
    for target, delta in adapter.targets.items():
        _add(tensors, dialect, family, target, delta, spelled(delta), adapter.metadata.raw)
    for foreign, delta in adapter.foreign.items():
        if dialect.name != adapter.dialect:
            raise DialectError(
                f"{dialect.name}: {foreign.module} is no module of a known family, so its name in this dialect is "
                f"unknown; write {adapter.dialect}."
            )
        _add(tensors, dialect, None, TargetKey(foreign.component or "", foreign.module), delta, spelled(delta))
    return tensors | bundle_keys(adapter.embeddings)


def _shared(adapter: Adapter, dialect: Peft) -> dict[str, Tensor]:
    """What all modules share, once. Raises DialectError where two modules mean another tensor by one name."""
    tensors: dict[str, Tensor] = {}
    for delta in (*adapter.targets.values(), *adapter.foreign.values()):
        for role, tensor in delta.bank_tensors.items():
            kept = tensors.setdefault(dialect.join_shared(role), tensor)
            if difference(kept, tensor, role) is not None:
                raise DialectError(
                    f"{dialect.name}: the modules have several tensors {role!r}, and a file holds one for all of them. "
                    "They come from several adapters: keep those apart, or convert with --algorithm lora."
                )
    return tensors


def _spelling(adapter: Adapter) -> Callable[[Delta], Mapping[str, str]]:
    """How PEFT spells the roles of a delta in the adapter's file, where that depends on the file's method."""
    parts = [(target.module, delta) for target, delta in adapter.targets.items()]
    parts += [(foreign.module, delta) for foreign, delta in adapter.foreign.items()]
    fields = [delta.peft_fields(module) for module, delta in parts]
    method = method_of(said["peft_type"] for said in fields if said is not None)
    return lambda delta: endings(delta, method or "")


def _plain_names(adapter: Adapter) -> bool:
    """Whether the adapter's Kohya file names UNet blocks as Diffusers does."""
    if adapter.dialect != "kohya":
        return adapter.metadata.raw.get(_NAMES_KEY) == _PLAIN
    keys = ((target, keys[0]) for target, keys in adapter.keys.items() if keys and target.component == "unet")
    target, key = next(((t, k) for t, k in keys if ".attentions." in t.module or ".resnets." in t.module), (None, ""))
    return target is not None and target.module.replace(".", "_") in key


def _add(
    tensors: dict[str, Tensor],
    dialect: Dialect,
    family: Family | None,
    target: TargetKey,
    delta: Delta,
    spelled: Mapping[str, str],
    header: Mapping[str, str] | None = None,
) -> None:
    if isinstance(delta, Wrapped):
        raise DialectError(
            f"{dialect.name}: the {delta.algorithm} of {target.component} {target.module} was trained on "
            f"{delta.seen_by_trainer}, and has no file of its own here. Keep the file it came from."
        )
    tensors_of = delta.peft_tensors() if isinstance(dialect, Peft) else delta.tensors()
    for role, tensor in _as_named(tensors_of, dialect, family, target, header or {}).items():
        if role == "alpha" and dialect.name in _CONFIGURED:
            continue
        own = spelled.get(role) if isinstance(dialect, Peft) else None
        key = dialect.join(target, role, family) if own is None else Peft.join_ending(target, own)
        if key in tensors:
            raise DialectError(f"{dialect.name}: two modules would be named {key!r}; write another dialect.")
        tensors[key] = _fitted(delta, role, tensor, dialect)


def _as_named(
    tensors: dict[str, Tensor],
    dialect: Dialect,
    family: Family | None,
    target: TargetKey,
    header: Mapping[str, str],
) -> dict[str, Tensor]:
    """The tensors in the order of rows that the dialect's name for the module means (native shift|scale)."""
    split = dialect.split(dialect.join(target, next(iter(tensors)), family)) if family and tensors else None
    names = family.components.get(target.component) if family else None
    route = names.resolve(split.module) if names and split else None
    if route is None or not route.exchange:
        return tensors
    # As reading does it: the header is kept, and with it whose order of rows the file is in.
    theirs = header.keys() & {"ot_branch", "ot_config"} or "oft_R" in tensors
    swapped = exchanged_by_onetrainer(tensors) if theirs else exchanged(tensors)
    if swapped is None:
        raise DialectError(
            f"{dialect.name}: the halves of {target.module} stand the other way round there, and its tensors "
            f"({', '.join(tensors)}) cannot be turned; write diffusers."
        )
    return swapped


def _fitted(delta: Delta, role: str, tensor: Tensor, dialect: Dialect) -> Tensor:
    """The tensor as the dialect's own writers shape it."""
    core, configured = core_of(delta), dialect.name in _CONFIGURED
    if role == "alpha" and getattr(core, "rank_stabilised", False) and core.rank:
        # alpha / sqrt(r) = a' / r: only PEFT's configs know the rank-stabilised rule.
        tensor = tensor * math.sqrt(core.rank)
    if role == "alpha":
        return _as_saved(tensor, core)
    if role == "dora_scale" and configured and tensor.ndim > 1 and tensor.shape[0] == tensor.numel():
        return tensor.flatten() if tensor.ndim == 2 else tensor.transpose(0, 1)
    if role == "dora_scale" and not configured and not getattr(delta, "on_input", True):
        # PEFT's (out,) and (1, out, 1, 1) are (out, 1) and (out, 1, 1, 1) elsewhere.
        axes = max(t.ndim for r, t in core.tensors().items() if r != "alpha")
        return tensor if tensor.ndim == axes and tensor.shape[0] != 1 else tensor.reshape(-1, *(1,) * (axes - 1))
    return tensor


def _as_saved(alpha: Tensor, core: Delta) -> Tensor:
    """The alpha in the factors' dtype, as trainers save it, where that holds it exactly."""
    factor = next((t for role, t in core.tensors().items() if role != "alpha" and t.is_floating_point()), alpha)
    saved = alpha.to(factor.dtype)
    return saved if bool(saved.to(alpha.dtype) == alpha) else alpha


def _configs(adapter: Adapter, dialect: Dialect) -> dict[str | None, dict[str, Any]]:
    """The PEFT configs by component; PEFT's own files and bare ones have one model and name none."""
    components = adapter.components
    if dialect.name != "diffusers" and len(components) > 1:
        raise DialectError(
            f"{dialect.name}: one file holds one model, and the adapter has {', '.join(components)}; write diffusers."
        )
    modules: dict[str, dict[str, Described]] = {}
    for target, delta in adapter.targets.items():
        modules.setdefault(target.component, {})[target.module] = described(delta, target.module, dialect.name)
    for foreign, delta in adapter.foreign.items():
        about = described(delta, foreign.module, dialect.name)
        modules.setdefault(foreign.component or "", {})[foreign.module] = about
    return {
        component if dialect.name == "diffusers" else None: peft_config(named, dialect.name)
        for component, named in modules.items()
    }


def _verify(adapter: Adapter, written: RawCheckpoint, dialect: Dialect) -> None:
    """Raise DialectError unless what was encoded reads back as the same deltas on the same modules.

    As its own family reads it: rotations of a tiny model alone do not say whose they are.
    """
    try:
        again = interpret(written, name=adapter.name, family=adapter.family) if written.tensors else adapter
    except AlgorithmError as error:  # its tensors mean nothing without a config, which this dialect does not have
        message = f"{dialect.name}: cannot hold this adapter ({error}) Write {adapter.dialect} instead."
        raise DialectError(message) from error
    lost = [target.module for target in adapter.targets if target not in again.targets]
    lost += [foreign.module for foreign in adapter.foreign if foreign not in again.foreign]
    lost += [token for token in adapter.embeddings if token not in again.embeddings]
    if lost:
        raise DialectError(f"{dialect.name}: {lost[0]} would not be found again when the file is read.")
    pairs = [(f"{key.component} {key.module}", delta, again.targets[key]) for key, delta in adapter.targets.items()]
    pairs += [(foreign.module, delta, again.foreign[foreign]) for foreign, delta in adapter.foreign.items()]
    for module, delta, read in pairs:
        if differs := difference(delta, read):
            raise DialectError(
                f"{dialect.name}: cannot hold the {delta.algorithm} of {module}: "
                f"{differs} when read back. Write {adapter.dialect} instead."
            )
