"""A recipe onto a pipeline: everything is found, checked and read first; then all of it takes effect, or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffadapt.adapter import Adapter
from diffadapt.errors import RecipeError
from diffadapt.inject.merging import MergeOptions
from diffadapt.inject.scaling import Strength
from diffadapt.inject.stack import PipelineAdapters
from diffadapt.pipeline import free_name
from diffadapt.reading import read_adapter
from diffadapt.recipe.capture import rule_of, stack_of
from diffadapt.recipe.part import Part
from diffadapt.recipe.recipe import MADE_BY, SUM, Merge, Recipe
from diffadapt.recipe.sources import Finder, config_hash, matches

MIX = "mix"
"""The name of what a recipe's method makes of its parts."""


def apply(recipe: Recipe, pipeline: Any, folder: Path | None, fetch: bool, check: bool) -> dict[str, str]:
    """See `Recipe.apply`."""
    stack = stack_of(pipeline)
    finder = Finder(folder, fetch, check)
    return _side_by_side(recipe, pipeline, stack, finder) if recipe.method == SUM else _as_one(recipe, pipeline, finder)


def _side_by_side(recipe: Recipe, pipeline: Any, stack: PipelineAdapters, finder: Finder) -> dict[str, str]:
    """The exact sum: every part on the stack, at its strength."""
    strengths = recipe.strengths(stack)
    names = _loaded(recipe, stack)
    missing = [part for part in recipe.adapters if part.name not in names]
    adapters = _read(missing, finder, pipeline)
    with _Restoring(stack) as changes:
        for part in missing:
            name = part.name if part.name not in stack else free_name(part.name, stack)
            names[part.name] = name
            changes.loaded.append(name)
            stack.load(adapters[part.name], name, 0.0, rule=part.rule)
        stack.enable()
        changes.bring({names[part]: strength for part, strength in strengths.items()}, _options(recipe.merge, names))
    return {part.name: names[part.name] for part in recipe.adapters}


def _as_one(recipe: Recipe, pipeline: Any, finder: Finder) -> dict[str, str]:
    """The parts made into one adapter by the recipe's method, which says in its metadata what it was made by."""
    from diffadapt.combine import combine

    stack = stack_of(pipeline)
    weights = _weights(recipe, stack)
    made_by = replace(recipe.without_paths(), merge=None).to_json()
    name = next((n for n in stack.names if stack[n].metadata.raw.get(MADE_BY) == made_by), None)
    with _Restoring(stack) as changes:
        if name is None:
            parts = _read(list(recipe.adapters), finder, pipeline)
            stack.unmerge()  # rules that need the base weights must see them
            pairs = [(parts[part.name], weights[part.name]) for part in recipe.adapters]
            mix = combine(pairs, recipe.method, base=pipeline, name=MIX, **recipe.options)
            raw = {**mix.metadata.raw, MADE_BY: made_by}
            name = free_name(MIX, stack)
            changes.loaded.append(name)
            stack.load(replace(mix, metadata=replace(mix.metadata, raw=raw)), name, 0.0)
        stack.enable()
        names = {part.name: name for part in recipe.adapters}
        changes.bring({name: 1.0}, _options(recipe.merge, names))
    return names


def _weights(recipe: Recipe, stack: PipelineAdapters) -> dict[str, Strength]:
    """The parts' weights. Raises RecipeError for strengths by block or step where the method takes one number for all
    layers."""
    from diffadapt.combine import METHODS

    found = recipe.strengths(stack)
    if recipe.method in METHODS and METHODS[recipe.method].by_target:
        return found
    for name, strength in found.items():
        if isinstance(strength, bool) or not isinstance(strength, (int, float)):
            raise RecipeError(
                f"{name!r} has a strength by block or step, which {recipe.method!r} cannot mix into one file. Give it "
                'a number, or the recipe the method "sum".'
            )
    return found


def _loaded(recipe: Recipe, stack: PipelineAdapters) -> dict[str, str]:
    """Part -> name on the stack, for the parts that are loaded already: the same file, read in the same way."""
    found: dict[str, str] = {}
    for part in recipe.adapters:
        # Its own name first: a file may be loaded twice.
        for name in sorted(stack.names, key=lambda name: name != part.name):
            if name not in found.values() and _is(part, stack, name):
                found[part.name] = name
                break
    return found


def _is(part: Part, stack: PipelineAdapters, name: str) -> bool:
    loaded = stack._get(name)
    origin, path = loaded.adapter.origin, loaded.adapter.path
    if not part.has_hash:  # a prompt's: it means what is loaded under this name, whatever that is
        return part.name == name or (path is not None and part.name == path.stem)
    if loaded.parameters or origin is None or path is None or not matches(part, path):
        return False
    same_file = part.config in (None, config_hash(origin.config))
    return same_file and (part.alpha, dict(part.into), part.rule) == (origin.alpha, dict(origin.into), rule_of(loaded))


def _read(parts: list[Part], finder: Finder, pipeline: Any) -> dict[str, Adapter]:
    """Find and read the files of parts. Raises RecipeError, which names all that are not to be had."""
    found = {part.name: finder.find(part) for part in parts}
    lacking = [f"{part.label}: {found[part.name]}" for part in parts if isinstance(found[part.name], str)]
    if lacking:
        raise RecipeError(
            f"{len(lacking)} of the recipe's files cannot be had: {'. '.join(lacking)}. The pipeline is unchanged."
        )
    adapters: dict[str, Adapter] = {}
    for part in parts:
        adapter = read_adapter(found[part.name], alpha=part.alpha, pipeline=pipeline)
        seen = config_hash(adapter.origin.config if adapter.origin else None)
        if finder.check and part.config is not None and seen != part.config:
            raise RecipeError(
                f"{part.label}: the JSON beside it has sha256 {seen}, expected {part.config}. It changes what the file "
                "means: put the right one beside the file, or pass check=False."
            )
        adapters[part.name] = adapter.moved(part.into) if part.into else adapter
    return adapters


def _options(merge: Merge | None, names: Mapping[str, str]) -> MergeOptions | None:
    """How to merge, by the names that the parts have on the pipeline."""
    if merge is None:
        return None
    wanted: Any = merge.names
    if isinstance(wanted, Mapping):
        wanted = {component: tuple(_known(group, names)) for component, group in wanted.items()}
    elif wanted is not None:
        wanted = tuple(_known(wanted, names))
    return MergeOptions(wanted, "auto" if merge.mode == "auto" else "weights", "copy", merge.max_loss)


def _known(parts: Iterable[str], names: Mapping[str, str]) -> dict[str, None]:
    """The names of those parts that have one, each once: several parts may be one adapter."""
    return dict.fromkeys(names[part] for part in parts if part in names)


class _Restoring:
    """A change of a stack that is taken back where it fails. loaded: the adapters that the change brings."""

    def __init__(self, stack: PipelineAdapters) -> None:
        self.stack = stack
        self.loaded: list[str] = []
        self.strengths, self.options, self.enabled = stack.strengths, stack._options, stack.enabled

    def bring(self, strengths: Mapping[str, Strength], options: MergeOptions | None) -> None:
        """Set exactly these strengths, and merge so or not at all."""
        stack, now = self.stack, self.stack._options
        if now is not None and (options is None or not _alike(now, options)):
            stack.unmerge()
        stack.set(dict(strengths))
        if options is not None and stack._options is None:
            o = options
            stack.merge(o.names, mode=o.mode, remember=o.remember, max_loss=o.max_loss, base=o.base)

    def __enter__(self) -> _Restoring:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            return
        for name in reversed(self.loaded):
            if name in self.stack:
                self.stack.remove(name)
        self.bring(self.strengths, self.options)
        if not self.enabled:
            self.stack.disable()


def _alike(now: MergeOptions, wanted: MergeOptions) -> bool:
    """Whether two ways to merge give the same weights."""
    return (now.names, now.mode, now.max_loss) == (wanted.names, wanted.mode, wanted.max_loss)
