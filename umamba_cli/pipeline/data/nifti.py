"""The voxels of a NIfTI file, read in one pass that sees what ITK hides, and its header extensions, which ITK has not.

ITK's NIfTI reader fills what is missing from a truncated file with zeros, makes voxels that are not finite zero, and
says neither. Its header is good: sizes, spacing and directions stay ITK's work, voxels are read here.

Source: the NIfTI-1 header, https://nifti.nimh.nih.gov/nifti-1; gzip files, RFC 1952.
"""

from __future__ import annotations

import gzip
import math
import os
import shutil
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data import itk
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Grid, numbers_text, size_text

ENDINGS = (".nii", ".nii.gz")

_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
"""NIfTI's datatype code to numpy's; complex and long double numbers are none that can be used."""

_COLOURS = {128: 3, 2304: 4}
"""NIfTI's datatype code to the colours of a voxel, a byte each."""

HEADER_BYTES = 348
_AT_ONCE = 1 << 20
_MOST_VOXELS = (1 << 15) - 1  # along an axis
_MOST_HEADER = 1 << 26  # one that is said to be longer, its extensions counted, is damaged
_DEFLATED = 1032  # bytes that one byte of a gzip file stands for, at most

_GZIP_START = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # deflated, no name, no time
_GZIP_FLAGS_AT, _GZIP_END_BYTES = 3, 8
_CRC_POLYNOMIAL, _CRC_ONE = 0xEDB88320, 1 << 31  # coefficients in bits, the lowest power first (RFC 1952)
_DEFLATE_LEVEL = 3  # of label maps: a quarter faster than ITK's own 6, files 3 % larger
_TEXT_HEADER_BYTES = 1 << 16  # in which ITK's NRRD header ends

_MAGIC_AT, SIZES_AT, _DATATYPE_AT, _SPACING_AT, _START_AT = 344, 40, 70, 80, 108
"""Where in the header stands what is used here."""


@dataclass(frozen=True)
class Extension:
    """What a program adds to a NIfTI header: its registered code, and whatever it likes."""

    code: int
    content: bytes

    def to_bytes(self) -> bytes:
        """As it lies in a file: a multiple of 16 bytes, its size first."""
        size = math.ceil((8 + len(self.content)) / 16) * 16
        return struct.pack("=ii", size, self.code) + self.content.ljust(size - 8, b"\0")


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
    spacing = struct.unpack_from(f"{order}3f", content, _SPACING_AT)  # ITK says 1 mm where this is no number, or 0
    if any(size > 1 and not (mm and math.isfinite(mm)) for mm, size in zip(spacing, sizes, strict=False)):
        raise ValueError(f"its header has a spacing of {numbers_text(spacing)} mm (x, y, z), which cannot be")
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
    with _opened(path) as file:
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


def _opened(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb"))


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


def read_extensions(path: Path) -> list[Extension]:
    """The header extensions of a `.nii` or `.nii.gz` file, without the zeros that fill them.

    Raises:
        ValueError: it is no NIfTI-1 file.
        EOFError: the file ends before its first voxel.
        OSError, zlib.error: it cannot be read or decompressed.
    """
    with _opened(path) as file:
        header = parse_header(file.read(HEADER_BYTES))
        rest = file.read(header.start - HEADER_BYTES)
    if len(rest) < header.start - HEADER_BYTES:
        raise EOFError("the file ends before its first voxel")
    found, at = [], 4
    while rest[:1] > b"\0" and at + 8 <= len(rest):
        size, code = struct.unpack_from(f"{header.order}ii", rest, at)
        if not 8 < size <= len(rest) - at:
            break
        found.append(Extension(code, rest[at + 8 : at + size].rstrip(b"\0")))
        at += size
    return found


def write(path: Path, array: NDArray[Any], grid: Grid, extension: Extension | None = None) -> None:
    """Write an image (z, y, x) as `itk.write` does, perhaps with a header extension, which ITK cannot write.

    ITK makes the header, of a single voxel, and deflates the voxels, as a NRRD file beside `path`. Its deflated bytes
    are then copied behind the header: Python's own zlib would take several times as long. What ITK itself writes as
    NIfTI is not taken, as it does not say where a disk filled up.

    Raises:
        InputError: the path is not in UTF-8, or the image is too large for the format.
        OSError: it cannot be written.
    """
    if max(array.shape) > _MOST_VOXELS:
        raise InputError(
            f"an image of {size_text(array.shape)} voxels does not fit into NIfTI, which has up to {_MOST_VOXELS} "
            "along an axis",
            next_step="choose another format, as .mha or .nrrd",
        )
    header = _header(path, array, grid, extension)
    if path.suffix.lower() != ".gz":
        with path.open("wb") as target:
            target.write(header)
            for voxels in itk.contiguous_parts(array):
                target.write(voxels)
        return
    deflated = _beside(path, "voxels.nrrd")
    try:
        itk.write(deflated, array, grid, level=_DEFLATE_LEVEL)
        with path.open("wb") as target, deflated.open("rb") as source:
            source.seek(_deflate_start(source))
            part = zlib.compressobj(wbits=-zlib.MAX_WBITS)
            target.write(_GZIP_START + part.compress(header) + part.flush(zlib.Z_FULL_FLUSH))
            shutil.copyfileobj(source, target, _AT_ONCE)
            target.seek(-_GZIP_END_BYTES, os.SEEK_END)  # over the checksum and size of the voxels alone
            checksum = _joined_crc(zlib.crc32(header), itk.gzip_end(deflated)[0], array.nbytes)
            target.write(struct.pack("<II", checksum, (len(header) + array.nbytes) & 0xFFFFFFFF))
    finally:
        deflated.unlink(missing_ok=True)


def _joined_crc(first: int, second: int, count: int) -> int:
    """The checksum of two pieces from their own, the second of `count` bytes: reading it again takes longer."""
    power, shift = _CRC_ONE >> 8, _CRC_ONE  # x ** 8, by squares to x ** (8 * count)
    while count:
        shift = _crc_product(power, shift) if count & 1 else shift
        power, count = _crc_product(power, power), count >> 1
    return _crc_product(shift, first) ^ second


def _crc_product(first: int, second: int) -> int:
    """Of two polynomials over the two-element field, modulo the one of the checksum."""
    product = 0
    for power in range(32):
        if first & _CRC_ONE >> power:
            product ^= second
        second = second >> 1 ^ (_CRC_POLYNOMIAL if second & 1 else 0)
    return product


def _header(path: Path, array: NDArray[Any], grid: Grid, extension: Extension | None) -> bytes:
    """All that lies before the voxels."""
    single = _beside(path, "header.nii")
    try:
        itk.write(single, np.zeros((1, 1, 1), dtype=array.dtype), grid)
        header = bytearray(single.read_bytes()[:HEADER_BYTES])
    finally:
        single.unlink(missing_ok=True)
    struct.pack_into("=3h", header, SIZES_AT + 2, *array.shape[::-1])  # the third is 1 in a file of two axes
    added = b"\1\0\0\0" + extension.to_bytes() if extension else bytes(4)
    struct.pack_into("=f", header, _START_AT, HEADER_BYTES + len(added))
    return bytes(header) + added


def _beside(path: Path, ending: str) -> Path:
    """A name like the file's, so that what a killed process leaves is removed like it."""
    return path.with_name(f"{path.name[: path.name.lower().rindex('.nii')]}.{ending}")


def _deflate_start(nrrd: IO[bytes]) -> int:
    """The byte that the deflated voxels of a NRRD file begin at: behind the empty line and the beginning of gzip's."""
    content = nrrd.read(_TEXT_HEADER_BYTES)
    start = content.index(b"\n\n") + 2
    if content[start : start + 3] != _GZIP_START[:3] or content[start + _GZIP_FLAGS_AT]:
        raise OSError("SimpleITK compresses NRRD files in a way that is not known here")
    return start + len(_GZIP_START)
