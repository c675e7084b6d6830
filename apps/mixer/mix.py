"""A mix as the page has it, rows of plain data, and its way to a recipe, to a prompt, and back.

A row says what a prompt's tag says (see `diffadapt.recipe.prompt`), whether it is on, and which trigger words are. What
a recipe holds beyond a tag (strengths by block, schedules) stays with its row as it is, until the row is given block
weights or steps of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from types import NoneType
from typing import Any

from diffadapt.errors import RecipeError
from diffadapt.io.plain_json import clip
from diffadapt.recipe import Mention, Merge, Part, Recipe, parse_prompt
from diffadapt.recipe.prompt import insert_tags, parse_tag
from diffadapt.recipe.recipe import SUM

from .cards import Card
from .shelf import Shelf

ROWS = 64
"""Of a mix."""
CONSTANT = "constant total"
NORMALISATIONS = (SUM, CONSTANT)
_BOUND = 1000.0
_FOR_TAGS = re.compile(r"[^:>]*")
_KINDS: Mapping[str, tuple[type, ...]] = {"on": (bool,), "triggers": (list, tuple), "part": (Mapping, NoneType)}


@dataclass(frozen=True)
class Row:
    """One adapter of a mix.

    id: of its card; "" where the library has none of this name. weight: of the denoiser; te: of the text encoders, None
    as the denoiser. blocks: a list or preset of block weights, "" for none. start, stop: when it acts, parts of the
    run. triggers: its words that are switched on. tag: further items of the tag it came from. part: of the recipe it
    came from, as data.
    """

    id: str
    name: str
    on: bool = True
    weight: float = 1.0
    te: float | None = None
    blocks: str = ""
    start: float = 0.0
    stop: float = 1.0
    triggers: tuple[str, ...] = ()
    tag: str = ""
    part: Mapping[str, Any] | None = None

    @classmethod
    def from_data(cls, data: Any) -> Row:
        """A row of plain data, from a page or a stranger. Raises RecipeError for what no row may hold."""
        if not isinstance(data, Mapping):
            raise RecipeError(f"A row is {clip(data, 60)}; expected an object.")
        known = {field.name for field in fields(cls)}
        found = {key: value for key, value in data.items() if key in known}
        if lacking := {"id", "name"} - found.keys():
            raise RecipeError(f"A row lacks {' and '.join(sorted(lacking))}.")
        found = {"on": True, "triggers": (), "part": None, **found}
        for key, kinds in _KINDS.items():
            if not isinstance(found[key], kinds):
                raise RecipeError(f"{clip(found['name'], 60)}: {key} is {clip(found[key], 60)}, of another type.")
        row = cls(**found | {"triggers": tuple(found["triggers"])})
        for key in ("weight", "te", "start", "stop"):
            _bounded(getattr(row, key), key, row.name)
        texts: list[Any] = [row.id, row.name, row.blocks, row.tag, *row.triggers]
        if not all(isinstance(text, str) and len(text) < 4096 for text in texts):
            raise RecipeError(f"The row {clip(row.name, 60)} holds a text that is none or too long.")
        if not _FOR_TAGS.fullmatch(row.blocks):
            raise RecipeError(f"{row.name}: blocks is {clip(row.blocks, 60)}; no tag can hold ':' or '>' there.")
        if not 0.0 <= row.start < row.stop <= 1.0:
            raise RecipeError(f"{row.name}: acts from {row.start:g} to {row.stop:g}; expected 0 <= from < to <= 1.")
        return row

    def to_data(self) -> dict[str, Any]:
        return asdict(self) | {"triggers": list(self.triggers), "part": dict(self.part) if self.part else None}

    @property
    def mention(self) -> Mention:
        """The row as a tag."""
        base = parse_tag(self.tag) if self.tag else Mention(self.name)
        te = float(self.weight if self.te is None else self.te)
        start, stop = self.start or None, None if self.stop == 1.0 else self.stop
        if (start, stop) == (None, None):  # the tag's, which may be steps
            start, stop = base.start, base.stop
        return replace(
            base, name=self.name, te=te, unet=None if te == self.weight else float(self.weight),
            lbw=_blocks(self.blocks), start=start, stop=stop,
        )  # fmt: skip

    @classmethod
    def of_mention(cls, said: Mention, card: Card | None, words: Sequence[str] | None = None) -> Row:
        """A tag as a row. words: the trigger words that are on; None for all that the card has."""
        rest = replace(said, te=1.0, unet=None, lbw=None, start=None, stop=None)
        blocks = said.lbw if isinstance(said.lbw, str) else ",".join(map(_exact, said.lbw or ()))
        counts = any(isinstance(moment, int) and moment for moment in (said.start, said.stop))
        if counts:  # steps of a run whose length only the recipe knows stay with the tag
            rest = replace(rest, start=said.start, stop=said.stop)
        known = list(card.trigger_words) if card else []
        return cls(
            id=card.id if card else "", name=said.name, weight=said.rest, te=None if said.unet is None else said.te,
            blocks=blocks, start=0.0 if counts else float(said.start or 0.0),
            stop=1.0 if counts or said.stop is None else float(said.stop),
            triggers=tuple(known if words is None else words),
            tag=str(rest) if rest != Mention(said.name) else "",
        )  # fmt: skip

    def to_part(self, at: int | None = None) -> Part:
        """The row as a recipe's adapter."""
        part = self.part or {}
        data: dict[str, Any] = {"file": self.id} if self.id else {}
        data |= {"name": self.name, "triggers": list(self.triggers), **_only(part, _FILE)}
        data |= {} if at is None else {"at": at}
        held = _only(part, _BEYOND) if (self.start, self.stop) == (0.0, 1.0) else {}
        if held and "tag" not in part and not self.blocks and self.te is None:
            return Part.from_data(data | held | {"weight": self.weight}, "row")
        schedule = held if "tag" in part else {}  # a tag has its weights itself, and may have a schedule beside it
        return Part.from_data(data | schedule | {"tag": str(self.mention)}, "row")


_FILE = ("file", "sha256", "autov3", "size", "config", "rule", "alpha", "into")
_BEYOND = ("strength", "schedule")
_ALL = (*_FILE, *_BEYOND, "tag")


def _only(part: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """These fields of a part's data; what a stranger's recipe holds beside them goes no further."""
    return {key: part[key] for key in keys if key in part}


def rows_of(data: Any) -> list[Row]:
    """The rows of plain data. Raises RecipeError; see `Row.from_data`."""
    if not isinstance(data, Sequence) or isinstance(data, str) or len(data) > ROWS:
        raise RecipeError(f"A mix is a list of at most {ROWS} rows.")
    return [Row.from_data(one) for one in data]


def row_of_card(card: Card, rows: Sequence[Row]) -> Row:
    """A new row for a card, under a name that no other row has."""
    taken, name, number = {row.name for row in rows}, card.name, 2
    while name in taken:
        name, number = f"{card.name}_{number}", number + 1
    return Row(card.id, name, triggers=card.trigger_words)


# -- prompts ---------------------------------------------------------------------------------------------------


def with_prompt(rows: Sequence[Row], prompt: str, shelf: Shelf) -> list[Row]:
    """The rows after somebody wrote a prompt: as its tags say. A row whose tag is gone is switched off, not lost.

    Raises RecipeError for a tag that cannot be followed.
    """
    left = list(rows)
    found: list[Row] = []
    for said in parse_prompt(prompt)[1]:
        known = next((row for row in left if row.name == said.name), None)
        if known is not None:
            left.remove(known)
            if known.on and known.to_part().mention == said:
                found.append(known)
                continue
        card = shelf.named(known.id if known and known.id else said.name)
        row = Row.of_mention(said, card, known.triggers if known else None)
        found.append(replace(row, part=_only(known.part, _FILE)) if known and known.part else row)
    off = [replace(row, on=False) for row in left]
    return _in_order(found + off, rows)


def _in_order(found: list[Row], before: Sequence[Row]) -> list[Row]:
    """Rows that were there stay in their order; new ones follow."""
    place = {row.name: number for number, row in enumerate(before)}
    return sorted(found, key=lambda row: place.get(row.name, len(place)))


def to_prompt(rows: Sequence[Row], prompt: str) -> str:
    """The prompt with the tags that the rows mean: each where it stood, new ones behind the text. Raises RecipeError;
    see `parse_prompt`."""
    clean, said = parse_prompt(prompt)
    text = clean.rstrip()
    places = {one.name: one.at or 0 for one in said if one.at is not None and one.at <= len(text)}
    mentions = [row.to_part().mention for row in rows if row.on]
    inside = [replace(one, at=places[one.name]) for one in mentions if one.name in places]
    behind = "".join(f" {replace(one, at=None)}" for one in mentions if one.name not in places)
    return (insert_tags(text, inside) + behind).lstrip()


# -- recipes ---------------------------------------------------------------------------------------------------


def to_recipe(rows: Sequence[Row], prompt: str, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of a mix. settings: fields of `Recipe`, and `normalise` and `merged`, which become what they mean.

    Raises RecipeError for settings and rows that no recipe may hold.
    """
    given = dict(settings)
    normalise, merged = given.pop("normalise", SUM), given.pop("merged", False)
    if normalise not in NORMALISATIONS:
        raise RecipeError(f"No normalisation is called {clip(normalise, 60)}; there are {', '.join(NORMALISATIONS)}.")
    clean, said = parse_prompt(prompt)
    places = {one.name: len(_tidy(f"{clean[: one.at]}|")) - 1 for one in said}
    parts = tuple(row.to_part(places.get(row.name)) for row in rows if row.on)
    recipe = Recipe(prompt=_tidy(clean), adapters=parts, merge=Merge() if merged else None, **given)
    return recipe.with_total(1.0) if normalise == CONSTANT else recipe


def _tidy(text: str) -> str:
    """A prompt without the double gaps that tags leave."""
    return re.sub(r" {2,}", " ", text).strip()


def from_recipe(recipe: Recipe, shelf: Shelf) -> tuple[list[Row], list[str]]:
    """The rows of a recipe, and the names of adapters that the library does not have."""
    rows, missing = [], []
    for part in recipe.adapters:
        card = shelf.holding(part)
        if card is None:
            missing.append(part.label)
        row = Row.of_mention(replace(part.mention, name=part.name), card, part.triggers)
        held = part.strength is not None or part.schedule is not None
        if held and part.tag is None:  # what a tag cannot say stays as it is
            row = replace(row, weight=float(part.weight), te=None, start=0.0, stop=1.0, blocks="", tag="")
        rows.append(replace(row, part=_only(part.without_path().to_data(), _ALL)))
    return rows, missing


def _blocks(text: str) -> str | tuple[float, ...] | None:
    """Block weights as a mention has them: numbers as such, a preset's name as text."""
    if not text.strip():
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return text.strip()


def _exact(value: float) -> str:
    """A number in the fewest digits that are read as it."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _bounded(value: Any, key: str, name: str) -> None:
    if value is None and key == "te":
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_BOUND <= value <= _BOUND:
        raise RecipeError(f"{clip(name, 60)}: {key} is {clip(value, 60)}; expected a number.")
