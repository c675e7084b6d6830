"""Every action of the mixer as a named, typed function: for `gradio_client`, for MCP, and for the page itself.

A mix is written as a prompt with tags, "a red star <lora:ink:0.8> <lora:dusk:0.5:start=0.2>", or as a recipe's JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .acting_files import FileActions
from .acting_insight import InsightActions
from .acting_library import LibraryActions
from .acting_pictures import PictureActions
from .telling import checked, telling

MODEL = "model"
"""What everything that uses the pipeline waits for, one at a time."""


@dataclass(frozen=True)
class Endpoint:
    """How a function is served. model: whether it waits for the pipeline."""

    call: Callable[..., Any]
    model: bool

    @property
    def name(self) -> str:
        return self.call.__name__


class Endpoints(LibraryActions, PictureActions, InsightActions, FileActions):
    """All actions."""

    def all(self) -> list[Endpoint]:
        """Every endpoint, in the order in which they are shown."""
        free = (self.list_adapters, self.inspect_adapter, self.upload_adapter, self.mix_to_recipe, self.read_recipe,
                self.convert, self.list_pictures, self.stop, self.list_choices)  # fmt: skip
        waiting = (self.generate, self.draw_grid, self.why, self.compare, self.spectrum, self.balance, self.save_mix)
        found = [(one, False) for one in free] + [(one, True) for one in waiting]
        return [Endpoint(telling(checked(call)), model) for call, model in found]
