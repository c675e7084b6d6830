"""What a recipe's fields may hold: plain, finite, bounded values, checked on the way in and copied."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from diffadapt.errors import RecipeError, StackError
from diffadapt.inject.scaling import DEFAULT, Strength, rules
from diffadapt.inject.schedule import Number, Schedule, from_json
from diffadapt.io import limits
from diffadapt.io.plain_json import clip

RECIPE_BYTES: Final = limits.MIB
ADAPTERS: Final = 256
SCHEDULE: Final = "$schedule"
"""The key of a schedule within a strength. No module has such a name."""
_DEPTH: Final = 24
_VALUES: Final = 50_000
_HEX = re.compile(r"[0-9a-f]+")


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy of JSON data: dicts and tuples. Raises RecipeError for other types, NaN, infinity and deep nesting."""
    if depth > _DEPTH:
        raise RecipeError(f"{where} is nested more than {_DEPTH} deep. Expected plain settings.")
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)):
        return number(value, where)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise RecipeError(f"{where} has a key that is no text. Expected what JSON can hold.")
        return {key: plain(inner, where, depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(plain(inner, where, depth + 1) for inner in value)
    raise RecipeError(f"{where} holds a {type(value).__name__}. Expected what JSON can hold.")


def number(value: Any, where: str) -> float | int:
    """A finite number. Raises RecipeError for anything else, also for whole numbers beyond a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RecipeError(f"{where} is {clip(value, 60)}; expected a number.")
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise RecipeError(f"{where} is not finite or too large; expected a number.")
    return value


def whole(value: Any, where: str, low: int, high: int) -> int:
    """A whole number between two others."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        shown = clip(value, 60) if not isinstance(value, int) or -high <= value <= high else "too large"
        raise RecipeError(f"{where} is {shown}; expected a whole number from {low} to {high}.")
    return value


def text(value: Any, where: str) -> str:
    """Text of at most 65,536 characters that UTF-8 can hold."""
    if not isinstance(value, str):
        raise RecipeError(f"{where} is {clip(value, 60)}; expected text.")
    if len(value) > limits.METADATA_CHARACTERS:
        raise RecipeError(f"{where} has {len(value)} characters; expected at most {limits.METADATA_CHARACTERS}.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RecipeError(f"{where} holds half a character (a lone surrogate). Expected plain text.") from None
    return value


def digest(value: Any, where: str, low: int, high: int) -> str:
    """A hash in hex; lower case."""
    found = text(value, where).lower()
    if not low <= len(found) <= high or not _HEX.fullmatch(found):
        raise RecipeError(f"{where} is {clip(value, 80)}; expected {low} to {high} hexadecimal digits.")
    return found


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """An object."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise RecipeError(f"{where} is {clip(value, 60)}; expected an object.")
    return value


def listed(value: Any, where: str, most: int) -> Sequence[Any]:
    """A list of at most so many values."""
    if not isinstance(value, (list, tuple)):
        raise RecipeError(f"{where} is {clip(value, 60)}; expected a list.")
    if len(value) > most:
        raise RecipeError(f"{where} has {len(value)} entries; expected at most {most}.")
    return value


def strength(value: Any, where: str) -> Strength:
    """A strength in the grammar of `pipe.adapters.set`, copied. A schedule in it is a `Schedule`, or
    `{"$schedule": ...}` around what its `to_json` gives. Raises RecipeError for what that grammar would refuse."""
    found = _leaves(value, where, 0)
    try:
        count = len(rules(_numbers(found), ()))
    except StackError as error:
        raise RecipeError(f"{where}: {error}") from error
    if count > _VALUES:
        raise RecipeError(f"{where} has {count} values; expected at most {_VALUES}.")
    return found


def _numbers(value: Strength) -> Strength:
    """The strength with a number in the place of every schedule: what the grammar's own check is asked about."""
    if isinstance(value, Mapping):
        return {key: _numbers(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_numbers(inner) for inner in value)
    return 1.0 if isinstance(value, Schedule) else value


def _leaves(value: Any, where: str, depth: int) -> Strength:
    if isinstance(value, Schedule):
        return schedule(value, where)
    if depth > _DEPTH:
        raise RecipeError(f"{where} is nested more than {_DEPTH} deep. Expected components, blocks and modules.")
    if isinstance(value, Mapping):
        if value.keys() == {SCHEDULE}:
            return schedule(value[SCHEDULE], where)
        return {text(key, where): _leaves(inner, where, depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_leaves(inner, where, depth + 1) for inner in value)
    return number(value, where)


def scaled(value: Strength, factor: Number) -> Strength:
    """The strength with everything multiplied, also what no rule of it names.

    Raises RecipeError where both are schedules.
    """
    if factor == 1.0:
        return value
    found = times(value, factor)
    if isinstance(value, Mapping):
        return {DEFAULT: factor, **cast("Mapping[str, Strength]", found)}
    if isinstance(value, (list, tuple)):
        return {DEFAULT: factor, **{str(i): inner for i, inner in enumerate(cast("Sequence[Strength]", found))}}
    return found


def times(value: Strength, factor: Number) -> Strength:
    """The strength with every number in it multiplied. Raises RecipeError where both are schedules."""
    if isinstance(value, Mapping):
        return {key: times(inner, factor) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(times(inner, factor) for inner in value)
    if isinstance(value, Schedule) and isinstance(factor, Schedule):
        raise RecipeError("A strength has a schedule of its own within an adapter that has one. Expected one of them.")
    return cast("Number", value) * factor  # type: ignore[operator]


def schedule(value: Any, where: str) -> Schedule:
    """A schedule, also as the JSON data of its `to_json`: `{"window": [0.2, 0.8]}`, `{"points": [[0, 0.3], [1, 1]]}`,
    `{"steps": [0.9, 0.8, 0.7]}`, `{"turn": [0, 2]}`. Raises RecipeError for anything else, also for functions."""
    try:
        return from_json(plain(value.to_json() if isinstance(value, Schedule) else mapping(value, where), where))
    except StackError as error:
        raise RecipeError(f"{where}: {error}") from error


def schedule_data(value: Schedule) -> dict[str, Any]:
    """The JSON data of a schedule, without what is at its default."""
    return {key: inner for key, inner in value.to_json().items() if not (key in ("value", "every") and inner == 1)}
