"""Reading files that `torch.save` wrote, without running what they hold and without torch's own unpickler.

Two formats: since torch 1.6 a zip of one pickle and a record for each storage, before that several pickles in a row
with the storages' bytes behind them. A tensor is a window on a storage; whether it lies within is checked here, for a
window that does not would read another's memory.

Source: torch.serialization and torch._utils (torch 2.13), what they write and name.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from torch import Tensor

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.interop.unpickle import Allowed, RestrictedUnpickler, Unfinished

ReadStorage = Callable[[str, int], bytes]
"""The bytes of a storage by its key; how many are needed is known beforehand."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

# What a storage of these elements is called; newer types are named by the tensor, over a storage of bytes.
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
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
}
_DTYPES = {
    **{str(dtype).removeprefix("torch."): dtype for dtype in _STORAGES.values()},
    **{name: getattr(torch, name) for name in ("uint16", "uint32", "uint64") if hasattr(torch, name)},
    **{name: getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name)},
}


class _Kind(Unfinished):
    """A type of numbers: a dtype, or the class of a storage of them."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def finished(self) -> torch.dtype:
        """The dtype."""
        return self.dtype


class _Storage(Unfinished):
    """A storage that the pickle names: numbers outside of it, which several tensors may share."""

    __slots__ = ("count", "dtype", "key", "numbers")

    def __init__(self, numbers: _Numbers, key: str, dtype: torch.dtype, count: int) -> None:
        self.numbers = numbers
        self.key, self.dtype, self.count = key, dtype, count

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * self.dtype.itemsize

    def finished(self) -> Tensor:
        """Its numbers, in one row."""
        return self.numbers.of(self)


class _Numbers:
    """The numbers of all storages, each read once."""

    def __init__(self, read: ReadStorage) -> None:
        self._read = read
        self._bytes: dict[str, Tensor] = {}

    def of(self, storage: _Storage) -> Tensor:
        """The numbers of a storage, in one row; tensors over the same one share their memory."""
        if storage.key not in self._bytes:
            content = bytearray(self._read(storage.key, storage.size))
            self._bytes[storage.key] = (
                torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
            )
        held = self._bytes[storage.key]
        if len(held) != storage.size:
            raise pickle.UnpicklingError(f"storage {storage.key} is named in two sizes")
        return held.view(storage.dtype)


class _Tensor(Unfinished):
    """A window on a storage; its place was checked."""

    __slots__ = ("offset", "size", "storage", "stride")

    def __init__(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def finished(self) -> Tensor:
        """The tensor."""
        return self.storage.finished().as_strided(self.size, self.stride, self.offset)


def _tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> _Tensor:
    """A tensor from a storage; what else torch notes (gradients, hooks) is not needed.

    Raises:
        pickle.UnpicklingError: it does not lie within its storage.
    """
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor must be made of a storage")
    place = (_whole(offset), *_whole_numbers(size), *_whole_numbers(stride))
    sizes, strides = _whole_numbers(size), _whole_numbers(stride)
    count = math.prod(sizes)
    last = place[0] + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) if count else place[0] - 1
    # A tensor larger than its storage would be an expanded one, of any size without a byte behind it.
    if last >= storage.count or count > storage.count or place[0] > storage.count:
        raise pickle.UnpicklingError(
            f"a tensor of size {sizes}, stride {strides} and offset {place[0]} reaches beyond its storage of "
            f"{storage.count}"
        )
    return _Tensor(storage, place[0], sizes, strides)


def _tensor_of_dtype(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    _gradient: object,
    _hooks: object,
    kind: object,
    *_: object,
) -> _Tensor:
    """A tensor whose storage is one of bytes."""
    if not isinstance(storage, _Storage) or not isinstance(kind, _Kind) or storage.size % kind.dtype.itemsize:
        raise pickle.UnpicklingError("a tensor must be made of a storage and a dtype")
    count = storage.size // kind.dtype.itemsize
    return _tensor(_Storage(storage.numbers, storage.key, kind.dtype, count), offset, size, stride)


def _parameter(tensor: object, *_: object) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise pickle.UnpicklingError("a parameter must be made of a tensor")
    return tensor


def _device(kind: object, index: object = None) -> str:
    """A device by its name: where something was says nothing about where it will be."""
    if not isinstance(kind, str):
        raise pickle.UnpicklingError("a device must have a name")
    return kind if index is None else f"{kind}:{_whole(index)}"


def _whole_numbers(values: object = ()) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > 64:
        raise pickle.UnpicklingError("the size of a tensor must be a tuple of whole numbers")
    return tuple(_whole(value) for value in values)


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise pickle.UnpicklingError(f"{value!r:.40} is no size, stride or offset")
    return value


class TorchUnpickler(RestrictedUnpickler):
    """Reads the pickle of a file of torch: besides what `RestrictedUnpickler` allows, tensors, and names of devices.

    Args:
        content: the pickle.
        source: what errors call it.
        read: gives the bytes of a storage.
        leave_out: keys of the outermost dictionary whose storages need not be read.
    """

    allowed: ClassVar = {
        **RestrictedUnpickler.allowed,
        ("torch._utils", "_rebuild_tensor"): Allowed(_tensor),
        ("torch._utils", "_rebuild_tensor_v2"): Allowed(_tensor),
        ("torch._utils", "_rebuild_tensor_v3"): Allowed(_tensor_of_dtype),
        ("torch._utils", "_rebuild_parameter"): Allowed(_parameter),
        ("torch._utils", "_rebuild_parameter_with_state"): Allowed(_parameter),
        ("torch", "Size"): Allowed(_whole_numbers),
        ("torch", "device"): Allowed(_device),
        **{("torch", name): _Kind(dtype) for name, dtype in (_STORAGES | _DTYPES).items()},
        **{("torch.storage", name): _Kind(torch.uint8) for name in ("UntypedStorage", "_UntypedStorage")},
    }

    def __init__(self, content: bytes, source: str, read: ReadStorage, leave_out: Collection[str] = ()) -> None:
        super().__init__(content, source)
        self.leave_out = frozenset(leave_out)
        self.sizes: dict[str, int] = {}
        """Bytes of each element of the storages that were named."""
        self._numbers = _Numbers(read)

    def persistent_load(self, pid: object) -> _Storage:
        """A storage that lies outside the pickle.

        Raises:
            InputError: anything else is asked for.
        """
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise self._refused(f"an object outside of the file ({pid!r:.40})")
        kind, key, _device_name, count, *view = pid[1:]
        if not isinstance(kind, _Kind) or not isinstance(key, str) or any(part is not None for part in view):
            raise pickle.UnpicklingError(f"storage {key!r:.40} is none that is known")
        storage = _Storage(self._numbers, key, kind.dtype, _whole(count))
        if self.sizes.setdefault(key, kind.dtype.itemsize) != kind.dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {key} is named with two types")
        return storage


def load_torch_file(path: Path, *, leave_out: Collection[str] = ()) -> Any:
    """What `torch.save` wrote: numbers, text, containers, numpy's arrays and tensors (on the CPU); nothing is run.

    Devices become their names, parameters plain tensors, ordered dictionaries plain ones.

    Args:
        path: the file, `.pth` or `.pt`.
        leave_out: keys of the outermost dictionary that are not wanted, such as the optimizer's state; their tensors
            are not read.

    Raises:
        InputError: the file cannot be read, is damaged, or asks for anything else.
    """
    with _reading(path), path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        if is_zip:
            with zipfile.ZipFile(file) as archive:
                return _load_zip(archive, path, leave_out)
        return _load_legacy(file, path, leave_out)


def _load_zip(archive: zipfile.ZipFile, path: Path, leave_out: Collection[str]) -> Any:
    records = {record.filename: record for record in archive.infolist()}
    # Stored records cannot grow; the sum refuses those that lie on top of each other.
    is_stored = all(r.compress_type == zipfile.ZIP_STORED and r.file_size == r.compress_size for r in records.values())
    is_plain = len(records) == len(archive.infolist()) and not any(r.flag_bits & 0x1 for r in records.values())
    if not (is_stored and is_plain) or sum(r.file_size for r in records.values()) > path.stat().st_size:
        raise pickle.UnpicklingError("its records are compressed, encrypted or doubled, which torch does not write")
    pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise pickle.UnpicklingError(f"it holds {len(pickles)} data.pkl, a file of torch holds one")
    prefix = pickles[0].removesuffix("data.pkl")
    order = archive.read(f"{prefix}byteorder") if f"{prefix}byteorder" in records else b"little"
    if order != b"little":
        raise pickle.UnpicklingError("it was written on a big-endian machine")

    def read(key: str, size: int) -> bytes:
        record = records.get(f"{prefix}data/{key}")
        if record is None or record.file_size != size:
            raise pickle.UnpicklingError(
                f"storage {key} has {'no' if record is None else record.file_size} bytes, not {size}"
            )
        return archive.read(record)

    return TorchUnpickler(archive.read(pickles[0]), str(path), read, leave_out).read()


def _load_legacy(file: IO[bytes], path: Path, leave_out: Collection[str]) -> Any:
    """Five pickles in a row: magic number, protocol, machine, content, keys; then a count and bytes for each key."""
    magic, protocol, machine = (RestrictedUnpickler(_next_pickle(file), str(path)).read() for _ in range(3))
    if (magic, protocol) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise pickle.UnpicklingError("it is no file of torch")
    if machine.get("little_endian") is not True:
        raise pickle.UnpicklingError("it was written on a big-endian machine")
    content = _next_pickle(file)
    keys = RestrictedUnpickler(_next_pickle(file), str(path)).read()
    start, end = file.tell(), path.stat().st_size
    places: dict[str, tuple[int, int]] = {}

    def read(key: str, size: int) -> bytes:
        if not places:
            places.update(_legacy_places(file, keys, unpickler.sizes, start, end))
        position, there = places.get(key, (0, -1))
        if there != size:
            raise pickle.UnpicklingError(f"storage {key} has {max(there, 0)} bytes, not {size}")
        file.seek(position)
        return file.read(size)

    unpickler = TorchUnpickler(content, str(path), read, leave_out)
    return unpickler.read()


def _legacy_places(
    file: IO[bytes], keys: list[str], sizes: dict[str, int], position: int, end: int
) -> dict[str, tuple[int, int]]:
    """Where the bytes of each storage begin, and how many they are."""
    places = {}
    for key in keys:
        if key not in sizes:
            raise pickle.UnpicklingError(f"storage {key!r:.40} belongs to nothing")
        file.seek(position)
        (count,) = struct.unpack("<q", file.read(8))
        size = _whole(count) * sizes[key]
        if position + 8 + size > end:
            raise pickle.UnpicklingError(f"it ends within storage {key}")
        places[key] = position + 8, size
        position += 8 + size
    return places


def _next_pickle(file: IO[bytes]) -> bytes:
    """The bytes of the pickle that begins here, up to its end."""
    start = file.tell()
    try:
        for _ in pickletools.genops(file):
            pass
    except MemoryError as error:
        raise pickle.UnpicklingError("it holds a text longer than any file") from error
    length = file.tell() - start
    file.seek(start)
    return file.read(length)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever reading raises into an InputError that names the file."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", next_step="check the path") from error
    except Exception as error:  # a damaged file raises nearly anything
        raise InputError(
            f"{path} cannot be read as a file of torch: {str(error) or type(error).__name__}",
            next_step="copy the file again from its source, or save it again with torch",
        ) from error
