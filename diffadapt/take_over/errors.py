"""Our errors, for scripts that catch what Diffusers raises: ValueError, and OSError for what cannot be read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from diffadapt.errors import DiffAdaptError, SourceError

P = ParamSpec("P")
R = TypeVar("R")


_BOTH: dict[type[DiffAdaptError], type[DiffAdaptError]] = {}


def both(kind: type[DiffAdaptError]) -> type[DiffAdaptError]:
    """A class that is our kind of error and the built-in that Diffusers raises there. It keeps our kind's name."""
    if issubclass(kind, ValueError):
        return kind
    if kind not in _BOTH:
        # What is not found is an OSError in Diffusers, or a ValueError where its name could be no Hub id.
        builtins = (OSError, ValueError) if issubclass(kind, SourceError) else (ValueError,)
        _BOTH[kind] = type(kind.__name__, (kind, *builtins), {"__module__": kind.__module__, "__doc__": kind.__doc__})
    return _BOTH[kind]


def as_diffusers(method: Callable[P, R]) -> Callable[P, R]:
    """Let a method's errors be caught as those of Diffusers too."""

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except DiffAdaptError as error:
            if isinstance(error, both(type(error))):
                raise
            raise both(type(error))(*error.args) from error

    return wrapped
