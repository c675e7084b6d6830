"""Frozen records that check their own fields, and go to JSON data and back without losing fields they do not know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from diffadapt.errors import RecipeError
from diffadapt.inject.schedule import Schedule
from diffadapt.io.plain_json import clip
from diffadapt.recipe.values import SCHEDULE, mapping, plain, schedule_data

Check = Callable[[Any, str], Any]
Self = TypeVar("Self", bound="Record")


def optional(check: Check) -> Check:
    """The same check, which lets None pass."""
    return lambda value, where: None if value is None else check(value, where)


@dataclass(frozen=True, kw_only=True)
class Record:
    """Fields with a check each. extra: what a file held beside them, kept and written back."""

    CHECKS: ClassVar[Mapping[str, Check]] = {}
    KIND: ClassVar[str] = "record"

    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, check in self.CHECKS.items():
            object.__setattr__(self, key, check(getattr(self, key), f"{self._where()}{key}"))
        extra = mapping(plain(self.extra, f"{self._where()}extra"), "extra")
        if clash := extra.keys() & {f.name for f in fields(self) if f.name != "extra"}:
            raise RecipeError(f"{self._where()}extra names the known field {clip(min(clash))}. Set the field itself.")
        object.__setattr__(self, "extra", extra)

    def _where(self) -> str:
        """How messages begin that are about a field."""
        return f"{self.KIND}: "

    def to_data(self) -> dict[str, Any]:
        """The fields that differ from their defaults, and those without, as JSON data."""
        found: dict[str, Any] = {}
        for f in fields(self):
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            value = getattr(self, f.name)
            if f.name != "extra" and (default is MISSING or value != default):
                found[f.name] = schedule_data(value) if isinstance(value, Schedule) else _data(value)
        return {**found, **_data(self.extra)}

    @classmethod
    def from_data(cls: type[Self], data: Any, where: str) -> Self:
        """Make a record of JSON data. Raises RecipeError for a field that is missing or does not hold what it may."""
        given = mapping(data, where)
        known = {f.name for f in fields(cls)} - {"extra"}
        for f in fields(cls):
            if f.default is MISSING and f.default_factory is MISSING and f.name not in given:
                raise RecipeError(f"{where} has no field {f.name!r}. Expected one.")
        values = {key: value for key, value in given.items() if key in known}
        return cls(**values, extra={key: value for key, value in given.items() if key not in known})


def _data(value: Any) -> Any:
    """Records as objects, tuples as lists, schedules as the data they are, all the way down."""
    if isinstance(value, Schedule):
        return {SCHEDULE: schedule_data(value)}
    if isinstance(value, Record):
        return value.to_data()
    if isinstance(value, Mapping):
        return {key: _data(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_data(inner) for inner in value]
    return value
