"""Errors as sentences, for whoever asked."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import gradio as gr

from diffadapt.errors import DiffAdaptError

from .studio import Cancelled

_log = logging.getLogger(__name__)
Handler = TypeVar("Handler", bound=Callable[..., Any])


def telling(handler: Handler) -> Handler:
    """The handler with its errors as sentences for whoever asked. What is no error of ours is logged, too."""

    def said(error: Exception) -> gr.Error:
        if isinstance(error, Cancelled):
            return gr.Error("Stopped.", title="Stopped", print_exception=False)
        if isinstance(error, DiffAdaptError):
            return gr.Error(str(error), print_exception=False)
        _log.error("%s failed", handler.__name__, exc_info=error)
        text = f"{type(error).__name__}: {error}. This is an error of the program; its log has the details."
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
