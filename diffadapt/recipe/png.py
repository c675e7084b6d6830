"""A recipe in a PNG: exact, as JSON in a text chunk `diffadapt`, and beside it the text `parameters` that others read.

Reading decodes no pixels: chunks are walked, and only text is looked at, within bounds, also where it is compressed.
Chunks as in the PNG specification (https://www.w3.org/TR/png-3/#11textinfo): tEXt, zTXt, iTXt.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from diffadapt.errors import RecipeError
from diffadapt.recipe.parameters import read_parameters, write_parameters
from diffadapt.recipe.recipe import Recipe
from diffadapt.recipe.values import RECIPE_BYTES

if TYPE_CHECKING:
    from PIL.Image import Image

KEYWORD: Final = "diffadapt"
PARAMETERS: Final = "parameters"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNKS: Final = 100_000
_TEXT_BYTES: Final = RECIPE_BYTES + 1024
"""Of one chunk, and of one text in it."""
_TEXTS: Final = 64


def save_png(image: Image, path: str | os.PathLike[str], recipe: Recipe) -> Path:
    """Write an image as a PNG with its recipe. Places of files on this machine are left out of it.

    Raises RecipeError where the file cannot be written or the recipe is too long.
    """
    from PIL.PngImagePlugin import PngInfo

    target = Path(path)
    given = recipe.without_paths()
    info = PngInfo()
    info.add_text(PARAMETERS, write_parameters(given, image.size))
    info.add_itxt(KEYWORD, given.to_json())
    try:
        image.save(target, format="PNG", pnginfo=info)
    except OSError as error:
        raise RecipeError(f"{target.name}: cannot be written ({error}). Check the folder and the image.") from error
    return target


def read_png(path: str | os.PathLike[str]) -> Recipe | None:
    """The recipe in a PNG: ours, else what A1111's `parameters` say (names, weights, short hashes); None without both.

    Raises RecipeError for what is no PNG, and for a recipe or parameters that cannot be read.
    """
    source = Path(path)
    try:
        with source.open("rb") as file:
            texts = dict(_texts(file, source.name))
    except OSError as error:
        raise RecipeError(f"{source.name}: cannot be read ({error.strerror}). Check the path.") from error
    if KEYWORD in texts:
        return Recipe.from_json(texts[KEYWORD], source.name)
    if PARAMETERS not in texts:
        return None
    try:
        return read_parameters(texts[PARAMETERS])
    except RecipeError as error:
        raise RecipeError(f"{source.name}: {error}") from error


def _texts(file: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    """Keyword and text of the text chunks that may be ours."""
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        raise RecipeError(f"{name}: is no PNG. Expected an image as save_png writes it.")
    count = 0
    for _ in range(_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        if kind not in (b"tEXt", b"zTXt", b"iTXt") or length > _TEXT_BYTES:
            file.seek(length + 4, os.SEEK_CUR)
            if kind == b"IEND":
                return
            continue
        data = file.read(length)
        checksum = file.read(4)
        keyword, _, rest = data.partition(b"\0")
        if keyword not in (KEYWORD.encode(), PARAMETERS.encode()):
            continue
        count += 1
        if count > _TEXTS:
            raise RecipeError(f"{name}: has more than {_TEXTS} texts of the same few names. Do not use this file.")
        if len(data) < length or checksum != struct.pack(">I", zlib.crc32(kind + data)):
            raise RecipeError(f"{name}: its text {keyword.decode()!r} is damaged. Get the file again.")
        yield keyword.decode(), _text(kind, rest, name)


def _text(kind: bytes, rest: bytes, name: str) -> str:
    """The text of a chunk, after its keyword."""
    if kind == b"tEXt":
        return rest.decode("latin-1")
    if kind == b"zTXt":
        return _inflated(rest[1:], name).decode("latin-1")
    compressed = rest[:1] == b"\1"
    # Flag and method of compression, then a language and a translated keyword, each with a zero byte.
    _, _, after = rest[2:].partition(b"\0")
    _, _, body = after.partition(b"\0")
    try:
        return (_inflated(body, name) if compressed else body).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{name}: a text in it is not UTF-8 (byte {error.start}). Get the file again.") from None


def _inflated(data: bytes, name: str) -> bytes:
    inflater = zlib.decompressobj()
    try:
        found = inflater.decompress(data, _TEXT_BYTES + 1)
    except zlib.error as error:
        raise RecipeError(f"{name}: a text in it cannot be unpacked ({error}). Get the file again.") from error
    if len(found) > _TEXT_BYTES:
        raise RecipeError(f"{name}: a text in it unpacks to more than {_TEXT_BYTES} bytes. Do not use this file.")
    return found
