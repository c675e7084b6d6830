"""From tables of TOML to dataclasses and back: every value is checked against the annotation of its field."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import field
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from diffadapt.errors import TrainingError

T = TypeVar("T")
_NO = object()
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def setting(default: Any, about: str, least: float = -math.inf, most: float = math.inf) -> Any:
    """A field with a default. about: what it means, for people. least, most: the bounds of a number."""
    known = {"about": about, "least": least, "most": most}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=known)
    return field(default=default, metadata=known)


def nested(kind: type[Any]) -> Any:
    """A field that is a table."""
    return field(default_factory=kind, metadata={"table": kind})


def parse(kind: type[T], given: Mapping[str, Any], where: str = "", **rest: Any) -> T:
    """The dataclass of a table. where: the table's name with a dot. rest: fields that no table has.

    Raises TrainingError for an unknown key, a value of the wrong type or out of its bounds.
    """
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if not f.metadata.get("hidden")}  # type: ignore[arg-type]
    found: dict[str, Any] = dict(rest)
    for key, value in given.items():
        if key not in fields:
            raise TrainingError(f"There is no setting {where}{key}{_instead(key, fields)}")
        about = fields[key].metadata
        if "table" in about:
            if not isinstance(value, Mapping):
                raise TrainingError(f"{where}{key} is {value!r}; expected a table, [{where}{key}].")
            found[key] = parse(about["table"], value, f"{where}{key}.")
        else:
            found[key] = _checked(value, hints[key], about, f"{where}{key}")
    return kind(**found)


def _instead(key: str, fields: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, fields, 1)
    meant = f"; {near[0]} is meant?" if near else "."
    return f"{meant} There are: {', '.join(fields)}."


def _checked(value: Any, hint: Any, about: Mapping[str, Any], name: str) -> Any:
    made = _fit(value, hint)
    if made is _NO:
        raise TrainingError(f"{name} is {value!r}; expected {_expected(hint)}.")
    if isinstance(made, (int, float)) and not about["least"] <= made <= about["most"]:
        most = f" to {about['most']:g}" if about["most"] < math.inf else " or more"
        raise TrainingError(f"{name} is {value!r}; expected {about['least']:g}{most}.")
    return made


def _fit(value: Any, hint: Any) -> Any:
    """The value as its field has it, or _NO."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return next((made for made in (_fit(value, one) for one in inner) if made is not _NO), _NO)
    if origin is Literal:
        return value if value in inner else _NO
    if origin is tuple:
        made = [_fit(one, inner[0]) for one in value] if isinstance(value, (list, tuple)) else [_NO]
        return _NO if _NO in made else tuple(made)
    if hint is float:
        right = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if right else _NO
    if hint is int:
        return value if isinstance(value, int) and not isinstance(value, bool) else _NO
    if hint in (bool, str):
        return value if isinstance(value, hint) else _NO
    return dict(value) if isinstance(value, Mapping) else _NO


def _expected(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_expected(one) for one in inner))
    if origin is Literal:
        return f"one of {', '.join(repr(one) for one in inner)}"
    if origin is tuple:
        return "a list of texts" if inner[0] is str else "a list of numbers"
    return _WORDS.get(hint, "a table")


def tables(value: Any, changed: bool = False) -> dict[str, Any]:
    """A dataclass as tables. changed: only what is not as it is by default."""
    found: dict[str, Any] = {}
    plain = type(value)()
    for one in dataclasses.fields(value):
        inner = getattr(value, one.name)
        if one.metadata.get("hidden"):
            continue
        if "table" in one.metadata:
            below = tables(inner, changed)
            if below or not changed:
                found[one.name] = below
        elif not changed or inner != getattr(plain, one.name):
            found[one.name] = list(inner) if isinstance(inner, tuple) else inner
    return found


def toml(value: Any, changed: bool = False, comments: bool = False) -> str:
    """A dataclass as TOML. changed: only what is not as it is by default. comments: what every key means."""
    about = {one.name: one.metadata for one in dataclasses.fields(value)}
    given = tables(value, changed)
    lines = list(_lines(given, about, comments))
    for name, inner in given.items():
        if "table" in about[name]:
            known = {one.name: one.metadata for one in dataclasses.fields(about[name]["table"])}
            said = [f"# {line}" for line in textwrap.wrap(str(about[name]["table"].__doc__), 110)] if comments else []
            lines += ["", *said, f"[{name}]", *_lines(inner, known, comments)]
    return "\n".join(lines).strip() + "\n"


def _lines(given: Mapping[str, Any], about: Mapping[str, Mapping[str, Any]], comments: bool) -> Iterator[str]:
    for name, value in given.items():
        if "table" not in about[name]:
            said = about[name].get("about")
            yield f"{name} = {literal(value)}" + (f"  # {said}" if comments and said else "")


def literal(value: Any) -> str:
    """A value as TOML writes it, on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {literal(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(literal(one) for one in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
