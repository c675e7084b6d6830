"""A small pickle machine for plain data: no import, no call of anything but the fixed table, no recursion.

Python's own unpickler is not used at all: its BUILD sets attributes, its REDUCE calls objects, and hashing a nested
tuple as a key can exhaust the C stack. Each opcode that plain checkpoints need is a few lines here, others are refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import IO, Any, Final, cast

from diffadapt.errors import SourceError, UnsafeFileError
from diffadapt.io import limits
from diffadapt.io.pickle_objects import Constructor, Record, StorageRef, find_global, resolve_persistent

_MARK: Final = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_INTEGERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
_TEXTS = {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_ARGUMENTS = _INTEGERS | _TEXTS | {"FLOAT", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_INTEGER_BITS = 128


class BoundedReader:
    """A window of bytes with the file methods that opcode decoding needs; it never reads past `limit`."""

    def __init__(self, data: memoryview, limit: int = limits.PICKLE_BYTES) -> None:
        self._data = data[:limit]
        self.position = 0

    def read(self, count: int) -> bytes:
        """Read up to `count` bytes."""
        start = self.position
        self.position = min(start + max(count, 0), len(self._data))
        return bytes(self._data[start : self.position])

    def readline(self) -> bytes:
        """Read up to and with the next newline, at most `limits.LINE_BYTES` bytes."""
        window = bytes(self._data[self.position : self.position + limits.LINE_BYTES])
        return self.read(window.find(b"\n") + 1 or len(window))

    def tell(self) -> int:
        """Position in bytes from the start of the window."""
        return self.position


class Unpickler:
    """Reads one pickled value; tensors come as `TensorRef`, mappings as dicts with text or integer keys.

    `storages` holds, by key, every storage that the value read so far refers to.
    """

    def __init__(self, reader: BoundedReader, source: str) -> None:
        self._reader = reader
        self._source = source
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.storages: dict[str, StorageRef] = {}
        self._budget = limits.PICKLE_STEPS

    def load(self) -> Any:
        """Run the pickle up to its STOP and give the value; `UnsafeFileError` for anything but plain data."""
        try:
            for opcode, argument, position in pickletools.genops(cast(IO[bytes], self._reader)):
                self._spend(1)
                if opcode.name == "STOP":
                    return self._pop()
                self._step(opcode.name, argument, position or 0)
        except (ValueError, IndexError) as error:
            # genops reports every cut or malformed argument as ValueError, an empty stack is an IndexError.
            raise SourceError(
                f"{self._source}: the pickle is damaged or cut short at byte {self._reader.tell()} "
                f"({str(error)[:80]}). Download the file again."
            ) from None
        raise SourceError(f"{self._source}: the pickle has no end. Download the file again.")

    def _step(self, name: str, argument: Any, position: int) -> None:
        """Run one opcode."""
        if name in _ARGUMENTS:
            if isinstance(argument, int) and argument.bit_length() > _INTEGER_BITS:
                raise ValueError("an integer of absurd size")
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            self._stack.append(tuple(reversed([self._pop() for _ in range(count)])))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if argument not in self._memo:
                raise ValueError(f"memo entry {argument} does not exist")
            self._stack.append(self._memo[argument])
        elif name not in ("PROTO", "FRAME"):
            method = _METHODS.get(name)
            if method is None:
                raise UnsafeFileError(
                    f"{self._source}: the pickle uses {name} at byte {position}, which plain data do not need. "
                    "Nothing was run. Do not load this file; get the adapter as .safetensors."
                )
            method(self, argument)

    def _spend(self, steps: int) -> None:
        """Count work, so that a small pickle cannot ask for a large copy again and again."""
        self._budget -= steps
        if self._budget < 0:
            raise UnsafeFileError(
                f"{self._source}: the pickle needs more than {limits.PICKLE_STEPS} steps. Expected an adapter's few "
                "thousand tensors; do not load this file."
            )

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("unexpected mark")
        return value

    def _top(self) -> Any:
        value = self._stack[-1]
        if value is _MARK:
            raise ValueError("unexpected mark")
        return value

    def _since_mark(self) -> list[Any]:
        """Take everything above the last mark, and the mark, off the stack."""
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                values = self._stack[index + 1 :]
                del self._stack[index:]
                return values
        raise ValueError("no mark")

    def _mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def _drop(self, _: Any) -> None:
        self._stack.pop()

    def _drop_to_mark(self, _: Any) -> None:
        self._since_mark()

    def _duplicate(self, _: Any) -> None:
        self._stack.append(self._top())

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._top()

    def _make_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _make_list(self, _: Any) -> None:
        self._stack.append(self._since_mark())

    def _make_dict(self, _: Any) -> None:
        values = self._since_mark()
        self._stack.append({})
        self._set(values)

    def _append(self, _: Any) -> None:
        self._extend([self._pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            raise ValueError(f"APPEND to a {type(target).__name__}")
        target.extend(values)

    def _set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _set_items(self, _: Any) -> None:
        self._set(self._since_mark())

    def _set(self, values: list[Any]) -> None:
        """Add alternating keys and values to the dict on top; keys are text or integers, whose hashes are cheap."""
        target = self._top()
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError(f"SETITEM on a {type(target).__name__}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int):
                raise UnsafeFileError(f"{self._source}: the pickle has a {type(key).__name__} as key, expected text.")
            target[key] = value

    def _global(self, argument: str) -> None:
        # genops joins module and name with a space; a dotted or spaced name stays in `name` and is refused there.
        module, _, name = argument.partition(" ")
        self._stack.append(find_global(self._source, module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("STACK_GLOBAL without names")
        self._stack.append(find_global(self._source, module, name))

    def _reduce(self, _: Any) -> None:
        arguments, constructor = self._pop(), self._pop()
        if not isinstance(constructor, Constructor) or type(arguments) is not tuple:
            raise UnsafeFileError(
                f"{self._source}: the pickle calls a {type(constructor).__name__}, no constructor of data."
            )
        self._spend(sum(len(value) for value in arguments if isinstance(value, list | str)))
        self._stack.append(constructor.build(self._source, arguments))

    def _build(self, _: Any) -> None:
        """Give state to the object on top: only a ParameterDict's parameters are data, the rest is dropped."""
        state, target = self._pop(), self._top()
        if not isinstance(target, Record):
            raise UnsafeFileError(f"{self._source}: the pickle sets attributes of a {type(target).__name__}.")
        if isinstance(state, dict) and isinstance(state.get("_parameters"), dict):
            self._spend(len(state["_parameters"]))
            target.update(state["_parameters"])

    def _persistent(self, _: Any) -> None:
        found = resolve_persistent(self._source, self._pop())
        if isinstance(found, StorageRef):
            self.storages.setdefault(found.key, found)
        self._stack.append(found)


_METHODS: dict[str, Callable[[Unpickler, Any], None]] = {
    "MARK": Unpickler._mark,
    "POP": Unpickler._drop,
    "POP_MARK": Unpickler._drop_to_mark,
    "DUP": Unpickler._duplicate,
    "MEMOIZE": Unpickler._memoize,
    "TUPLE": Unpickler._make_tuple,
    "LIST": Unpickler._make_list,
    "DICT": Unpickler._make_dict,
    "APPEND": Unpickler._append,
    "APPENDS": Unpickler._appends,
    "SETITEM": Unpickler._set_item,
    "SETITEMS": Unpickler._set_items,
    "GLOBAL": Unpickler._global,
    "STACK_GLOBAL": Unpickler._stack_global,
    "REDUCE": Unpickler._reduce,
    "NEWOBJ": Unpickler._reduce,
    "BUILD": Unpickler._build,
    "BINPERSID": Unpickler._persistent,
}
