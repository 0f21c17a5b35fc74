"""Pickle files of plain values and byte arrays, read without executing anything in them.

Python's own reader calls whatever a file names, so a file from elsewhere may do anything. This one walks over the file's
instructions (`pickletools.genops` takes them apart and runs none), keeps values alone, and knows the few names that NumPy's
arrays and Python 3's bytes are written with by heart. It imports nothing; any other name or instruction is refused.
"""

import math
import pathlib
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jax_brcd.runtime.errors import InputError

LARGEST_BYTES = 2**28  # a file is read whole
LONGEST_REASON = 200  # characters
BYTE_TYPES = ("u1", b"u1", "|u1", b"|u1")


class _Name(NamedTuple):
    """A name that a file mentions, which is never looked up."""

    module: str
    name: str


class _Array:
    """An array that is announced and not yet filled."""

    values: np.ndarray | None = None


class _ByteType:
    """NumPy's type of unsigned bytes, the only one that is read."""


_MARK = object()


def read_plain_pickle(path: pathlib.Path) -> dict[Any, Any]:
    """The dictionary that a pickle file holds, of lists, tuples, numbers, texts, bytes and uint8 arrays.

    Texts of Python 2 come as bytes. Raises:
        InputError: for a file that holds anything else, or is no pickle, or is cut off.
    """
    size = path.stat().st_size
    if size > LARGEST_BYTES:
        raise InputError(f"{path}: {size:,} bytes, which is more than a file of plain values has; it was not read")
    try:
        return _finished(_run(path.read_bytes()))
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no pickle of plain values and byte arrays ({str(error)[:LONGEST_REASON]}); nothing in it "
                         "was executed") from None


def _run(data: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "STOP":
            return stack.pop()
        if opcode.name not in _INSTRUCTIONS:
            raise ValueError(f"it has the instruction {opcode.name}")
        _INSTRUCTIONS[opcode.name](stack, memo, argument)
    raise ValueError("it is cut off")


def _known(module: str, name: str) -> _Name:
    if (module, name) not in _MEANINGS and (module, name) != ("numpy", "ndarray"):
        raise ValueError(f"it names {module}.{name}")
    return _Name(module, name)


def _since_mark(stack: list[Any]) -> list[Any]:
    start = max((position for position, value in enumerate(stack) if value is _MARK), default=None)
    if start is None:
        raise ValueError("it ends what it did not begin")
    values = stack[start + 1 :]
    del stack[start:]
    return values


def _last(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise ValueError("it takes more values than it has")
    values = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return values


def _remember(stack: list[Any], memo: dict[int, Any], number: int) -> None:
    memo[number] = stack[-1]


def _append(stack: list[Any], values: list[Any]) -> None:
    if type(stack[-1]) is not list:
        raise ValueError("it appends to what is no list")
    stack[-1].extend(values)


def _set_items(stack: list[Any], items: list[Any]) -> None:
    keys = items[::2]
    if type(stack[-1]) is not dict or not all(isinstance(key, (str, bytes, int)) for key in keys):
        raise ValueError("it has a dictionary of other keys than texts and numbers")
    stack[-1].update(zip(keys, items[1::2], strict=True))


def _reduce(stack: list[Any]) -> None:
    """Where Python would call a function, the value that the known functions give."""
    function, arguments = _last(stack, 2)
    if not isinstance(function, _Name) or (function.module, function.name) not in _MEANINGS:
        raise ValueError("it calls what is no known function")
    stack.append(_MEANINGS[function.module, function.name](*arguments))


def _build(stack: list[Any]) -> None:
    """Where Python would restore an object's state: the content of an array, and what is said of its type, which is known."""
    (state,) = _last(stack, 1)
    target = stack[-1]
    if isinstance(target, _Array):
        _, shape, kind, by_columns, content = state
        target.values = _array(content, kind, shape, "F" if by_columns else "C").values
    elif not isinstance(target, _ByteType):
        raise TypeError("it restores the state of what is no array")


def _announced(kind: _Name, shape: tuple, code: bytes) -> _Array:
    return _Array()


def _byte_type(code: str | bytes, *_: Any) -> _ByteType:
    if code not in BYTE_TYPES:
        raise ValueError(f"it has an array of type {code!r}")
    return _ByteType()


def _array(content: bytes, kind: _ByteType, shape: tuple, order: str) -> _Array:
    sizes = isinstance(shape, tuple) and all(type(each) is int and each >= 0 for each in shape)
    if not (isinstance(content, bytes) and isinstance(kind, _ByteType) and sizes and math.prod(shape) == len(content)):
        raise ValueError("it has an array of another size than its content")
    array = _Array()
    array.values = np.frombuffer(content, np.uint8).reshape(shape, order=order)
    return array


def _encoded(text: str, encoding: str) -> bytes:
    """Python 3 writes bytes as text in protocol 2."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"it has bytes in the encoding {encoding!r}")
    return text.encode("latin-1")


def _finished(value: Any) -> dict[Any, Any]:
    """The dictionary with arrays in their places."""
    if type(value) is not dict:
        raise ValueError("it holds no dictionary")
    arrays = {key: array.values for key, array in value.items() if isinstance(array, _Array)}
    if any(values is None for values in arrays.values()):
        raise ValueError("it has an array without content")
    return value | arrays


# What each instruction does to the stack and to what is remembered, given its argument; any other is refused
_INSTRUCTIONS: dict[str, Callable[[list[Any], dict[int, Any], Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda stack, memo, argument: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
                     "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), lambda stack, memo, argument: stack.append(argument)),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), lambda stack, memo, argument: stack.append(argument.encode("latin-1"))),
    "NONE": lambda stack, memo, argument: stack.append(None),
    "NEWTRUE": lambda stack, memo, argument: stack.append(True),
    "NEWFALSE": lambda stack, memo, argument: stack.append(False),
    "EMPTY_DICT": lambda stack, memo, argument: stack.append({}),
    "EMPTY_LIST": lambda stack, memo, argument: stack.append([]),
    "EMPTY_TUPLE": lambda stack, memo, argument: stack.append(()),
    "MARK": lambda stack, memo, argument: stack.append(_MARK),
    "TUPLE": lambda stack, memo, argument: stack.append(tuple(_since_mark(stack))),
    "TUPLE1": lambda stack, memo, argument: stack.append(tuple(_last(stack, 1))),
    "TUPLE2": lambda stack, memo, argument: stack.append(tuple(_last(stack, 2))),
    "TUPLE3": lambda stack, memo, argument: stack.append(tuple(_last(stack, 3))),
    "APPEND": lambda stack, memo, argument: _append(stack, _last(stack, 1)),
    "APPENDS": lambda stack, memo, argument: _append(stack, _since_mark(stack)),
    "SETITEM": lambda stack, memo, argument: _set_items(stack, _last(stack, 2)),
    "SETITEMS": lambda stack, memo, argument: _set_items(stack, _since_mark(stack)),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _remember),
    "MEMOIZE": lambda stack, memo, argument: _remember(stack, memo, len(memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda stack, memo, argument: stack.append(memo[argument])),
    "GLOBAL": lambda stack, memo, argument: stack.append(_known(*argument.split(" ", 1))),
    "STACK_GLOBAL": lambda stack, memo, argument: stack.append(_known(*_last(stack, 2))),
    "REDUCE": lambda stack, memo, argument: _reduce(stack),
    "BUILD": lambda stack, memo, argument: _build(stack),
}
_MEANINGS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _announced, ("numpy._core.multiarray", "_reconstruct"): _announced,
    ("numpy.core.numeric", "_frombuffer"): _array, ("numpy._core.numeric", "_frombuffer"): _array,
    ("numpy", "dtype"): _byte_type, ("_codecs", "encode"): _encoded,
}
