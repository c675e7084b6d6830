"""Whole models as parameters by component and name, each made only when asked for: safetensors files (mapped), folders
of them as Diffusers and transformers save, and models in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from diffadapt.algorithms.layer import Layer
from diffadapt.errors import SourceError
from diffadapt.inject.locate import components as components_of
from diffadapt.inject.locate import weight_of
from diffadapt.io.plain_json import clip, read_object
from diffadapt.io.safetensors import read_header, read_safetensors

ORIGINAL = "model.diffusion_model."
"""Before the denoiser's names in a single file of the original code. SD1, SD2, SDXL, and ComfyUI's files."""
_LEFT_OUT = frozenset({"vae", "safety_checker", "image_encoder", "feature_extractor"})
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_CLIP = ("encoder.layers.", "embeddings.", "final_layer_norm.")


class Key(NamedTuple):
    """A parameter. component: "unet", ..., or None in an original single file, whose names are kept."""

    component: str | None
    name: str


class Checkpoint(Mapping[Key, Tensor]):
    """The parameters of a model or pipeline; iterating makes none of them. embeddings: modules known to be such."""

    def __init__(self, name: str, made: Mapping[Key, Callable[[], Tensor]], embeddings: Collection[Key] = ()) -> None:
        self.name, self._made, self.embeddings = name, made, frozenset(embeddings)

    def __getitem__(self, key: Key) -> Tensor:
        return self._made[key]()

    def __iter__(self) -> Iterator[Key]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def open_checkpoint(source: Any, only: Collection[str] | None) -> Checkpoint:
    """A model or pipeline in memory, a `.safetensors` file, a component's folder or a pipeline's.

    only: the components that are wanted; of a file or a folder that does not say what it is, the one name is taken.
    Raises SourceError for what is not there or not to be told apart.
    """
    if isinstance(source, nn.Module) or isinstance(getattr(source, "components", None), Mapping):
        return _of_modules(source, only)
    if not isinstance(source, str | os.PathLike):
        raise SourceError(f"a {type(source).__name__} is no checkpoint; expected a path, a model or a pipeline.")
    path = Path(source).expanduser()
    made: dict[Key, Callable[[], Tensor]] = {}
    for component, file in component_files(path, only):
        tensors, _ = read_safetensors(file)
        for name in tensors:
            known = name if component is None else plain(component, name)
            made[Key(component, known)] = partial(tensors.__getitem__, name)
    return Checkpoint(path.name, made)


def component_files(path: Path, only: Collection[str] | None) -> list[tuple[str | None, Path]]:
    """The safetensors files of a checkpoint on disk, and whose parameters each holds; None for an original single file.

    Raises SourceError for what is not there or not to be told apart; see `open_checkpoint`.
    """
    if path.is_file():
        return [(_component_of(path, only), path)]
    if not path.is_dir():
        raise SourceError(f"{clip(path.name)}: no such file or folder. Expected a checkpoint in safetensors.")
    return [(component, file) for component, folder in _folders(path, only).items() for file in _files(folder)]


def plain(component: str, name: str) -> str:
    """A parameter's name with the `text_model.` level of CLIP, which some versions of transformers leave out."""
    short = name.removeprefix("text_model.")
    return f"text_model.{short}" if component.startswith("text_encoder") and short.startswith(_CLIP) else name


def _of_modules(source: Any, only: Collection[str] | None) -> Checkpoint:
    made: dict[Key, Callable[[], Tensor]] = {}
    embeddings: list[Key] = []
    for component in components_of(source).values():
        if only is not None and component.name not in only:
            continue
        for path, module in component.modules.items():
            layer, name = Layer.of(module), plain(component.name, f"{path}.")[:-1]
            if layer is None:
                continue
            if layer.kind == "embedding":
                embeddings.append(Key(component.name, name))
            weight = name if layer.kind == "table" else f"{name}.weight"
            made[Key(component.name, weight)] = partial(weight_of, module)
            if layer.has_bias:
                made[Key(component.name, f"{name}.bias")] = partial(weight_of, module, "bias")
    return Checkpoint(type(source).__name__, made, embeddings)


def _component_of(path: Path, only: Collection[str] | None) -> str | None:
    """The component whose parameters a file holds; None for one in the original code's names."""
    names = read_header(path).tensors
    if any(name.startswith(ORIGINAL) for name in names):
        return None
    component = _only_one(path.name, only) or _known(path.parent) or _by_names(names)
    if component is None:
        raise SourceError(f"{path.name}: does not say which model it is; give components=('unet',) or the like.")
    return component


def _only_one(name: str, only: Collection[str] | None) -> str | None:
    if only is None:
        return None
    if len(only) != 1:
        raise SourceError(f"{name}: holds one model; give the one component that it is.")
    return next(iter(only))


def _by_names(names: Collection[str]) -> str | None:
    """The component whose parameters have names like these."""
    marks = {"unet": "down_blocks.", "transformer": "transformer_blocks.", "text_encoder": "text_model."}
    return next((part for part, mark in marks.items() if any(name.startswith(mark) for name in names)), None)


def _folders(path: Path, only: Collection[str] | None) -> dict[str, Path]:
    """Component -> the folder of its weights."""
    if [*path.glob("*.safetensors")] and not (path / "model_index.json").exists():
        component = _only_one(path.name, only) or _known(path)
        if component is None:
            raise SourceError(f"{path.name}: does not say which model it is; give components=('unet',) or the like.")
        return {component: path}
    inner = {one.name: one for one in sorted(path.iterdir()) if one.is_dir() and [*one.glob("*.safetensors")]}
    wanted = inner.keys() - _LEFT_OUT if only is None else set(only)
    if missing := sorted(wanted - inner.keys()):
        raise SourceError(f"{path.name}: has no weights of {', '.join(missing)}; it has {', '.join(inner) or 'none'}.")
    if not wanted:
        raise SourceError(f"{path.name}: has no .safetensors files, nor folders with such. Expected a model's weights.")
    return {component: inner[component] for component in inner if component in wanted}


def _known(folder: Path) -> str | None:
    """The component whose folder this is, by its name or the class in its config."""
    words = [folder.name]
    if (folder / "config.json").is_file():
        config = read_object(folder / "config.json", folder.name)
        words += [str(config.get("_class_name") or ""), " ".join(map(str, config.get("architectures") or ()))]
    for word in words:
        if re.fullmatch(r"unet|prior|decoder|transformer(_\d)?|text_encoder(_\d)?|controlnet", word):
            return word
        for part, component in (("ControlNet", "controlnet"), ("UNet", "unet"), ("TextModel", "text_encoder"),
                                ("T5Encoder", "text_encoder"), ("Transformer", "transformer")):  # fmt: skip
            if part in word:
                return component
    return None


def _files(folder: Path) -> list[Path]:
    """The files of one model: whole or in shards; of several precisions the one without a name of its own."""
    whole = [one for one in folder.glob("*.safetensors") if not _SHARD.search(one.name)]
    if whole:
        return [min(whole, key=lambda one: (one.name.count("."), one.name))]
    index = min(folder.glob("*.safetensors.index*.json"), key=lambda one: (one.name.count("."), one.name), default=None)
    if index is None:
        return sorted(folder.glob("*.safetensors"))
    shards = read_object(index, folder.name).get("weight_map")
    names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise SourceError(f"{folder.name}: {index.name} names {clip(name)}, which is no file of the folder.")
    return [folder / name for name in names]
