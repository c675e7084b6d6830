"""Where the members of a torch zip archive lie in the file. Nothing is ever decompressed: torch only stores."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple, NoReturn

from diffadapt.errors import SourceError, UnsafeFileError
from diffadapt.io import limits
from diffadapt.io.plain_json import clip

_END, _END64, _LOCATOR64, _ENTRY, _LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
_WRONG_NAME = re.compile(r"^/|\\|(^|/)\.\.(/|$)|[\x00-\x1f\x7f]|^[A-Za-z]:")
_FULL32 = 0xFFFF_FFFF


class Member(NamedTuple):
    """The stored bytes of one member, `start:stop` in the file."""

    start: int
    stop: int


def read_members(data: memoryview, source: str) -> dict[str, Member]:
    """List the members of a zip archive by name; the archive must hold plain stored files with names inside it.

    Raises `SourceError` for a damaged or cut archive, `UnsafeFileError` for one that is not what torch writes.
    """
    try:
        offset, size, count = _directory(data, source)
        if size > limits.ARCHIVE_DIRECTORY_BYTES or count > limits.ARCHIVE_MEMBERS:
            raise UnsafeFileError(
                f"{source}: the archive lists {count} members in {size} bytes, more than any adapter has."
            )
        if offset + size > len(data):
            _damaged(source, "its list of members lies outside the file")
        return _members(data, bytes(data[offset : offset + size]), count, source)
    except struct.error:
        _damaged(source, "a record is cut short")


def _damaged(source: str, what: str) -> NoReturn:
    raise SourceError(f"{source}: the zip archive is damaged or truncated: {what}. Download the file again.")


def _directory(data: memoryview, source: str) -> tuple[int, int, int]:
    """Find the central directory: offset, bytes, number of members."""
    tail = bytes(data[-65_557:])
    place = tail.rfind(_END)
    if place < 0:
        _damaged(source, f"{len(data)} bytes end without the list of members, so the download was cut")
    count, size, offset = struct.unpack_from("<HII", tail, place + 10)
    locator = tail[place - 20 : place] if place >= 20 else b""
    if locator.startswith(_LOCATOR64):
        (end64,) = struct.unpack_from("<Q", locator, 8)
        record = bytes(data[end64 : end64 + 56])
        if not record.startswith(_END64):
            _damaged(source, "its 64-bit list of members is missing")
        count, size, offset = struct.unpack_from("<QQQ", record, 32)
    return offset, size, count


def _members(data: memoryview, directory: bytes, count: int, source: str) -> dict[str, Member]:
    """Read the entries of the central directory and the place of each member's data."""
    members: dict[str, Member] = {}
    place = 0
    for _ in range(count):
        if directory[place : place + 4] != _ENTRY:
            _damaged(source, "an entry of its list of members is missing")
        flags, method = struct.unpack_from("<HH", directory, place + 8)
        packed, size, name_length, extra_length, comment_length = struct.unpack_from("<IIHHH", directory, place + 20)
        (local,) = struct.unpack_from("<I", directory, place + 42)
        place += 46
        name = directory[place : place + name_length].decode("utf-8", "replace")
        extra = directory[place + name_length : place + name_length + extra_length]
        place += name_length + extra_length + comment_length
        size, packed, local = _wide(extra, size, packed, local)
        _check_member(name, flags, method, packed == size, source)
        if name in members:
            raise UnsafeFileError(f"{source}: the archive holds {clip(name)} twice. Expected every member once.")
        members[name] = _locate(data, name, local, size, source)
    _check_disjoint(members, source)
    return members


def _check_disjoint(members: dict[str, Member], source: str) -> None:
    """Refuse members that share bytes: thousands of names for one large member would each cost its size."""
    end = 0
    for name, member in sorted(members.items(), key=lambda item: item[1]):
        if member.start < end:
            raise UnsafeFileError(f"{source}: member {clip(name)} overlaps another one. The archive is forged.")
        end = member.stop


def _wide(extra: bytes, *values: int) -> tuple[int, ...]:
    """Replace each value that is all ones by its 64-bit form from the extra field with id 1."""
    place = 0
    wide: list[int] = []
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, place)
        if kind == 1:
            body = extra[place + 4 : place + 4 + length]
            wide = [number for (number,) in struct.iter_unpack("<Q", body[: len(body) // 8 * 8])]
            break
        place += 4 + length
    return tuple(wide.pop(0) if value == _FULL32 and wide else value for value in values)


def _check_member(name: str, flags: int, method: int, stored: bool, source: str) -> None:
    """Refuse names that leave the archive, encryption and compression."""
    if len(name) > limits.KEY_CHARACTERS or _WRONG_NAME.search(name):
        raise UnsafeFileError(
            f"{source}: the archive names a member {clip(name)}, which leaves it. Do not load this file."
        )
    if flags & 0x41:
        raise UnsafeFileError(
            f"{source}: member {clip(name)} is encrypted. Expected a plain archive as torch writes it."
        )
    if method or not stored:
        raise UnsafeFileError(
            f"{source}: member {clip(name)} is compressed, expected stored as torch writes it. "
            "If this is an archive around the adapter, unpack it first."
        )


def _locate(data: memoryview, name: str, local: int, size: int, source: str) -> Member:
    """Find a member's data behind its local header."""
    header = bytes(data[local : local + 30])
    if not header.startswith(_LOCAL):
        _damaged(source, f"member {clip(name)} is not where the list says")
    name_length, extra_length = struct.unpack_from("<HH", header, 26)
    start = local + 30 + name_length + extra_length
    if bytes(data[local + 30 : local + 30 + name_length]).decode("utf-8", "replace") != name:
        raise UnsafeFileError(f"{source}: member {clip(name)} has another name at its data. The archive is forged.")
    if start + size > len(data):
        _damaged(source, f"member {clip(name)} needs {start + size} bytes, the file has {len(data)}")
    return Member(start, start + size)
