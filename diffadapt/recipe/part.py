"""One adapter of a recipe: which file it is, how strong it is, where and when."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, ClassVar, Final

from torch import nn

from diffadapt.errors import RecipeError, StackError
from diffadapt.inject.own_blocks import strength_for
from diffadapt.inject.placement import LINEAR
from diffadapt.inject.scaling import DEFAULT, Strength
from diffadapt.inject.schedule import Schedule, Window
from diffadapt.io.plain_json import clip
from diffadapt.recipe import values
from diffadapt.recipe.prompt import Mention, parse_tag
from diffadapt.recipe.record import Check, Record, optional
from diffadapt.recipe.values import digest, number, scaled, text, times, whole

OF_NOTHING: Final = "e3b0c44298fc"
"""AutoV3 of no data at all: written by tools that hashed an empty buffer, and shared by files that have nothing else
in common."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_BASED_ON = re.compile(r"X(?:([+-])(\d+\.?\d*|\.\d+))?")


def _hash(value: Any, where: str) -> str | None:
    found = digest(value, where, 8, 64)
    return None if found.startswith(OF_NOTHING) or OF_NOTHING.startswith(found) else found


def _tag(value: Any, where: str) -> str:
    return str(parse_tag(text(value, where)))


def _strings(value: Any, where: str) -> Mapping[str, str]:
    return {text(key, where): text(inner, where) for key, inner in values.mapping(value, where).items()}


def _name(value: Any, where: str) -> str:
    found = text(value, where)
    if not found:
        raise RecipeError(f"{where} is empty; expected the adapter's name.")
    return found


@dataclass(frozen=True, kw_only=True)
class Part(Record):
    """One adapter.

    name: on the pipeline. file: its file's name. source: where it came from: `hf://owner/name@revision/file`, an https
        address, or a path. sha256, size: of the whole file. autov3: the start of the SHA-256 of its tensors' data, or
        of the file (what web UIs write). config: SHA-256 of the JSON beside the file, which is part of its meaning.
    weight: multiplies `strength`. strength: by component and block, in the grammar of `pipe.adapters.set`; None is 1.
    tag, at: instead of both, the tag of a prompt and its place there. Its block list and its steps are worked out for
        the pipeline that the recipe is applied to.
    schedule: when it acts; multiplies the strength. rule: how the effect follows the strength; `load_adapter`'s
        `strength`. alpha, into: what `load_adapter` was told. triggers: its trigger words that are switched on.
    """

    name: str
    file: str | None = None
    source: str | None = None
    sha256: str | None = None
    autov3: str | None = None
    size: int | None = None
    config: str | None = None
    weight: float = 1.0
    strength: Strength | None = None
    tag: str | None = None
    at: int | None = None
    schedule: Schedule | None = None
    rule: str = LINEAR
    alpha: float | None = None
    into: Mapping[str, str] = field(default_factory=dict)
    triggers: tuple[str, ...] = ()

    KIND: ClassVar[str] = "adapter"
    CHECKS: ClassVar[Mapping[str, Check]] = {
        "name": _name,
        "file": optional(text),
        "source": optional(text),
        "sha256": optional(lambda value, where: digest(value, where, 64, 64)),
        "autov3": optional(_hash),
        "size": optional(lambda value, where: whole(value, where, 0, 1 << 50)),
        "config": optional(lambda value, where: digest(value, where, 64, 64)),
        "weight": number,
        "strength": optional(values.strength),
        "tag": optional(_tag),
        "at": optional(lambda value, where: whole(value, where, 0, 1 << 20)),
        "schedule": optional(values.schedule),
        "rule": text,
        "alpha": optional(number),
        "into": _strings,
        "triggers": lambda value, where: tuple(text(word, where) for word in values.listed(value, where, 256)),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tag is not None and (self.strength is not None or self.weight != 1.0):
            raise RecipeError(f"{self._where()}both a tag and a weight or strength. Expected one of them.")

    def _where(self) -> str:
        return f"adapter {clip(self.name, 60)}: "

    @property
    def label(self) -> str:
        """What messages call the part: its name, and the file's."""
        return repr(self.name) if self.file is None else f"{self.name!r} ({self.file})"

    @property
    def has_hash(self) -> bool:
        """Whether the part says which file it is by more than a name."""
        return self.sha256 is not None or self.autov3 is not None

    @property
    def path(self) -> str | None:
        """`source` where it is a path on some machine."""
        return None if self.source is None or _ADDRESS.match(self.source) else self.source

    def without_path(self) -> Part:
        """The same part without the place of its file on this machine; the file's name stays."""
        if self.path is None:
            return self
        name = PurePosixPath(PureWindowsPath(self.path).as_posix()).name
        return replace(self, source=None, file=self.file or name)

    @property
    def main_weight(self) -> float:
        """The one number that says most of how strong it is: `weight`, or that of a tag's denoiser."""
        return self.weight if self.tag is None else parse_tag(self.tag).rest

    def with_weight(self, weight: float) -> Part:
        """The same part at another weight; a tag's text encoders keep their ratio to the rest, where that has one."""
        if self.tag is None:
            return replace(self, weight=weight)
        weight = float(number(weight, f"{self._where()}weight"))
        said = parse_tag(self.tag)
        te = weight if said.unet is None else said.te * weight / said.rest if said.rest else said.te
        return replace(self, tag=str(replace(said, te=te, unet=None if said.unet is None else weight)))

    def scaled(self, factor: float) -> Part:
        """The same part, so many times as strong."""
        if self.tag is None:
            return replace(self, weight=self.weight * factor)
        said = parse_tag(self.tag)
        unet = None if said.unet is None else said.unet * factor
        return replace(self, tag=str(replace(said, te=said.te * factor, unet=unet)))

    @property
    def mention(self) -> Mention:
        """The part as a prompt's tag: the one it came with, or as much as a tag can say."""
        if self.tag is not None:
            return replace(parse_tag(self.tag), at=self.at)
        te, unet = self._two_weights()
        window, start, stop = self.schedule, None, None
        if isinstance(window, Window):
            te, unet = te * window.value, unet * window.value
            start, stop = float(window.start), float(window.stop)
        return Mention(self.name, te, None if unet == te else unet, start=start, stop=stop, at=self.at)

    def _two_weights(self) -> tuple[float, float]:
        """The strength of the text encoders and of the rest, where the strength says one number for them."""
        if not isinstance(self.strength, Mapping):
            weight = self.weight * (self.strength if isinstance(self.strength, (int, float)) else 1.0)
            return float(weight), float(weight)
        given = self.strength.get(DEFAULT, 1.0)
        found = [float(given) if isinstance(given, (int, float)) else 1.0] * 2
        for key, value in self.strength.items():
            if isinstance(value, (int, float)) and key.startswith(("text_encoder", "unet", "transformer", "prior")):
                found[not key.startswith("text_encoder")] = float(value)
        return self.weight * found[0], self.weight * found[1]

    def strength_for(self, models: Mapping[str, nn.Module], steps: int | None = None) -> Strength:
        """The strength on a pipeline, with its schedule: a tag's weights, block list and steps are worked out.

        models: the pipeline's, by component. steps: how many the run has, for tags that count them.
        Raises RecipeError for a tag that asks for what is not done here: fewer ranks (`dyn`), the extension's own
        presets of elements (`lbwe`), random blocks, a block list for another kind of model; and for a schedule within a
        schedule.
        """
        if self.tag is None:
            strength = scaled(1.0 if self.strength is None else self.strength, self.weight)
            return strength if self.schedule is None else scaled(strength, self.schedule)
        said = parse_tag(self.tag)
        strength = _blocks(self.tag, said, models)
        schedule = self.schedule or _window(self.tag, said, steps)
        return strength if schedule is None else scaled(strength, schedule)


def _blocks(tag: str, said: Mention, models: Mapping[str, nn.Module]) -> Strength:
    """The strength that a tag's weights and block list mean for these models."""
    if said.dyn is not None or said.lbwe is not None:
        what = "dyn= asks for fewer ranks" if said.dyn is not None else "lbwe= names a preset of another program"
        raise RecipeError(f"{clip(tag)}: {what}, which is not done here. Leave it out.")
    if said.lbw is None:
        if said.te == said.rest:
            return said.te
        return {DEFAULT: said.rest, **{name: said.te for name in models if name.startswith("text_encoder")}}
    try:
        blocks = strength_for(_numbers(said), models)
    except StackError as error:
        raise RecipeError(f"{clip(tag)}: {error}") from error
    if not isinstance(blocks, Mapping):
        return scaled(blocks, said.rest)
    # A list's first number is the text encoders', also where it stands as the default.
    return {
        key: times(value, said.te if key.startswith(("text_encoder", DEFAULT)) else said.rest)
        for key, value in blocks.items()
    }


def _window(tag: str, said: Mention, steps: int | None) -> Schedule | None:
    """When a tag's adapter acts, of a run of so many steps."""
    if said.start is None and said.stop is None:
        return None
    if steps is None and any(isinstance(moment, int) and moment for moment in (said.start, said.stop)):
        raise RecipeError(f"{clip(tag)} counts steps, and the recipe does not say of how many. Set its steps.")

    def progress(moment: float | int) -> float:
        return min(moment / (steps or 1), 1.0) if isinstance(moment, int) else moment

    start = 0.0 if said.start is None else progress(said.start)
    stop = 1.0 if said.stop is None else progress(said.stop)
    return values.schedule({"window": [start, stop]}, clip(tag))


def _numbers(said: Mention) -> str | list[float]:
    """The block list, with its `X` and `X+0.2` worked out from the tag's `x`."""
    if not isinstance(said.lbw, str):
        return list(said.lbw or ())
    base = 1.0 if said.x is None else said.x
    parts = said.lbw.split(",")
    for i, part in enumerate(parts):
        if found := _BASED_ON.fullmatch(part.strip()):
            parts[i] = repr(base + float(f"{found[1] or '+'}{found[2] or 0}"))
    return ",".join(parts)
