"""The voxels of a NIfTI file, read in one pass that sees what ITK hides.

ITK's NIfTI reader fills what is missing from a truncated file with zeros, makes voxels that are not finite zero, and
says neither. Its header is good: sizes, spacing and directions stay ITK's work, voxels are read here.

Source: the NIfTI-1 header, https://nifti.nimh.nih.gov/nifti-1.
"""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

ENDINGS = (".nii", ".nii.gz")

_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
"""NIfTI's datatype code to numpy's; complex and long double numbers are none that can be used."""

_COLOURS = {128: 3, 2304: 4}
"""NIfTI's datatype code to the colours of a voxel, a byte each."""

HEADER_BYTES = 348
_AT_ONCE = 1 << 20
_MOST_HEADER = 1 << 26  # one that is said to be longer, its extensions counted, is damaged
_DEFLATED = 1032  # bytes that one byte of a gzip file stands for, at most

_MAGIC_AT, SIZES_AT, _DATATYPE_AT, _START_AT = 344, 40, 70, 108
"""Where in the header stands what is used here."""


@dataclass(frozen=True)
class Header:
    """What a NIfTI-1 file says of its voxels."""

    order: str
    """Byte order, as `struct` writes it."""

    axes: int
    sizes: tuple[int, ...]
    """Voxels along x, y, z and four further axes; 1 where the file has no such axis."""

    kind: np.dtype[Any] | None
    """Of the numbers stored, in the file's byte order; None for colours and complex numbers."""

    colours: int
    """Bytes of a voxel that are colours; 0 where it is a number."""

    start: int
    """The byte that voxels begin at."""

    slope: float
    intercept: float

    @property
    def is_scaled(self) -> bool:
        """True where a voxel's value is not the number stored. A slope of 0 means that there is no scale."""
        scaled = (self.slope, self.intercept) != (1.0, 0.0)
        return scaled and self.slope != 0 and math.isfinite(self.slope) and math.isfinite(self.intercept)


def parse_header(content: bytes) -> Header:
    """The header in the first `HEADER_BYTES` of a file.

    Raises:
        ValueError: it is none of a NIfTI-1 file with header and voxels in one, or says what cannot be.
    """
    order = "<" if content[:4] == struct.pack("<i", HEADER_BYTES) else ">"
    if len(content) < HEADER_BYTES or content[_MAGIC_AT:HEADER_BYTES] != b"n+1\0":
        raise ValueError("it is no NIfTI-1 file of header and voxels in one")
    axes, *said = struct.unpack_from(f"{order}8h", content, SIZES_AT)
    sizes = (*said[:axes], *[1] * (7 - axes)) if 2 <= axes <= 7 else (0,)
    if min(sizes) < 1:
        raise ValueError(f"its header names {axes} axes of {said} voxels")
    (code,) = struct.unpack_from(f"{order}h", content, _DATATYPE_AT)
    start, slope, intercept = struct.unpack_from(f"{order}3f", content, _START_AT)
    if not HEADER_BYTES <= start <= _MOST_HEADER:
        raise ValueError(f"its header says that the voxels begin at byte {start:g}")
    kind = np.dtype(order + _TYPES[code]) if code in _TYPES else None
    return Header(order, axes, sizes, kind, _COLOURS.get(code, 0), int(start), slope, intercept)


def read_voxels(path: Path, shape: Sequence[int]) -> NDArray[Any]:
    """All voxels of a `.nii` or `.nii.gz` file, to its last byte, so that a checksum is verified.

    Args:
        path: the file.
        shape: components of a voxel, then its size, slowest axis first, as ITK read them from the header.

    Returns:
        An array of that shape in the file's own type and native byte order, float32 (float64 from float64) where a
        scale applies.

    Raises:
        ValueError: it is no NIfTI-1 file, or its voxels are neither numbers nor colours.
        EOFError: the file ends before its last voxel.
        OSError, zlib.error: it cannot be read or decompressed.
    """
    with cast("IO[bytes]", gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")) as file:
        header = parse_header(file.read(HEADER_BYTES))
        kind = np.dtype("u1") if header.colours else header.kind
        count = math.prod(shape)
        if kind is None:
            raise ValueError("its voxels are no real numbers")
        if count != math.prod(header.sizes) * max(header.colours, 1):
            raise ValueError(f"its header names {header.sizes} voxels, {tuple(shape)} are expected")
        if header.start + count * kind.itemsize > _most_bytes(path):  # before the memory for them is asked for
            raise EOFError(f"the file is too short for {count * kind.itemsize} bytes of voxels")
        _skip(file, header.start - HEADER_BYTES)
        numbers: NDArray[Any] = np.empty(count, dtype=kind)
        _fill(file, numbers.view(np.uint8).data)
        while file.read(_AT_ONCE):  # to the end, where gzip keeps its checksum
            pass
    if header.colours:  # stored voxel by voxel; components that are numbers are stored one volume after the other
        numbers = numbers.reshape(-1, shape[0]).T
    else:
        numbers = _scaled(numbers.astype(kind.newbyteorder("="), copy=False), header)
    return numbers.reshape(shape)


def _scaled(numbers: NDArray[Any], header: Header) -> NDArray[Any]:
    if not header.is_scaled:
        return numbers
    values = np.empty(numbers.shape, dtype=np.float64 if numbers.dtype == np.float64 else np.float32)
    with np.errstate(over="ignore"):  # what becomes infinite is for the checks to say
        for start in range(0, len(numbers), _AT_ONCE):  # in float64, which would take four times the memory at once
            part = slice(start, start + _AT_ONCE)
            values[part] = numbers[part] * np.float64(header.slope) + header.intercept
    return values


def _most_bytes(path: Path) -> int:
    size = path.stat().st_size
    return size * _DEFLATED if path.suffix.lower() == ".gz" else size


def _skip(file: IO[bytes], count: int) -> None:
    while count > 0:
        skipped = len(file.read(min(count, _AT_ONCE)))
        if not skipped:
            raise EOFError("the file ends before its first voxel")
        count -= skipped


def _fill(file: IO[bytes], target: memoryview) -> None:
    done = 0
    while done < len(target):
        block = file.read(min(len(target) - done, _AT_ONCE))
        if not block:
            raise EOFError(f"{done} bytes of voxels are there, {len(target)} are needed")
        target[done : done + len(block)] = block
        done += len(block)
