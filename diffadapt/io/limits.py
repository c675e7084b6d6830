"""Bounds that no adapter comes near and that keep a hostile file from costing memory or time."""

from __future__ import annotations

from typing import Final

MIB: Final = 1 << 20
HEADER_BYTES: Final = 16 * MIB
TENSORS: Final = 200_000
KEY_CHARACTERS: Final = 4096
DIMENSIONS: Final = 16
ELEMENTS: Final = 1 << 48
CONFIG_BYTES: Final = 16 * MIB

PICKLE_BYTES: Final = 64 * MIB
PICKLE_STEPS: Final = 3_000_000
PICKLE_DEPTH: Final = 16
LINE_BYTES: Final = 65_536
METADATA_CHARACTERS: Final = 65_536

ARCHIVE_MEMBERS: Final = 2 * TENSORS
ARCHIVE_DIRECTORY_BYTES: Final = 64 * MIB
