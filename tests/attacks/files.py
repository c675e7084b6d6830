"""Hostile files as code that makes them: each name says what the file tries."""

import io
import json
import os
import pickle
import re
import struct
import zipfile

import torch


def safetensors(header, data=b"", length=None):
    """Build a file from a header (an object or raw bytes) and data, with a length that may lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def damaged_headers():
    """Safetensors files whose framing or JSON is broken."""
    yield "empty", b""
    yield "three-bytes", b"\0\0\0"
    yield "length-only", struct.pack("<Q", 0)
    yield "length-2-to-63", safetensors(b"{}", length=2**63)
    yield "length-2-to-64", safetensors(b"{}", length=2**64 - 1)
    yield "length-past-end", safetensors(b"{}", length=5000)
    yield "no-json", safetensors(b"{not json}")
    yield "no-utf8", safetensors(b'{"\xff\xfe": 1}')
    yield "list", safetensors([])
    yield "number", safetensors(b"7")
    yield "deep-lists", safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    yield "deep-objects", safetensors(b'{"a":' * 60_000 + b"1" + b"}" * 60_000)
    yield "number-of-a-million-digits", safetensors(b'{"a":' + b"9" * 1_000_000 + b"}")
    yield "key-twice", safetensors(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":[]}', b"\0")
    yield "metadata-twice", safetensors(b'{"__metadata__":{"a":"1","a":"2"}}')
    yield "metadata-number", safetensors({"__metadata__": {"a": 1}})
    yield "metadata-list", safetensors({"__metadata__": ["a"]})
    yield "metadata-surrogate", safetensors(b'{"__metadata__":{"a":"\\ud800"}}')
    yield "key-surrogate", safetensors(b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"\0")
    yield "key-escape-sequence", safetensors({"\x1b[2J": entry()}, b"\0" * 8)
    yield "key-of-a-megabyte", safetensors({"k" * 2**20: entry()}, b"\0" * 8)
    yield "many-keys", safetensors({f"k{i}": entry("U8", [0], [0, 0]) for i in range(230_000)})


def damaged_entries():
    """Safetensors files whose tensors contradict the file or each other."""
    for name, value in {
        "dtype-unknown": entry("Q9"),
        "dtype-list": entry(["F32"]),
        "entry-list": [1, 2],
        "entry-null": None,
        "field-missing": {"dtype": "F32", "shape": [2]},
        "field-more": entry() | {"strides": [1]},
        "shape-number": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]},
        "shape-negative": entry(shape=[-2]),
        "shape-two-negatives": entry(shape=[-1, -2]),
        "shape-float": entry(shape=[2.0]),
        "shape-bool": entry(shape=[2, True]),
        "shape-text": entry(shape=["2"]),
        "shape-overflow": entry(shape=[2**62, 8]),
        "shape-overflow-to-fit": entry(shape=[2**63, 2, 2]),
        "shape-zero-times-huge": entry(shape=[0, 2**62, 2**62], offsets=[0, 0]),
        "shape-long": entry(shape=[1] * 100_000 + [2]),
        "offsets-negative": entry(offsets=[-8, 0]),
        "offsets-reversed": entry(offsets=[8, 0]),
        "offsets-three": entry(offsets=[0, 8, 8]),
        "offsets-bool": entry("U8", [1], [False, True]),
        "offsets-float": entry(offsets=[0, 8.0]),
        "offsets-huge": entry(shape=[2**60], offsets=[0, 2**62]),
        "size-mismatch": entry(shape=[3]),
    }.items():
        yield name, safetensors({"a": value}, b"\0" * 8)
    yield "overlap", safetensors({"a": entry(), "b": entry(offsets=[4, 12])}, b"\0" * 12)
    yield "same-place", safetensors({"a": entry(), "b": entry()}, b"\0" * 8)
    yield "gap", safetensors({"a": entry(), "b": entry(offsets=[16, 24])}, b"\0" * 24)
    yield "gap-at-start", safetensors({"a": entry(offsets=[8, 16])}, b"\0" * 16)
    yield "data-cut", safetensors({"a": entry()}, b"\0" * 7)
    yield "data-hidden-behind", safetensors({"a": entry()}, b"\0" * 9)


class Call:
    """An object whose unpickling calls a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def code_pickles(canary):
    """Pickles that would make the file `canary` if anything in them ran, in each of torch's layouts."""
    write = f"open({canary!r}, 'w').close()"
    for name, call in {
        "system": Call(os.system, f"touch {canary}"),
        "exec": Call(exec, write),
        "eval": Call(eval, write),
        "open": Call(open, canary, "w"),
        "import": Call(__import__, "os"),
        "getattr": Call(getattr, "x", "upper"),
        "torch-load": Call(torch.load, canary),
        "compile": Call(torch.jit.load, canary),
    }.items():
        for layout, zipped in {"zip": True, "stream": False}.items():
            buffer = io.BytesIO()
            torch.save({"a": torch.zeros(2), "x": call}, buffer, _use_new_zipfile_serialization=zipped)
            yield f"{layout}-{name}", buffer.getvalue()
        for protocol in (0, 2, 4):
            yield f"bare-{protocol}-{name}", pickle.dumps({"x": call}, protocol=protocol)
    text = f"touch {canary}".encode()
    short = lambda value: b"\x8c" + bytes([len(value)]) + value  # noqa: E731
    yield "inst", b"\x80\x02(S'touch " + canary.encode() + b"'\nios\nsystem\n."
    yield "obj", b"\x80\x02(cos\nsystem\nS'touch " + canary.encode() + b"'\no."
    yield (
        "dotted-name",
        b"\x80\x04" + short(b"torch") + short(b"serialization.os.system") + b"\x93" + short(text) + b"\x85R.",
    )
    yield "dotted-module", b"\x80\x02ccollections.OrderedDict\n__init__\n."
    yield "extension-registry", b"\x80\x02\x82\x01."
    yield "persistent-id-text", b"\x80\x02Pstorage\n."
    yield "build-attributes", b"\x80\x02ccollections\nOrderedDict\n)RK\x01}X\x05\0\0\0itemsK\x02s\x86b."
    yield "build-on-dict", b"\x80\x02}}b."
    yield "reduce-on-dtype", b"\x80\x02ctorch\nfloat32\n)R."
    yield "class-called", b"\x80\x02ctorch\nTensor\nK\x02\x85R."


def resource_pickles():
    """Pickles that would cost memory, time or the stack."""
    yield "list-in-itself", b"\x80\x02]q\0" + b"(" + b"h\0" * 5000 + b"e."
    yield "dict-in-itself", b"\x80\x02}q\0X\1\0\0\0ah\0s."
    yield "tuples-nested", b"\x80\x02)" + b"\x85" * 200_000 + b"."
    yield "tuple-as-key", b"\x80\x02})" + b"\x85" * 200_000 + b"K\1s."
    yield "tuple-doubling-as-key", b"\x80\x02})" + b"2\x86" * 60 + b"K\1s."
    yield "dicts-nested", b"\x80\x02" + b"}X\1\0\0\0a" * 3000 + b"}" + b"s" * 3000 + b"."
    put, get = (lambda i: b"q" + bytes([i])), (lambda i: b"h" + bytes([i]))
    twice = (b"}" + put(i + 1) + b"(X\1\0\0\0a" + get(i) + b"X\1\0\0\0b" + get(i) + b"u" for i in range(60))
    yield "wide-doubling", b"\x80\x02}q\0" + b"".join(twice) + b"."
    yield "opcodes", b"\x80\x02" + b"N0" * 4_000_000 + b"N."
    yield "marks", b"\x80\x02" + b"(" * 4_000_000 + b"N."
    yield "length-of-text", b"\x80\x02X\xff\xff\xff\x7fab."
    yield "length-of-text-64", b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"ab."
    yield "length-of-bytes-64", b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"ab."
    yield "frame", b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N."
    yield "integer", b"\x80\x02\x8b" + struct.pack("<i", 5_000_000) + b"\x7f" * 5_000_000 + b"."
    yield "integer-as-text", b"L" + b"9" * 60_000 + b"L\n."
    yield "line", b"\x80\x02c" + b"a" * 5_000_000 + b"\nb\n."
    yield "memo-missing", b"\x80\x02h\7."
    yield "stack-empty", b"\x80\x020."
    yield "mark-missing", b"\x80\x02K\1t."
    yield "no-stop", b"\x80\x02N"
    yield "text-encoded-often", (
        b"\x80\x02c_codecs\nencode\nq\0X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\1X\6\0\0\0latin1q\2"
        + b"h\0h\1h\2\x86R" * 10_000 + b"."
    )  # fmt: skip
    yield (
        "pairs-copied-often",
        (
            b"\x80\x02ccollections\nOrderedDict\nq\0]("
            + b"K\1K\2\x86" * 100_000
            + b"eq\1\x85q\2"
            + b"h\0h\2R" * 50_000
            + b"."
        ),
    )


def rebuild(storage, offset, shape, stride):
    """Pickle opcodes of one tensor: storage is (class, key, size)."""
    integer = lambda n: b"\x8a\x10" + n.to_bytes(16, "little", signed=True)  # noqa: E731
    sizes = lambda values: b"(" + b"".join(map(integer, values)) + b"t"  # noqa: E731
    text = lambda value: b"X" + struct.pack("<I", len(value)) + value.encode()  # noqa: E731
    kind, key, size = storage
    reference = (
        b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu") + integer(size) + b"tQ"
    )
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + reference
        + integer(offset)
        + sizes(shape)
        + sizes(stride)
        + b"\x89}tR"
    )


def archive(opcodes, data=b"\0" * 64, extra=()):
    """Build a torch zip archive around pickle opcodes for the value, with storage "0"."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("archive/data.pkl", b"\x80\x02" + opcodes + b".")
        made.writestr("archive/data/0", data)
        for name, content in extra:
            made.writestr(name, content)
    return buffer.getvalue()


def tensor_pickles():
    """Archives whose tensors lie about their storage, and archives that lie about themselves."""
    one = lambda *arguments: archive(b"}X\1\0\0\0a" + rebuild(*arguments) + b"s")  # noqa: E731
    floats = ("FloatStorage", "0", 16)
    yield "offset-behind-storage", one(floats, 16, (1,), (1,))
    yield "offset-negative", one(floats, -1, (1,), (1,))
    yield "offset-huge", one(floats, 2**63, (1,), (1,))
    yield "stride-behind-storage", one(floats, 0, (2, 2), (15, 1))
    yield "stride-negative", one(floats, 8, (2,), (-8,))
    yield "stride-huge", one(floats, 0, (1,), (2**100,))
    yield "expanded-from-one", one(floats, 0, (2**40,), (0,))
    yield "shape-negative", one(floats, 0, (-1, -4), (1, 1))
    yield "shape-overflow", one(floats, 0, (2**32, 2**32), (1, 1))
    yield "shape-zero-huge", one(floats, 0, (0, 2**62, 2**62), (1, 1, 1))
    yield "shape-longer-than-stride", one(floats, 0, (2, 2), (1,))
    yield "storage-larger-than-member", one(("FloatStorage", "0", 17), 0, (17,), (1,))
    yield "storage-missing", one(("FloatStorage", "../0", 16), 0, (1,), (1,))
    yield "storage-negative", one(("FloatStorage", "0", -1), 0, (1,), (1,))
    yield "storage-huge", one(("FloatStorage", "0", 2**62), 0, (1,), (1,))
    whole = rebuild(("FloatStorage", "0", 250_000), 0, (250_000,), (1,))
    many = b"}(" + b"".join(b"X\5\0\0\0" + f"{i:05d}".encode() + whole for i in range(5000)) + b"u"
    yield "aliases", archive(many, b"\0" * 1_000_000)
    yield "member-leaves", archive(b"}", extra=[("../../evil", b"x")])
    yield "member-absolute", archive(b"}", extra=[("/etc/evil", b"x")])
    yield "member-backslash", archive(b"}", extra=[("archive\\..\\evil", b"x")])
    yield "two-pickles", archive(b"}", extra=[("other/data.pkl", b"N.")])
    good = one(floats, 0, (4,), (1,))
    yield "member-moved", good.replace(b"archive/data/0", b"archive/data/1", 1)
    yield "member-past-end", good.replace(struct.pack("<II", 64, 64), struct.pack("<II", 2**30, 2**30))
    yield "directory-past-end", good[:-6] + struct.pack("<I", 2**31) + good[-2:]
    yield "directory-of-65535", good[:-12] + b"\xff\xff" + good[-10:]
    yield "cut", good[: len(good) // 2]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/data.pkl", b"\0" * 200_000_000)
    yield "bomb", buffer.getvalue()


def stream_pickles():
    """Files of torch's older layout whose storages lie."""
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(16)}, buffer, _use_new_zipfile_serialization=False)
    good = buffer.getvalue()
    count = struct.pack("<q", 16)
    place = good.rindex(count)
    yield "count-negative", good[:place] + struct.pack("<q", -1) + good[place + 8 :]
    yield "count-huge", good[:place] + struct.pack("<q", 2**62) + good[place + 8 :]
    yield "count-small", good[:place] + struct.pack("<q", 2) + good[place + 8 :]
    yield "stream-cut", good[:-5]
    yield "big-endian", re.sub(rb"(little_endianq.)\x88", lambda found: found[1] + b"\x89", good, flags=re.DOTALL)


def all_files(canary):
    """Every hostile file as (file name, content)."""
    for group in (damaged_headers(), damaged_entries()):
        yield from ((f"{name}.safetensors", content) for name, content in group)
    for group in (code_pickles(canary), resource_pickles(), tensor_pickles(), stream_pickles()):
        yield from ((f"pickle-{name}.pt", content) for name, content in group)
