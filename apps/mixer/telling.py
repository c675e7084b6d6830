"""Errors as sentences, for whoever asked."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, get_type_hints

import gradio as gr

from diffadapt.errors import DiffAdaptError, RecipeError
from diffadapt.io.plain_json import clip

from .studio import Cancelled

_log = logging.getLogger(__name__)
Handler = TypeVar("Handler", bound=Callable[..., Any])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_CHECKS: Mapping[Any, tuple[str, Callable[[Any], bool]]] = {
    str: ("text", lambda value: isinstance(value, str)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: _is_number(value) and value == value // 1),
    float: ("a number", _is_number),
    list[str]: ("a list of texts", lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value)),
}


def checked(call: Handler) -> Handler:
    """The function, which refuses arguments of other types than it says: a client may send whatever JSON can hold."""
    kinds = {name: kind for name, kind in get_type_hints(call).items() if kind in _CHECKS and name != "return"}
    names = [*inspect.signature(call).parameters]

    @functools.wraps(call)
    def run(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        for name, kind in kinds.items():
            said, holds = _CHECKS[kind]
            if name in given and not holds(given[name]):
                raise RecipeError(f"{name} is {clip(given[name], 60)}; expected {said}.")
            if name in given and kind is int:
                given[name] = int(given[name])
        return call(**given)

    return run  # type: ignore[return-value]


def telling(handler: Handler) -> Handler:
    """The handler with its errors as sentences for whoever asked. What is no error of ours is logged, too."""

    def said(error: Exception) -> gr.Error:
        if isinstance(error, Cancelled):
            return gr.Error("Stopped.", title="Stopped", print_exception=False)
        if isinstance(error, DiffAdaptError):
            return gr.Error(str(error), print_exception=False)
        _log.error("%s failed", handler.__name__, exc_info=error)
        # Not its text, which may name places on this machine.
        text = f"This is an error of the program ({type(error).__name__}); its log has the details."
        return gr.Error(text, print_exception=False)

    @functools.wraps(handler)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            raise said(error) from error

    @functools.wraps(handler)
    def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from handler(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            raise said(error) from error

    return stream if inspect.isgeneratorfunction(handler) else run  # type: ignore[return-value]
