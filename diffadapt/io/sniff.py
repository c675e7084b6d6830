"""What a file is by its first bytes; its name is only asked where the bytes say nothing."""

from __future__ import annotations

import os
import re
import struct
from enum import Enum
from pathlib import Path

from diffadapt.errors import NotAnAdapterError, SourceError
from diffadapt.io.plain_json import clip
from diffadapt.io.safetensors import open_binary

_HEAD = 1024
_LFS = b"version https://git-lfs.github.com/spec/"


class FileKind(Enum):
    """The two kinds of file that can hold an adapter."""

    SAFETENSORS = "safetensors"
    PICKLE = "pickle"


_SUFFIXES = {
    ".safetensors": FileKind.SAFETENSORS,
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), FileKind.PICKLE),
}
_FOREIGN: tuple[tuple[int, bytes, str], ...] = (
    (0, b"GGUF", "a GGUF model (quantised weights of a whole model)"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\x1f\x8b", "a gzip archive: unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (0, b"Rar!", "a RAR archive: unpack it first"),
    (0, b"\xfd7zXZ", "an xz archive: unpack it first"),
    (0, b"BZh", "a bzip2 archive: unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it first"),
    (257, b"ustar", "a tar archive: unpack it first"),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a program"),
)
_MARKUP = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*<(?:!doctype|!--|html|head|body|\?xml|error)", re.IGNORECASE)


def sniff(path: Path, name: str) -> FileKind:
    """Tell how to read a file, by content first and by name second.

    Raises `NotAnAdapterError` for what is plainly something else (and says what), `SourceError` for an empty file.
    """
    with open_binary(path, name) as file:
        head = file.read(_HEAD)
        size = os.fstat(file.fileno()).st_size
    if not head:
        raise SourceError(f"{name}: is empty (0 bytes), expected adapter weights. Download it again.")
    if _is_safetensors(head, size):
        return FileKind.SAFETENSORS
    if head.startswith((b"PK\3\4", b"PK\5\6")) or re.match(rb"\x80[\x00-\x05]", head):
        return FileKind.PICKLE
    _refuse_foreign(head, size, name)
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise NotAnAdapterError(
            f"{name}: {size} bytes starting with {clip(head[:8])} are neither safetensors nor a pickle. "
            "Expected an adapter file (.safetensors, .pt, .bin, .ckpt, .pth)."
        )
    return kind


def _is_safetensors(head: bytes, size: int) -> bool:
    """Tell whether the file starts with a header length that a file of this kind can have, and a JSON object."""
    if head[8:9] != b"{":
        return False
    (length,) = struct.unpack_from("<Q", head)
    # The second clause keeps a cut download on the way to the message that says so; a pickle's opcodes read as a
    # length are larger than any header.
    return bool(8 + length <= size or length < 1 << 28)


def _refuse_foreign(head: bytes, size: int, name: str) -> None:
    """Name the well-known kinds of file that are downloaded or renamed by mistake."""
    if head.startswith(_LFS):
        told = re.search(rb"\nsize (\d{1,15})", head)
        real = f" of {told.group(1).decode()} bytes" if told else ""
        raise NotAnAdapterError(
            f"{name}: is a Git LFS pointer ({size} bytes) that stands for a file{real}, expected the file itself. "
            "Run `git lfs pull` in its folder, or download it with the Hub client."
        )
    if _MARKUP.match(head):
        raise NotAnAdapterError(
            f"{name}: is an HTML page ({size} bytes), expected adapter weights. The server answered the download with "
            "a web page (a login, an error or a preview): use the file's direct link or the Hub id."
        )
    for offset, magic, what in _FOREIGN:
        if head.startswith(magic, offset):
            raise NotAnAdapterError(f"{name}: is {what}. Expected an adapter's .safetensors or .pt file.")
    if head[:1] == b"\x08" and (b"onnx" in head.lower() or b"pytorch" in head[:40].lower()):
        raise NotAnAdapterError(f"{name}: is an ONNX model. Expected an adapter's .safetensors or .pt file.")
    text = _text(head)
    if text is None:
        return
    what = "JSON text" if text.lstrip("\ufeff \t\r\n").startswith(("{", "[")) else "text"
    raise NotAnAdapterError(
        f"{name}: is {what} ({size} bytes, starting with {clip(text[:60])}), expected adapter weights. "
        "It may be a server's error message saved as the file: download it again."
    )


def _text(head: bytes) -> str | None:
    """Give the head as text if it is printable, else None."""
    try:
        text = head.decode("utf-8") if len(head) < _HEAD else head[: _HEAD - 4].decode("utf-8", "ignore")
    except UnicodeDecodeError:
        return None
    return text if len(text) >= 4 and text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable() else None
