"""The mix that is in force on a pipeline, as a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffadapt.errors import RecipeError, SourceError
from diffadapt.inject.placement import LINEAR, Loaded
from diffadapt.inject.schedule import Schedule
from diffadapt.inject.stack import PipelineAdapters
from diffadapt.io.headers import config_beside
from diffadapt.recipe.part import Part
from diffadapt.recipe.recipe import MADE_BY, Merge, Recipe
from diffadapt.recipe.sources import address_of, config_hash, hashes_of


def stack_of(pipeline: Any) -> PipelineAdapters:
    """The stack of a pipeline. Raises RecipeError where it has none."""
    stack = getattr(pipeline, "adapters", None)
    if not isinstance(stack, PipelineAdapters):
        raise RecipeError("The pipeline has no adapters of diffadapt. Call diffadapt.enable(pipe) first.")
    return stack


def capture(pipeline: Any, settings: Mapping[str, Any]) -> Recipe:
    """See `Recipe.of`."""
    stack = stack_of(pipeline)
    if not stack.enabled and len(stack):
        raise RecipeError("All adapters are disabled: there is no mix to write down. Call pipe.adapters.enable().")
    names = [name for name in stack.names if _counts(stack, name)]
    around = surroundings(pipeline)
    if len(names) == 1 and (made_by := _made_by(stack, names[0])) is not None:
        whole = [part.name for part in made_by.adapters]
        return replace(made_by, **{"merge": _merge(stack, {names[0]}, whole), **around, **settings})
    parts = tuple(part_of(stack, name) for name in names)
    found: dict[str, Any] = {"adapters": parts, "merge": _merge(stack, set(names), None), **around, **settings}
    return Recipe(**found)


def surroundings(pipeline: Any) -> dict[str, Any]:
    """What a recipe says of the pipeline around the mix: the base model's name and the scheduler's class."""
    return {"base": _base(pipeline), "sampler": _sampler(pipeline)}


def pinned(part: Part, path: Path) -> Part:
    """A part that says which file it is by its address, name, size and hashes. Raises SourceError where it cannot be
    read."""
    hashes = hashes_of(path)
    return replace(
        part, file=path.name, source=address_of(path), sha256=hashes.sha256, autov3=hashes.autov3,
        size=path.stat().st_size, config=config_hash(config_beside(path)),
    )  # fmt: skip


def _made_by(stack: PipelineAdapters, name: str) -> Recipe | None:
    """The recipe that made an adapter of others, where it is on the stack as it was made."""
    adapter = stack[name]
    raw = adapter.metadata.raw.get(MADE_BY)
    return Recipe.from_json(raw) if raw and adapter.path is None and stack.strengths[name] == 1.0 else None


def _merge(stack: PipelineAdapters, names: set[str], whole: list[str] | None) -> Merge | None:
    """How the adapters of these names are merged, if they are. whole: names to write instead, for all of them."""
    options = stack._options
    if options is None:
        return None
    kept = _kept(options.names, names)
    if whole is not None and kept is not None:
        kept = {part: tuple(whole) for part in kept} if isinstance(kept, Mapping) else tuple(whole)
    return Merge(mode=options.mode, max_loss=options.max_loss, names=kept)


def _counts(stack: PipelineAdapters, name: str) -> bool:
    """Whether an adapter is part of the mix: also at strength 0, where a prompt may use its embeddings."""
    return name in stack.active or bool(stack[name].embeddings)


def part_of(stack: PipelineAdapters, name: str) -> Part:
    """An adapter of a stack as a part. Raises RecipeError for one that its file does not hold."""
    loaded = stack._get(name)
    path = _file(loaded)
    try:
        hashes = hashes_of(path)
    except SourceError as error:
        raise RecipeError(f"{name!r}: its file is gone ({error}). Save it with pipe.adapters.save first.") from error
    strength = loaded.strength
    plain = isinstance(strength, (int, float))
    schedule = strength if isinstance(strength, Schedule) else None
    origin = loaded.adapter.origin
    return Part(
        name=name, file=path.name, source=address_of(path), sha256=hashes.sha256, autov3=hashes.autov3,
        size=path.stat().st_size, config=config_hash(origin.config if origin else None),
        weight=float(strength) if isinstance(strength, (int, float)) else 1.0,
        strength=None if plain or schedule is not None else strength, schedule=schedule, rule=rule_of(loaded),
        alpha=origin.alpha if origin else None, into=origin.into if origin else {},
    )  # fmt: skip


def _file(loaded: Loaded) -> Path:
    """The file that holds an adapter."""
    if loaded.parameters:
        raise RecipeError(f"{loaded.name!r} is in training: its file holds other numbers. Save it and load that file.")
    if loaded.adapter.path is None:
        raise RecipeError(f"{loaded.name!r} is in no file. Save it with pipe.adapters.save and load that file.")
    return loaded.adapter.path


def rule_of(loaded: Loaded) -> str:
    """The rule of strength that an adapter was loaded with; what does not know it is linear beside it."""
    return next((placement.rule for placement in loaded.placements if placement.rule != LINEAR), LINEAR)


def _kept(names: Any, known: set[str]) -> Any:
    """The names to merge, without those that are not in the recipe."""
    if isinstance(names, Mapping):
        return {component: tuple(n for n in group if n in known) for component, group in names.items()}
    return None if names is None else tuple(name for name in names if name in known)


def _base(pipeline: Any) -> str | None:
    """The id of the base model, or the name of its folder: not its place on this machine."""
    name = getattr(getattr(pipeline, "config", None), "_name_or_path", None) or getattr(pipeline, "name_or_path", None)
    if not isinstance(name, str) or not name:
        return None
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()
    return name if is_id else re.split(r"[\\/]", name.rstrip("\\/"))[-1] or None


def _sampler(pipeline: Any) -> str | None:
    scheduler = getattr(pipeline, "scheduler", None)
    return None if scheduler is None else type(scheduler).__name__
