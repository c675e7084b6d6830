"""Measure model classes on the meta device, for the layouts of the families: `python -m diffadapt.families.measure`.

No weight is made. Needs the libraries that hold the classes, which reading a file does not.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffadapt.algorithms.layer import Layer
from diffadapt.families.model import Model

FOLDER = Path(__file__).parent / "layouts"
_LETTERS = "ijklmn"


def build(model: Model) -> nn.Module:
    """The model on the meta device."""
    library, _, name = model.cls.rpartition(".")
    cls = getattr(importlib.import_module(library), name)
    config_class = getattr(cls, "config_class", None)
    # ChatGLM would make its weights by itself, on the CPU.
    more = {"empty_init": False} if "empty_init" in inspect.signature(cls).parameters else {}
    with torch.device("meta"):
        built = cls(**model.config) if config_class is None else cls(config_class(**model.config), **more)
    return built if isinstance(built, nn.Module) else nn.Module()


def measure(module: nn.Module) -> dict[str, Any]:
    """The layout of a model, as plain data for JSON."""
    counted = _counted(module)
    modules: dict[str, list[list[int]]] = {}
    parameters: dict[str, list[list[int]]] = {}
    owned: set[str] = set()
    for path, part in module.named_modules():
        layer = Layer.of(part)
        if layer is not None:
            _note(modules, pattern_of(path, counted), layer.shape)
            owned |= {f"{path}.{name}" for name, _ in part.named_parameters(recurse=False)}
    for path, parameter in module.named_parameters():
        if path not in owned:
            _note(parameters, pattern_of(path, counted), tuple(parameter.shape))
    depths = {
        pattern_of(path, counted): len(part)
        for path, part in module.named_modules()
        if isinstance(part, nn.ModuleList) and path in counted
    }
    return {"depths": depths, "modules": modules, "parameters": parameters}


def pattern_of(path: str, counted: set[str]) -> str:
    """The path with a placeholder for every index into a list of like blocks."""
    words, letters = path.split("."), iter(_LETTERS)
    return ".".join(
        f"{{{next(letters)}}}" if ".".join(words[:at]) in counted and word.isdecimal() else word
        for at, word in enumerate(words)
    )


def _counted(module: nn.Module) -> set[str]:
    """The lists whose items are alike; other indices (a Linear behind an activation) are fixed parts of names."""
    return {path for path, part in module.named_modules() if isinstance(part, nn.ModuleList) and _alike(part)}


def _alike(items: nn.ModuleList) -> bool:
    """Whether these are blocks of one class, or of a few that alternate."""
    classes = {type(item) for item in items}
    return len(classes) == 1 or (
        len(classes) < len(items) and all(any(True for _ in item.children()) for item in items)
    )


def _note(table: dict[str, list[list[int]]], pattern: str, shape: tuple[int, ...]) -> None:
    shapes = table.setdefault(pattern, [])
    if list(shape) not in shapes:
        shapes.append(list(shape))


def text_of(layout: dict[str, Any]) -> str:
    """The JSON of a layout: one pattern a line, sorted, so that a change of a library reads as a small difference."""
    lines = ["{"]
    for name in ("depths", "modules", "parameters"):
        rows = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(layout[name].items())]
        lines.append(f' "{name}": {{' + ("\n" + ",\n".join(rows) + "\n }" if rows else "}"))
        lines[-1] += "," if name != "parameters" else ""
    return "\n".join([*lines, "}", ""])


def main(names: list[str]) -> None:
    """Write the layouts of these names, or of all families."""
    from diffadapt.families import ENCODERS, FAMILIES

    tables = (*ENCODERS, *(names for family in FAMILIES for names in family.components.values()))
    models = {names.model.layout: names.model for names in tables if names.model}
    for name in names or models:
        (FOLDER / f"{name}.json").write_text(text_of(measure(build(models[name]))), "utf-8")
        print(name)


if __name__ == "__main__":
    main(sys.argv[1:])
