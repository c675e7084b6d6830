"""What a pickled checkpoint may be made of: a fixed table of names, and inert records for tensors and their storages.

Nothing here runs code of the file or of torch's own rebuild functions; a name outside the table is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from diffadapt.errors import UnsafeFileError
from diffadapt.io import limits
from diffadapt.io.dtypes import DTYPES, count_bytes
from diffadapt.io.plain_json import clip

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_DTYPES: dict[str, torch.dtype] = {
    **{str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()},
    "double": torch.float64,
    "float": torch.float32,
    "half": torch.float16,
    "long": torch.int64,
    "int": torch.int32,
    "short": torch.int16,
}


@dataclass(frozen=True, eq=False)
class StorageType:
    """A storage class named in a pickle; `dtype` is None for the untyped one, whose sizes count bytes."""

    dtype: torch.dtype | None


@dataclass(frozen=True, eq=False)
class StorageRef:
    """A storage by its key in the file: `nbytes` of data, of which a view may use `numel` elements from `offset` on."""

    key: str
    dtype: torch.dtype | None
    nbytes: int
    offset: int = 0


@dataclass(frozen=True, eq=False)
class TensorRef:
    """A tensor as a checked strided window into a storage; sizes, strides and offset count elements of `dtype`."""

    storage: StorageRef
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Constructor:
    """A name a pickle may call: `build` gets the name of the file, for errors, and the pickled arguments."""

    name: str
    build: Callable[[str, tuple[Any, ...]], Any]


class Record(dict[Any, Any]):
    """A pickled mapping-like object (OrderedDict, ParameterDict): only its items are kept."""


def _malformed(source: str, what: str, arguments: tuple[Any, ...]) -> NoReturn:
    kinds = ", ".join(type(argument).__name__ for argument in arguments[:8])
    raise UnsafeFileError(f"{source}: {what} got ({kinds}), not what torch writes. The pickle is forged or damaged.")


def _ordered_dict(source: str, arguments: tuple[Any, ...]) -> Record:
    """Rebuild an OrderedDict: empty, or from a list of pairs as Python 2 pickled it."""
    record = Record()
    if arguments and (len(arguments) > 1 or not isinstance(arguments[0], list)):
        _malformed(source, "OrderedDict", arguments)
    for pair in arguments[0] if arguments else ():
        if not isinstance(pair, list | tuple) or len(pair) != 2 or type(pair[0]) not in (str, int):
            _malformed(source, "OrderedDict", (pair,))
        record[pair[0]] = pair[1]
    return record


def _parameter_dict(source: str, arguments: tuple[Any, ...]) -> Record:
    if arguments:
        _malformed(source, "ParameterDict", arguments)
    return Record()


def _set(source: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Rebuild a set, which lies in the state of modules, as a tuple: nothing of it is used, and nothing is hashed."""
    if len(arguments) > 1 or (arguments and not isinstance(arguments[0], list)):
        _malformed(source, "set", arguments)
    return tuple(arguments[0]) if arguments else ()


def _is_size(value: Any) -> bool:
    return type(value) in (tuple, list) and len(value) <= limits.DIMENSIONS and all(type(n) is int for n in value)


def _tensor(source: str, arguments: tuple[Any, ...]) -> TensorRef:
    """Rebuild a tensor (storage, offset, size, stride, ...) after checking that it stays inside its storage."""
    if len(arguments) < 4 or not isinstance(arguments[0], StorageRef) or type(arguments[1]) is not int:
        _malformed(source, "a tensor", arguments)
    storage, offset, shape, stride = arguments[:4]
    dtype = arguments[6] if len(arguments) > 6 and isinstance(arguments[6], torch.dtype) else storage.dtype
    if not _is_size(shape) or not _is_size(stride) or len(shape) != len(stride) or dtype is None:
        _malformed(source, "a tensor", arguments)
    if storage.offset % dtype.itemsize:
        _malformed(source, "a tensor", arguments)
    if count_bytes(shape, dtype) < 0 or max(stride, default=0) > limits.ELEMENTS:
        _malformed(source, "a tensor of impossible size", arguments)
    elements = math.prod(shape)
    reach = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1 if elements else 0
    room = (storage.nbytes - storage.offset) // dtype.itemsize
    if min(shape, default=0) < 0 or min(stride, default=0) < 0 or offset < 0 or max(reach, elements) > room:
        raise UnsafeFileError(
            f"{source}: a tensor of shape {clip(tuple(shape))}, stride {clip(tuple(stride))} and offset {clip(offset)} "
            f"does not fit into its storage of {room} elements. The pickle is forged or damaged."
        )
    return TensorRef(storage, dtype, storage.offset // dtype.itemsize + offset, tuple(shape), tuple(stride))


def _parameter(source: str, arguments: tuple[Any, ...]) -> TensorRef:
    if not arguments or not isinstance(arguments[0], TensorRef):
        _malformed(source, "a parameter", arguments)
    return arguments[0]


def _typed(source: str, arguments: tuple[Any, ...]) -> TensorRef:
    """Rebuild a tensor saved with its Python attributes: (function, class, arguments, state); the state is dropped."""
    if len(arguments) < 3 or not isinstance(arguments[0], Constructor) or type(arguments[2]) is not tuple:
        _malformed(source, "_rebuild_from_type_v2", arguments)
    if arguments[0].build not in (_tensor, _parameter):
        _malformed(source, "_rebuild_from_type_v2", arguments)
    tensor: TensorRef = arguments[0].build(source, arguments[2])
    return tensor


def _size(source: str, arguments: tuple[Any, ...]) -> tuple[int, ...]:
    if len(arguments) != 1 or not _is_size(arguments[0]):
        _malformed(source, "torch.Size", arguments)
    return tuple(arguments[0])


def _device(source: str, arguments: tuple[Any, ...]) -> str:
    if not arguments or type(arguments[0]) is not str:
        _malformed(source, "torch.device", arguments)
    return str(arguments[0])


def _encode(source: str, arguments: tuple[Any, ...]) -> bytes:
    """Rebuild bytes, which protocol 2 pickles as text in latin-1."""
    if len(arguments) != 2 or type(arguments[0]) is not str or arguments[1] not in ("latin1", "latin-1"):
        _malformed(source, "_codecs.encode", arguments)
    try:
        return str(arguments[0]).encode("latin-1")
    except UnicodeEncodeError:
        _malformed(source, "_codecs.encode", arguments)


def _class_only(source: str, arguments: tuple[Any, ...]) -> NoReturn:
    _malformed(source, "a tensor class", arguments)


_CALLABLES: dict[str, Callable[[str, tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "torch.nn.modules.container.ParameterDict": _parameter_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.Tensor": _class_only,
    "torch.nn.parameter.Parameter": _class_only,
    "torch.Size": _size,
    "torch.device": _device,
    "_codecs.encode": _encode,
}
GLOBALS: dict[str, Constructor | StorageType | torch.dtype] = {
    **{name: Constructor(name, build) for name, build in _CALLABLES.items()},
    **{f"torch.{name}": StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{f"torch.storage.{name}": StorageType(None) for name in ("UntypedStorage", "_UntypedStorage")},
    **{f"torch.{name}": dtype for name, dtype in _DTYPES.items()},
}


def find_global(source: str, module: str, name: str) -> Constructor | StorageType | torch.dtype:
    """Look a pickled global up in the table; any other is refused by its name."""
    found = GLOBALS.get(f"{module}.{name}")
    # A dotted name would reach attributes of modules; the table's names have no dot behind the module.
    if found is None or "." in name:
        raise UnsafeFileError(
            f"{source}: the pickle asks for {clip(f'{module}.{name}')}, which is not on the list of plain data. "
            "Nothing was run. Do not load this file; get the adapter as .safetensors."
        )
    return found


def resolve_persistent(source: str, identifier: Any) -> StorageRef | Constructor:
    """Check a persistent id: ('storage', class, key, location, size[, view]), or ('module', class, file, its text)."""
    match identifier:
        case ("module", Constructor() as constructor, *_):
            # The older layout writes classes of modules with their source text; the text is not looked at.
            return constructor
        case ("storage", StorageType() as kind, str() | int() as key, str(), int() as size, *rest) if len(rest) <= 1:
            width = 1 if kind.dtype is None else kind.dtype.itemsize
            if 0 <= size <= limits.ELEMENTS:
                offset = _view_offset(source, rest[0], size) * width if rest and rest[0] is not None else 0
                return StorageRef(str(key), kind.dtype, size * width, offset)
    raise UnsafeFileError(f"{source}: a persistent id is no tensor storage. The pickle is forged or damaged.")


def _view_offset(source: str, view: Any, size: int) -> int:
    """Offset, in elements, of a storage that is a window (key, offset, size) into another: a legacy layout."""
    match view:
        case (_, int() as offset, int() as length) if min(offset, length) >= 0 and offset + length <= size:
            return offset
    raise UnsafeFileError(f"{source}: a storage view reaches outside its storage. The pickle is forged or damaged.")
