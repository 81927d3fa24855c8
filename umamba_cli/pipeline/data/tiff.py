"""TIFF files: pictures, and volumes whose spacing lies in a JSON file beside them.

A volume `CASE_0000.tif` or `CASE.tif` has its spacing in `CASE.json`: `{"spacing": [z, y, x]}` in mm, as in nnU-Net's
raw layout. Without one the spacing is 1 mm.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data.files import read_json, write_json
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Spacing

ENDINGS = (".tif", ".tiff")

_CHANNEL_AXES = "SC"
"""tifffile's letters for colours of a pixel and for channels."""


def read_pixels(path: Path, *, is_volume: bool = False) -> NDArray[Any]:
    """All of a TIFF file: (channels, y, x) of a picture, (channels, z, y, x) of a stack of pages.

    Args:
        path: the file.
        is_volume: a single page is a volume of one slice; so it is where a spacing lies beside the file.

    Raises:
        ValueError: the file is damaged, holds several pictures of different sizes, or more axes than a volume with
            channels.
        Exception: whatever tifffile raises for a file that it cannot read.
    """
    import tifffile

    with _complaints_raised(), tifffile.TiffFile(path) as file:
        if not file.series:
            raise ValueError("it holds no picture")
        if len(file.series) > 1:
            raise ValueError(f"holds {len(file.series)} pictures of different sizes")
        series = file.series[0]
        pixels, axes = _decoded(series, path), series.axes
    if is_volume or spacing_file(path).is_file():
        if pixels.ndim == 2:
            pixels, axes = pixels[None], "Z" + axes
        elif pixels.ndim == 3 and axes[0] in _CHANNEL_AXES:
            axes = "Z" + axes[1:]  # writers that are not told take three or four slices for colours
    channels = [axis for axis, letter in enumerate(axes) if letter in _CHANNEL_AXES]
    pixels = np.moveaxis(pixels, channels[0], 0) if channels else pixels[None]
    if len(channels) > 1 or pixels.ndim not in (3, 4):
        raise ValueError(f"has the axes {axes}, a picture or a volume is expected")
    return pixels


@contextmanager
def _complaints_raised() -> Iterator[None]:
    """Raise what tifffile only logs: that a file is damaged, and that what is missing was left out or made zero."""
    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if record.levelno >= logging.ERROR or "zeroed" in text:
                heard.append(text)

    listener, logger = Listener(logging.WARNING), logging.getLogger("tifffile")
    logger.addHandler(listener)
    try:
        yield
    finally:
        logger.removeHandler(listener)
    if heard:
        raise ValueError(re.sub(r"^<.*?> ", "", heard[0]))


def _decoded(series: Any, path: Path) -> NDArray[Any]:
    pixels: NDArray[Any]
    try:
        pixels = series.asarray()
    except ValueError:  # a compression that tifffile leaves to a package of codecs; Pillow knows the common ones
        from PIL import Image, ImageSequence

        with Image.open(path) as pages:
            pixels = np.stack([np.asarray(page) for page in ImageSequence.Iterator(pages)])
        if series.keyframe.axes.startswith("S"):  # the file holds colour after colour, Pillow gives pixel after pixel
            pixels = np.moveaxis(pixels, -1, 1)
        pixels = pixels.reshape(series.shape)
    return pixels


def spacing_file(path: Path) -> Path:
    """The JSON file that the spacing of a TIFF volume is in: `CASE.json`, of `CASE_0000.tif` too."""
    own = path.with_suffix(".json")
    return own if own.is_file() else own.with_stem(re.sub(r"_[0-9]{4}$", "", own.stem))


def read_spacing(path: Path) -> Spacing | None:
    """Spacing in mm along z, y, x of a TIFF volume; None where no JSON file is beside it.

    Raises:
        InputError: the JSON file does not hold three lengths above 0.
    """
    beside = spacing_file(path)
    if not beside.is_file():
        return None
    content = read_json(beside)
    spacing = content.get("spacing") if isinstance(content, dict) else None
    if (
        not isinstance(spacing, list)
        or len(spacing) != 3
        or not all(isinstance(value, int | float) and math.isfinite(value) and value > 0 for value in spacing)
    ):
        raise InputError(
            f"{beside.parent.name}/{beside.name} has {spacing!r} as its spacing, three lengths above 0 are allowed",
            next_step='write {"spacing": [z, y, x]} in mm into it',
        )
    return tuple(float(value) for value in spacing)


def write_volume(path: Path, array: NDArray[Any], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a volume (z, y, x), compressed; `metadata` goes into the description of the first page."""
    import tifffile

    more = {"axes": "ZYX", **(metadata or {})}
    tifffile.imwrite(path, array, compression="zlib", photometric="minisblack", metadata=more)


def write_picture(path: Path, array: NDArray[Any], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a picture (y, x); `metadata` as in `write_volume`."""
    import tifffile

    tifffile.imwrite(path, array, photometric="minisblack", metadata={"axes": "YX", **(metadata or {})})


def read_metadata(path: Path) -> dict[str, Any]:
    """What `write_volume` or `write_picture` put into the description of a file; empty where another program wrote it.

    Raises:
        ValueError: it is no TIFF file, or a damaged one.
        OSError: it cannot be read.
    """
    import tifffile

    with _complaints_raised(), tifffile.TiffFile(path) as file:
        found: Any = file.shaped_metadata
        return dict(found[0]) if found else {}


def write_spacing(path: Path, spacing_mm: Spacing) -> None:
    """Write `CASE.json` beside the TIFF volume `CASE.tif`."""
    write_json(path.with_suffix(".json"), {"spacing": spacing_mm})
