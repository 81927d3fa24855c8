"""Files that SimpleITK reads: NIfTI (its header), MHA, NRRD and more."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

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


def read_header(path: Path) -> Any:
    """A `SimpleITK.ImageFileReader` that has read a file's header.

    Raises:
        ValueError: its name is not in UTF-8, which would end the process.
        RuntimeError: SimpleITK cannot read it.
    """
    import SimpleITK as sitk

    str(path).encode()
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
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
