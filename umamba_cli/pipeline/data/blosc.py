"""Opening blosc2 files, which may come from anybody."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

_METALAYERS_AT = 92  # see `_metalayers`
_MOST_HEADER = 1 << 16


def blosc2() -> Any:
    """The package, with its threads set."""
    import blosc2

    # Its own threads, which it starts anew for every small array, take longer than the work: cases are what is spread.
    blosc2.set_nthreads(1)
    return blosc2


def open_array(path: Path) -> Any:
    """A plain array on disk, sliced like numpy's.

    Raises:
        ValueError: it is none. Other kinds blosc2 follows when it opens the file: to other files and servers, and into
            Python code.
        RuntimeError, OSError: it cannot be read.
    """
    if (names := _metalayers(path)) != ["b2nd"]:
        raise ValueError(f"it is no plain array ({', '.join(names) or 'nothing'} in its header)")
    return blosc2().open(str(path), mode="r", dparams={"nthreads": 1})


def _metalayers(path: Path) -> list[str]:
    """Names of what the header of a blosc2 file says of the content, read without blosc2; a plain array has `b2nd`.

    Source: blosc2's README_CFRAME_FORMAT: their number stands behind the 87 bytes of the header's fixed part and five
    more, then each name (its length in the lowest five bits before it) and five bytes that say where its content is.
    """
    with path.open("rb") as file:
        header = file.read(_MOST_HEADER)
    if header[2:10] != b"b2frame\0":
        raise ValueError("it is no blosc2 file")
    try:
        (count,) = struct.unpack_from(">H", header, _METALAYERS_AT)
        position, names = _METALAYERS_AT + 2, []
        for _ in range(count):
            end = position + 1 + (header[position] & 0x1F)
            names.append(header[position + 1 : end].decode())
            position = end + 5
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError("its header is damaged") from error
    return names
