"""JSON from strangers: size, nesting and duplicate keys are bounded, and every failure is this package's own error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffadapt.errors import SourceError, UnsafeFileError
from diffadapt.io import limits


class _DuplicateKeyError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, refusing a key that stands twice: readers would disagree about which one counts."""
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _DuplicateKeyError(name)
            seen.add(name)
    return result


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def parse_object(text: bytes, name: str, part: str) -> dict[str, Any]:
    """Parse one JSON object; `name` and `part` ("header", "adapter_config.json") say in errors whose it is."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except _DuplicateKeyError as error:
        raise UnsafeFileError(
            f"{name}: the {part} names {clip(error.args[0])} twice. Expected every key once; "
            "readers would disagree about which one counts, so get the file again or ask its author."
        ) from None
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{name}: the {part} is not UTF-8 (byte {error.start}). The file is damaged: download it again."
        ) from None
    except RecursionError:
        raise UnsafeFileError(f"{name}: the {part} is nested too deeply. Do not use this file.") from None
    except ValueError as error:
        raise SourceError(f"{name}: the {part} is not JSON ({str(error)[:80]}). Download the file again.") from None
    if not isinstance(value, dict):
        raise SourceError(f"{name}: the {part} is a JSON {type(value).__name__}, expected an object.")
    return value


def leading_object(text: str, start: int) -> tuple[dict[str, Any], int] | None:
    """The JSON object at `start` and where it ends; None where `parse_object` would refuse it, and say why."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return (value, end) if isinstance(value, dict) else None


def read_object(path: Path, name: str) -> dict[str, Any]:
    """Read a small JSON file (at most `limits.CONFIG_BYTES`) that holds one object."""
    try:
        with path.open("rb") as file:
            text = file.read(limits.CONFIG_BYTES + 1)
    except OSError as error:
        raise SourceError(f"{name}: {path.name} cannot be read ({error.strerror}). Check it.") from error
    if len(text) > limits.CONFIG_BYTES:
        raise UnsafeFileError(f"{name}: {path.name} has more than {limits.CONFIG_BYTES} bytes. Expected a small file.")
    return parse_object(text, name, path.name)


def clip(value: object, width: int = 120) -> str:
    """Give `repr(value)` of a string or number, cut to `width` characters: strangers' text stays one short line."""
    text = repr(value[: width + 1]) if isinstance(value, str | bytes) else repr(value)
    return text if len(text) <= width else text[:width] + "..."
