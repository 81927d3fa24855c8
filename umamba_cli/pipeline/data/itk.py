"""Files that SimpleITK reads and writes: NIfTI (its header), MHA, NRRD and more."""

from __future__ import annotations

import os
import re
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Grid

ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr", ".hdr", ".img", ".gipl")
"""Endings of its formats that are listed as images; it knows more formats."""

_HEADER_BYTES = {".nii": 352, ".gipl": 256}
"""What lies at least before the voxels of files that ITK does not compress."""

_GZIP_END_BYTES = 8

_hiding = threading.RLock()  # a second thread would take the first one's nowhere for standard error


@contextmanager
def messages_hidden() -> Iterator[None]:
    """Keep off standard error what C libraries print there about a bad file; the exceptions that follow say enough.

    Nothing else that this process writes to standard error meanwhile is seen either; other threads wait their turn.
    """
    with _hiding:
        try:
            kept = os.dup(2)
        except OSError:  # there is no standard error
            yield
            return
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def read_header(path: Path, *, file_type: str = "") -> Any:
    """A `SimpleITK.ImageFileReader` that has read a file's header.

    Args:
        path: the file.
        file_type: ITK's class that is to read it; the file's content decides where it is empty.

    Raises:
        ValueError: its name is not in UTF-8, which would end the process.
        RuntimeError: SimpleITK cannot read it.
    """
    import SimpleITK as sitk

    str(path).encode()
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    if file_type:
        reader.SetImageIO(file_type)
    with messages_hidden():
        reader.ReadImageInformation()
    return reader


def read_voxels(reader: Any) -> NDArray[Any]:
    """The voxels of a file: (z, y, x), with a last axis where a voxel has several components.

    Raises:
        ValueError: they are complex numbers.
        RuntimeError: SimpleITK cannot read them.
    """
    import SimpleITK as sitk

    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in kind:
        raise ValueError("its voxels are complex numbers")
    with messages_hidden():
        voxels: NDArray[Any] = sitk.GetArrayFromImage(reader.Execute())
    return voxels


def write(
    path: Path, array: NDArray[Any], grid: Grid, *, entries: Mapping[str, str] | None = None, level: int = -1
) -> None:
    """Write an image (z, y, x) in the format that the file's ending names, compressed where the format can be.

    ITK says nothing where a disk fills up while it writes NIfTI, GIPL or the end of NRRD: whether such a file is whole
    is looked at here. (`.nii.gz` files, in which that cannot be seen, are for `nifti.write`.)

    Args:
        path: the file, which is written in place.
        array: its voxels.
        grid: where they lie; a file of two axes is written where it is one's.
        entries: keys and values for the header, in formats that have such.
        level: of compression; -1 is the format's own.

    Raises:
        InputError: its path is not in UTF-8.
        OSError: it cannot be written.
    """
    import SimpleITK as sitk

    require_utf8(path)
    image = sitk.GetImageFromArray(array[0] if grid.is_2d_file else array)
    axes = slice(1, None) if grid.is_2d_file else slice(None)
    image.SetSpacing(tuple(reversed(grid.spacing_mm[axes])))
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(grid.direction)
    for key, value in (entries or {}).items():
        image.SetMetaData(key, value)
    try:
        sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=level)
    except RuntimeError as error:  # SimpleITK wraps "no space left" and the like in its own exception
        raise OSError(reason(error)) from error
    if not _is_whole(path, array):
        raise OSError("it was not written to its end, as if the disk was full")


def _is_whole(path: Path, array: NDArray[Any]) -> bool:
    """False where a file that was just written lacks its end; True of formats whose writers say so themselves."""
    ending = path.suffix.lower()
    if ending in _HEADER_BYTES:
        return path.stat().st_size >= _HEADER_BYTES[ending] + array.nbytes
    if ending != ".nrrd":
        return True
    checksum = 0
    for part in contiguous_parts(array):
        checksum = zlib.crc32(part, checksum)
    return gzip_end(path) == (checksum, array.nbytes & 0xFFFFFFFF)


def gzip_end(path: Path) -> tuple[int, int]:
    """The checksum that a file ends with where it ends in gzip's way, and the bytes it is of, modulo 2 ** 32."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _GZIP_END_BYTES))
        end = file.read()
    checksum, size = struct.unpack("<II", end.rjust(_GZIP_END_BYTES, b"\0"))
    return checksum, size


def contiguous_parts(array: NDArray[Any]) -> Iterator[memoryview]:
    """The bytes of an array in C order, slice by slice: of another order a slice alone is copied."""
    for part in array:
        yield np.ascontiguousarray(part).data.cast("B")


def require_utf8(path: Path) -> None:
    """Refuse a path that would end the process in ITK.

    Raises:
        InputError: it is not in UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{str(path)!a} has a name that is not in UTF-8", next_step="choose another name") from error


def reason(error: Exception) -> str:
    """What an exception says in the end, without the names of SimpleITK's classes and source files."""
    text = str(error).strip()
    if "MetaImageIO" in text and "Reason: " in text:  # which gives the last error number of the system, whatever it was
        return "it is truncated or damaged"
    if "Unable to determine ImageIO reader" in text:
        return "it is of no known format, or its header is damaged"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return re.sub(r"^((s?itk::|ITK )ERROR: )?(\w+\(0x[0-9a-f]+\): |\[nrrd\] \w+: )?", "", last)
