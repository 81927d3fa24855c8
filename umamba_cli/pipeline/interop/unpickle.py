"""Reading other programs' pickles without running what they hold.

A pickle is a program: it names functions and calls them. Here a name stands for a function of our own out of a short
table, never for what is installed under that name, so that a file can make numbers, strings, containers and numpy
arrays and do nothing else.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.errors import InputError

_DTYPE = re.compile(r"[biufcSU]\d{1,9}")
"""Booleans, whole, real and complex numbers, bytes and strings; objects, records and times are refused."""

_MEMO_WRITES = ("PUT", "BINPUT", "LONG_BINPUT")
_EXTENSIONS = ("EXT1", "EXT2", "EXT4")  # numbers that stand for functions which some package may have registered


class Allowed:
    """What a pickle gets for a name: it can be called, and changed by nothing that a file holds."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        """Call the function; a pickle gives no keywords."""
        return self._function(*arguments)

    def __setstate__(self, state: object) -> NoReturn:
        # Without this method the unpickler would set attributes of whatever it is told to.
        raise pickle.UnpicklingError("the state of a function cannot be set")


class Unfinished:
    """What becomes a value once the whole pickle is read; until then it can be no key, and nothing changes it."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def finished(self) -> Any:
        """The value.

        Raises:
            pickle.UnpicklingError: there is none.
        """
        raise NotImplementedError

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the state of a value cannot be set")


class _OrderedDict(dict[Any, Any]):
    """Becomes a plain dictionary; attributes set on it (torch notes versions so) are dropped."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _DType(Unfinished):
    """A numpy dtype in the making: its kind comes first, its byte order with the state."""

    __slots__ = ("value",)

    def __init__(self, kind: object, *_: object) -> None:
        if not isinstance(kind, str) or not _DTYPE.fullmatch(kind):
            raise pickle.UnpicklingError(f"arrays of {kind!r} are not allowed")
        self.value: np.dtype[Any] = np.dtype(kind)

    def finished(self) -> np.dtype[Any]:
        """The dtype."""
        return self.value

    def __setstate__(self, state: Sequence[Any]) -> None:
        _version, order, *parts = state
        if order not in ("<", ">", "=", "|") or any(part is not None for part in parts[:3]):
            raise pickle.UnpicklingError("arrays of records are not allowed")
        self.value = self.value.newbyteorder(order)


class _Array(Unfinished):
    """A numpy array in the making: numpy's pickles make an empty one first and fill it then."""

    __slots__ = ("value",)

    def __init__(self, value: NDArray[Any] | None = None) -> None:
        self.value = value

    def finished(self) -> NDArray[Any]:
        """The array."""
        if self.value is None:
            raise pickle.UnpicklingError("an array without content")
        return self.value

    def __setstate__(self, state: Sequence[Any]) -> None:
        _version, shape, dtype, is_fortran, content = state
        self.value = _array(content, dtype, shape, "F" if is_fortran else "C")


def _array(content: object, dtype: object, shape: Any, order: Any) -> NDArray[Any]:
    """An array of our own making from its bytes, which must be as many as it needs."""
    if not isinstance(dtype, _DType) or not isinstance(content, bytes | bytearray):
        raise pickle.UnpicklingError("an array must be made of a dtype and bytes")
    if len(content) != math.prod(shape) * dtype.value.itemsize or min(shape, default=0) < 0:
        raise pickle.UnpicklingError(f"{len(content)} bytes are no array {shape} of {dtype.value}")
    array: NDArray[Any] = np.ndarray(shape, dtype.value, buffer=content, order=order).copy(order="K")
    return array


def _ndarray(*_: object) -> NoReturn:
    raise pickle.UnpicklingError("numpy.ndarray cannot be called, only named")


_NDARRAY = Allowed(_ndarray)


def _reconstruct(kind: object, *_: object) -> _Array:
    if kind is not _NDARRAY:
        raise pickle.UnpicklingError("arrays of another class than numpy.ndarray are not allowed")
    return _Array()


def _frombuffer(content: object, dtype: object, shape: Any, order: Any, axes: Any = None) -> _Array:
    array = _array(content, dtype, shape, "C" if axes is not None else order)
    return _Array(array if axes is None else array.transpose(axes))


def _scalar(dtype: object, content: object) -> Any:
    return _array(content, dtype, (), "C")[()]


def _latin1(text: str, encoding: str) -> bytes:
    """Bytes, which pickles of the protocols 0 to 2 hold as text."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in {encoding!r} are not allowed")
    return str.encode(text, "latin-1")


def _no_bytes() -> bytes:
    return b""


_TABLE: dict[tuple[str, str], Allowed | Unfinished] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): Allowed(_DType),
    ("collections", "OrderedDict"): Allowed(_OrderedDict),
    ("_codecs", "encode"): Allowed(_latin1),
}
for _numpy in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
    _TABLE[f"{_numpy}.multiarray", "_reconstruct"] = Allowed(_reconstruct)
    _TABLE[f"{_numpy}.multiarray", "scalar"] = Allowed(_scalar)
    _TABLE[f"{_numpy}.numeric", "_frombuffer"] = Allowed(_frombuffer)
for _builtins in ("builtins", "__builtin__"):  # the protocols 0 to 2 keep the names of Python 2
    for _type in (set, frozenset, complex):
        _TABLE[_builtins, _type.__name__] = Allowed(_type)
    _TABLE[_builtins, "bytes"] = Allowed(_no_bytes)


class RestrictedUnpickler(pickle.Unpickler):
    """Reads one pickle; what it may name is in `allowed`. A subclass allows more by a table of its own.

    Args:
        content: the pickle.
        source: what errors call it, such as the file's path.
    """

    allowed: ClassVar[Mapping[tuple[str, str], Allowed | Unfinished]] = _TABLE

    leave_out: frozenset[str] = frozenset()
    """Keys of the outermost dictionary that are not wanted; what is behind them is not finished."""

    def __init__(self, content: bytes, source: str) -> None:
        super().__init__(io.BytesIO(content))
        self._content = content
        self._source = source

    def read(self) -> Any:
        """The content, made of dict, list, tuple, set, frozenset, str, bytes, numbers and numpy's arrays and numbers.

        Raises:
            InputError: the pickle names something that is not allowed, or is damaged.
        """
        try:
            _refuse_tricks(self._content)
            content = self.load()
            if self.leave_out and isinstance(content, dict):
                content = {key: value for key, value in content.items() if key not in self.leave_out}
            return _finished(content, {})
        except InputError:
            raise
        except Exception as error:  # an unpickler that is fed garbage raises nearly anything
            raise InputError(
                f"{self._source} cannot be read as a pickle: {str(error) or type(error).__name__}",
                next_step="copy the file again from its source, or make it again",
            ) from error

    def find_class(self, module: str, name: str) -> Allowed | Unfinished:
        """What stands for a name in the pickle.

        Raises:
            InputError: it is not in the table.
        """
        allowed = self.allowed.get((module, name))
        if allowed is None:
            raise self._refused(f"{module}.{name}")
        return allowed

    def persistent_load(self, pid: object) -> Any:
        """What stands for an object that lies outside the pickle: there is none.

        Raises:
            InputError: always.
        """
        raise self._refused(f"an object outside of the file ({pid!r:.40})")

    def _refused(self, what: str) -> InputError:
        return InputError(
            f"{self._source} asks for {what}, which a file of numbers, text and arrays does not need",
            next_step="open it with no other program unless you trust who made it; make it again from its data",
        )


def load_pickle(path: Path) -> Any:
    """The content of a pickle file, made of numbers, strings, bytes, containers and numpy arrays; nothing is run.

    Raises:
        InputError: the file cannot be read, is damaged, or asks for anything else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", next_step="check the path") from error
    return RestrictedUnpickler(content, str(path)).read()


def require_tree(content: Any, source: str, *, most: int = 1_000_000) -> None:
    """Make sure that containers, each written out wherever it is held, make no more than `most` values.

    A pickle of a few bytes can hold a list twice in a list that is held twice in a list, and so on, or one in itself.

    Raises:
        InputError: they make more.
    """
    sizes: dict[int, int | None] = {}  # by identity; None while inside

    def size(value: Any) -> int:
        inside = value.values() if isinstance(value, dict) else value
        if not isinstance(value, dict | list | tuple):
            return 1
        if id(value) not in sizes:
            sizes[id(value)] = None
            sizes[id(value)] = 1 + sum(size(item) for item in inside)
        known = sizes[id(value)]
        if known is None or known > most:
            raise InputError(
                f"{source} holds containers that hold themselves, or more than {most:,} values",
                next_step="copy the file again from its source, or make it again",
            )
        return known

    size(content)


def _refuse_tricks(content: bytes) -> None:
    """Refuse what `pickle` itself does without asking `find_class`; whole files pass, truncated ones do not."""
    for opcode, argument, _ in pickletools.genops(content):
        # The unpickler makes room for the highest memo number named, even for billions in a file of a few bytes.
        if opcode.name in _MEMO_WRITES and int(argument or 0) > len(content):
            raise pickle.UnpicklingError(f"memo number {argument} in a file of {len(content)} bytes")
        if opcode.name in _EXTENSIONS:
            raise pickle.UnpicklingError("extension codes are not allowed")


def _finished(content: Any, done: dict[int, Any]) -> Any:
    """The same content with arrays and plain dictionaries in place of those in the making.

    Args:
        content: what was unpickled.
        done: results by the identity of what they replace, as an object may be held in several places or by itself.
    """
    if id(content) in done:
        return done[id(content)]
    result = content
    if isinstance(content, Unfinished):
        result = content.finished()
    elif isinstance(content, dict):
        done[id(content)] = result = {}
        result.update((key, _finished(value, done)) for key, value in content.items())
    elif isinstance(content, list):
        done[id(content)] = result = []
        result.extend(_finished(value, done) for value in content)
    elif isinstance(content, tuple):
        result = tuple(_finished(value, done) for value in content)
    done[id(content)] = result
    return result
