"""A recipe: all that makes a mix again, as JSON. Which files, by hash and address; how strong, where and when.

    {"format": "diffadapt-recipe", "version": 1, "prompt": "a cat", "seed": 7, "steps": 20, "guidance": 6.5,
     "adapters": [{"name": "ink", "file": "ink.safetensors", "source": "hf://owner/name@revision/ink.safetensors",
                   "sha256": "...", "autov3": "...", "weight": 0.7, "strength": {"unet": {"down": 0.2}},
                   "schedule": {"window": [0.0, 0.5]}}]}

Fields at their defaults are left out. Fields that this version does not know are kept and written back; a version it
does not know is refused. Nothing in a recipe is code, and reading one opens no other file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from diffadapt.errors import RecipeError, SourceError
from diffadapt.inject.scaling import Strength
from diffadapt.io.plain_json import clip, parse_object
from diffadapt.recipe import values
from diffadapt.recipe.part import Part
from diffadapt.recipe.prompt import insert_tags, parse_prompt, write_prompt
from diffadapt.recipe.record import Check, Record, optional
from diffadapt.recipe.values import RECIPE_BYTES, listed, number, plain, text, whole

if TYPE_CHECKING:
    from diffadapt.inject.stack import PipelineAdapters

FORMAT: Final = "diffadapt-recipe"
VERSION: Final = 1
SUM: Final = "sum"
MADE_BY: Final = "diffadapt.recipe"
"""Metadata of an adapter that a recipe made of others: the recipe."""


def _mode(value: Any, where: str) -> str:
    if value not in ("weights", "auto"):
        raise RecipeError(f"{where} is {clip(value, 60)}; expected 'weights' or 'auto'.")
    return str(value)


def _names(value: Any, where: str) -> Any:
    """The adapters to merge, in all components or by component; see `pipe.adapters.merge`."""
    if isinstance(value, Mapping):
        return {text(key, where): _names(group, where) for key, group in value.items()}
    return tuple(text(name, where) for name in listed(value, where, values.ADAPTERS))


@dataclass(frozen=True, kw_only=True)
class Merge(Record):
    """How the mix was merged into the weights: what `pipe.adapters.merge` was asked, as far as it changes bits.

    names: of the parts, in all components or by component; None for all.
    """

    mode: str = "weights"
    max_loss: float = 0.25
    names: tuple[str, ...] | Mapping[str, tuple[str, ...]] | None = None

    KIND: ClassVar[str] = "merge"
    CHECKS: ClassVar[Mapping[str, Check]] = {"mode": _mode, "max_loss": number, "names": optional(_names)}


def _adapters(value: Any, where: str) -> tuple[Part, ...]:
    found = [
        part if isinstance(part, Part) else Part.from_data(part, f"{where}[{i}]")
        for i, part in enumerate(listed(value, where, values.ADAPTERS))
    ]
    names = [part.name for part in found]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"{where}: two adapters are named {clip(name)}. Expected every name once.")
    return tuple(found)


def _version(value: Any, where: str) -> int:
    if value != VERSION or isinstance(value, bool):
        raise RecipeError(f"{where} is {clip(value, 40)}; this diffadapt reads version {VERSION}. Update it.")
    return VERSION


@dataclass(frozen=True, kw_only=True)
class Recipe(Record):
    """A mix of adapters, and what was made with it.

    adapters: in the order of the stack. prompt: without tags. sampler: the class of the scheduler. method: how the
    adapters are mixed; "sum" is what `pipe.adapters` does, others (of `diffadapt.combine`, with their options, `rank`
    among them) make one adapter of them.
    merge: how the mix is merged, or None where it is live. base: the base model's id or name, for information.

    Raises RecipeError, here as in every way to make one, for fields that do not hold what they may.
    """

    version: int = VERSION
    adapters: tuple[Part, ...] = ()
    prompt: str = ""
    negative: str = ""
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    method: str = SUM
    options: Mapping[str, Any] = field(default_factory=dict)
    merge: Merge | None = None
    base: str | None = None

    KIND: ClassVar[str] = "recipe"
    CHECKS: ClassVar[Mapping[str, Check]] = {
        "version": _version,
        "adapters": _adapters,
        "prompt": text,
        "negative": text,
        "seed": optional(lambda value, where: whole(value, where, -(1 << 63), (1 << 64) - 1)),
        "steps": optional(lambda value, where: whole(value, where, 1, 100_000)),
        "guidance": optional(number),
        "sampler": optional(text),
        "method": text,
        "options": lambda value, where: values.mapping(plain(value, where), where),
        "merge": optional(lambda v, where: v if isinstance(v, Merge) else Merge.from_data(v, where)),
        "base": optional(text),
    }

    @property
    def merged(self) -> bool:
        """Whether the mix is merged into the weights."""
        return self.merge is not None

    @property
    def worded(self) -> str:
        """The prompt, after it the trigger words that are switched on and are not in it."""
        words = dict.fromkeys(word for part in self.adapters for word in part.triggers)
        return ", ".join(filter(None, [self.prompt, *(word for word in words if word not in self.prompt)]))

    def with_total(self, total: float) -> Recipe:
        """The same mix with its weights scaled so that their sizes sum to `total`: more adapters, no stronger a mix.

        Of a tag, the weight of the denoiser counts. Raises RecipeError for a total that is no finite number above 0.
        """
        if not 0 < total < math.inf:
            raise RecipeError(f"The total is {total}; expected a finite number above 0.")
        size = sum(abs(part.main_weight) for part in self.adapters)
        if not size:
            return self
        return replace(self, adapters=tuple(part.scaled(total / size) for part in self.adapters))

    # -- JSON --------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The recipe as JSON. Raises RecipeError where it would be longer than `from_json` reads (1 MiB)."""
        found = json.dumps(
            {"format": FORMAT, "version": self.version, **self.to_data()}, ensure_ascii=False, allow_nan=False, indent=1
        )
        if len(found.encode()) > RECIPE_BYTES:
            raise RecipeError(f"The recipe has more than {RECIPE_BYTES} bytes as JSON; leave out what is in its extra.")
        return found

    @classmethod
    def from_json(cls, data: str | bytes, name: str = "recipe") -> Recipe:
        """Read a recipe; `name` is what messages call it.

        Raises RecipeError for what is no recipe, is of another version, is too large or nested, or holds a field of the
        wrong type.
        """
        raw = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
        if len(raw) > RECIPE_BYTES:
            raise RecipeError(f"{name}: has {len(raw)} bytes; expected at most {RECIPE_BYTES}.")
        try:
            found = dict(plain(parse_object(raw, name, "recipe"), name))
            if found.pop("format", None) != FORMAT:
                raise RecipeError(f'{name}: is no recipe. Expected "format": "{FORMAT}".')
            if "version" not in found:
                raise RecipeError(f'{name}: says no version. Expected "version": {VERSION}.')
            _version(found["version"], "version")
            return cls.from_data(found, name)
        except (SourceError, RecipeError) as error:
            message = str(error)
            raise RecipeError(message if message.startswith(name) else f"{name}: {message}") from error

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the recipe to a JSON file. Raises RecipeError where it cannot be written."""
        target = Path(path)
        data = self.to_json().encode()
        try:
            target.write_bytes(data)
        except OSError as error:
            raise RecipeError(f"{target.name}: cannot be written ({error.strerror}). Check the folder.") from error
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a recipe from a JSON file. Raises RecipeError; see `from_json`."""
        source = Path(path)
        try:
            with source.open("rb") as file:
                data = file.read(RECIPE_BYTES + 1)
        except OSError as error:
            raise RecipeError(f"{source.name}: cannot be read ({error.strerror}). Check the path.") from error
        return cls.from_json(data, source.name)

    # -- prompts -----------------------------------------------------------------------------------------------

    @classmethod
    def from_prompt(cls, prompt: str, **settings: Any) -> Recipe:
        """The recipe of a prompt with tags (see `prompt`); settings: the other fields, `steps`, `seed`, ...

        Its files are known by name only: `apply` looks for them in its `folder`. An adapter that is named twice is in
        the mix twice. Raises RecipeError for a tag that cannot be followed.
        """
        clean, mentions = parse_prompt(prompt)
        parts: list[Part] = []
        for mention in mentions:
            names = {part.name for part in parts}
            name, count = mention.name, 2
            while name in names:
                name, count = f"{mention.name}_{count}", count + 1
            parts.append(Part(name=name, tag=str(mention), at=mention.at))
        return cls(prompt=clean, adapters=tuple(parts), **settings)

    def to_prompt(self, *, check: bool = True) -> str:
        """The prompt with a tag for each adapter. A tag holds less than a recipe: what it has no word for is left out.

        Raises RecipeError for a prompt that holds what looks like a tag; check=False writes it all the same.
        """
        mentions = [part.mention for part in self.adapters]
        return write_prompt(self.prompt, mentions) if check else insert_tags(self.prompt, mentions)

    # -- pipelines ---------------------------------------------------------------------------------------------

    @classmethod
    def of(cls, pipeline: Any, **settings: Any) -> Recipe:
        """The mix that is in force on a pipeline now; settings: the other fields, `prompt`, `seed`, `steps`, ...

        Every file is hashed, which reads it once. Raises RecipeError for adapters that are in no file (state dicts, an
        adapter in training: save them first), and where all adapters are disabled.
        """
        from diffadapt.recipe.capture import capture

        return capture(pipeline, settings)

    def apply(
        self, pipeline: Any, folder: str | os.PathLike[str] | None = None, *, fetch: bool = False, check: bool = True
    ) -> dict[str, str]:
        """Bring a pipeline to exactly this mix: load what is not loaded, set every strength, merge or unmerge.

        folder: where to look for files that are not at their place, by name and then by hash. fetch: download what is
        on the Hub. check: refuse files whose hash is not the recipe's.

        Returns the name that each part has on the pipeline. Other adapters stay loaded, at strength 0. The output is
        the same to the bit where the stack holds the recipe's adapters in its order and no others (a fresh pipeline);
        else sums are rounded in another order. Raises RecipeError, which names every source that is missing or has a
        wrong hash, and what loading and merging raise; the pipeline is then as before.
        """
        from diffadapt.recipe.apply import apply

        return apply(self, pipeline, None if folder is None else Path(folder), fetch, check)

    def strengths(self, stack: PipelineAdapters) -> dict[str, Strength]:
        """Part -> strength, for the models that a stack is on. Raises RecipeError for a tag that cannot be followed."""
        models = {name: component.model for name, component in stack.components().items()}
        return {part.name: part.strength_for(models, self.steps) for part in self.adapters}

    def without_paths(self) -> Recipe:
        """The same recipe without the places of files on this machine, to give away. Hashes and addresses stay."""
        return replace(self, adapters=tuple(part.without_path() for part in self.adapters))
