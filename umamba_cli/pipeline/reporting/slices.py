"""Slices of a case for a page: pictures of 8 bit, and each label map's outlines as SVG paths over them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data.dataset import Label, values_of
from umamba_cli.pipeline.geometry import ANISOTROPY_THRESHOLD, Spacing
from umamba_cli.pipeline.reporting.contours import svg_path

MOST_SLICES = 64
MOST_PIXELS = 640
"""Along a slice's longer side; larger ones are made smaller."""

REFERENCE = "reference"

Window = tuple[float, float]
"""The intensities shown as black and as white."""

_WINDOW_PERCENTILES = (0.5, 99.5)
_MOST_SAMPLES = 2_000_000  # voxels to take percentiles of
_LARGEST_PNG_BYTES = 60_000  # above, JPEG is several times smaller
_JPEG_QUALITY = 88
_SLICE_BYTES, _OUTLINE_BYTES = 1500, 200  # of what stands around them in the page


@dataclass(frozen=True, eq=False)
class ShownCase:
    """A case as it is to be shown; all arrays lie on one grid."""

    image: NDArray[Any]
    """(z, y, x), or (z, y, x, 3) of uint8 in colour."""

    label_maps: Mapping[str, NDArray[Any]]
    """(z, y, x) by the name of who made them: `REFERENCE`, and models."""

    spacing_mm: Spacing
    label_names: Mapping[Label, str]
    ignored: int | None = None
    """The value of the reference's voxels that count nowhere."""

    @property
    def reference(self) -> NDArray[Any] | None:
        """The label map that others are compared with."""
        return self.label_maps.get(REFERENCE)

    @property
    def others(self) -> list[NDArray[Any]]:
        """All label maps but the reference."""
        return [labels for name, labels in self.label_maps.items() if name != REFERENCE]


@dataclass(frozen=True)
class Outline:
    """The outline of one label in one label map's slice."""

    source: int
    """Position among `CaseSlices.sources`."""

    label: int
    """Position among `CaseSlices.labels`."""

    path: str
    """Of SVG, in pixels of the picture."""


@dataclass(frozen=True)
class Slice:
    """One slice: a picture and what lies over it."""

    number: int
    """From 1, among all slices of the case."""

    picture: str
    """A `data:` address."""

    outlines: tuple[Outline, ...]

    differing: int
    """Voxels where label maps differ from the reference, each map's counted."""

    @property
    def size(self) -> int:
        """Bytes in the page, nearly."""
        return len(self.picture) + _SLICE_BYTES + sum(len(each.path) + _OUTLINE_BYTES for each in self.outlines)


@dataclass(frozen=True)
class CaseSlices:
    """The slices of a case that are shown."""

    slices: tuple[Slice, ...]
    chosen: int
    """Position of the one to show first."""

    total: int
    """Slices that the case has."""

    axis: int
    """What was cut across: 0, 1, 2 of z, y, x."""

    width: int
    """Pixels of every picture."""

    height: int

    pixel_aspect: float
    """How many times higher than wide a pixel is."""

    sources: tuple[str, ...]
    labels: tuple[str, ...]


def slice_axis(spacing_mm: Spacing) -> int:
    """The axis to cut across: z, or another one where voxels are over three times longer along it than along z.

    A slice then has the resolution of the image, whichever way it was acquired.
    """
    longest = int(np.argmax(spacing_mm))
    return longest if spacing_mm[longest] > ANISOTROPY_THRESHOLD * spacing_mm[0] else 0


def across(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """The array with the slices first; where the rows of a slice are z, higher ones stand above."""
    moved = np.moveaxis(array, axis, 0)
    return moved if axis == 0 else moved[:, ::-1]


def differing_voxels(case: ShownCase) -> NDArray[np.int64]:
    """For each slice along z: voxels where label maps differ from the reference, each map's counted; 0 without one."""
    reference = case.reference
    total = np.zeros(len(case.image), dtype=np.int64)
    if reference is None:
        return total
    counted = None if case.ignored is None else reference != case.ignored
    for labels in case.others:
        wrong = labels != reference
        total += np.count_nonzero(wrong if counted is None else wrong & counted, axis=(1, 2))
    return total


def wealth(label_maps: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """How much there is to see in each slice along z: one for each label, and a share below one of labelled voxels."""
    worth = np.zeros(len(label_maps[0])) if label_maps else np.zeros(0)
    for z in range(len(worth)):
        labelled = np.logical_or.reduce([labels[z] != 0 for labels in label_maps])
        count = np.count_nonzero(labelled)
        if count:
            held = {int(value) for labels in label_maps for value in np.unique(labels[z][labelled])} - {0}
            worth[z] = len(held) + count / (labelled.size + 1)
    return worth


def best_slices(case: ShownCase, count: int = 1) -> list[int]:
    """The slices along z to show, ascending.

    One is where the label maps differ most from the reference, in voxels; where they do not, or where there is none,
    the one with the most labels, of several such the fullest. Several: the slices that hold labels are divided into as
    many equal parts, and the best of each is taken.
    """
    maps = list(case.label_maps.values())
    if not maps:
        return [len(case.image) // 2]
    worth, wrong = wealth(maps), differing_voxels(case)
    held = np.flatnonzero(worth > 0)
    if not held.size:
        return [len(case.image) // 2]
    parts = np.array_split(np.arange(held[0], held[-1] + 1), min(count, held[-1] + 1 - held[0]))
    middle = len(case.image) / 2
    return [int(max(part, key=lambda z: (wrong[z], worth[z], -abs(z + 0.5 - middle)))) for part in parts]


def window_of(voxels: NDArray[Any]) -> Window:
    """The intensities to show as black and white: a few very bright voxels must not darken all others."""
    step = max(1, round((voxels.size / _MOST_SAMPLES) ** (1 / voxels.ndim)))
    sample = voxels[(slice(None, None, step),) * voxels.ndim]
    finite = sample[np.isfinite(sample)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, _WINDOW_PERCENTILES)
    if high <= low:
        low, high = finite.min(), finite.max()
    return float(low), float(high if high > low else low + 1)


def in_colour(channels: NDArray[Any], window: Window | None = None) -> NDArray[np.uint8]:
    """A picture's red, green and blue (3, z, y, x) as (z, y, x, 3) of 8 bit, all three in the same window."""
    return to_8_bit(np.moveaxis(channels[:3], 0, -1), window or window_of(channels[:3]))


def to_8_bit(pixels: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    """Grey values 0 to 255 within a window; what is no number is black."""
    low, high = window
    scaled = np.nan_to_num((pixels.astype(np.float64) - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
    return np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def smaller(pixels: NDArray[Any], factor: int) -> NDArray[Any]:
    """A picture (y, x) or (y, x, colour) with blocks of `factor` pixels averaged, of a mask: any of them."""
    if factor == 1:
        return pixels
    pad = [(0, -size % factor) for size in pixels.shape[:2]] + [(0, 0)] * (pixels.ndim - 2)
    blocks = np.pad(pixels, pad, mode="edge")
    height, width = blocks.shape[:2]
    blocks = blocks.reshape(height // factor, factor, width // factor, factor, *blocks.shape[2:])
    if pixels.dtype == bool:
        return np.asarray(blocks.any(axis=(1, 3)))
    return np.asarray(blocks.mean(axis=(1, 3)).round().astype(pixels.dtype))


def cut_case(case: ShownCase, *, most_bytes: int, window: Window | None = None) -> CaseSlices:
    """The slices of a case, ready for the page: the one to begin with and as many others as there is room for.

    Others are taken evenly from where labels are, and a little beyond.

    Args:
        case: what to show; cut across `slice_axis`.
        most_bytes: to keep to; the chosen slice is taken in any case.
        window: of a grey image; None: by percentiles of the whole image.
    """
    axis = slice_axis(case.spacing_mm)
    spacing = [step for index, step in enumerate(case.spacing_mm) if index != axis]
    turned = replace(
        case,
        image=across(case.image, axis),
        label_maps={name: across(labels, axis) for name, labels in case.label_maps.items()},
    )
    (best,) = best_slices(turned)
    factor = -(-max(turned.image.shape[1:3]) // MOST_PIXELS)
    grey = None if turned.image.ndim == 4 else window or window_of(case.image)
    wrong = differing_voxels(turned)
    slices = {z: _slice(turned, z, grey, factor, int(wrong[z])) for z in _candidates(turned, best)}
    numbers = all_numbers = sorted(slices)
    step = 1
    while len(numbers) > 1 and sum(slices[z].size for z in numbers) > most_bytes:
        step += 1
        numbers = all_numbers[all_numbers.index(best) % step :: step]
    height, width = (-(-size // factor) for size in turned.image.shape[1:3])
    return CaseSlices(
        slices=tuple(slices[z] for z in numbers),
        chosen=numbers.index(best),
        total=len(turned.image),
        axis=axis,
        width=width,
        height=height,
        pixel_aspect=spacing[0] / spacing[1],
        sources=tuple(case.label_maps),
        labels=tuple(case.label_names.values()),
    )


def _candidates(case: ShownCase, best: int) -> list[int]:
    """The slices that might be shown: those with labels and one in ten beyond them on either side, thinned evenly."""
    held = np.flatnonzero(wealth(list(case.label_maps.values())) > 0)
    count = len(case.image)
    first, last = (int(held[0]), int(held[-1])) if held.size else (best, best)
    margin = max(1, count // 10)
    first, last = max(0, first - margin), min(count - 1, last + margin)
    step = -(-(last - first + 1) // MOST_SLICES)
    return list(range(best - (best - first) // step * step, last + 1, step))


def _slice(case: ShownCase, z: int, window: Window | None, factor: int, differing: int) -> Slice:
    pixels = case.image[z] if window is None else to_8_bit(case.image[z], window)
    found = []
    for source, labels in enumerate(case.label_maps.values()):
        flat = labels[z]
        for index, label in enumerate(case.label_names):
            mask = np.isin(flat, values_of(label))
            if mask.any():
                found.append(Outline(source, index, svg_path(smaller(mask, factor))))
    return Slice(z + 1, _data_address(smaller(pixels, factor)), tuple(found), differing)


def _data_address(pixels: NDArray[np.uint8]) -> str:
    """A picture as a `data:` address: PNG, or JPEG where that would be large."""
    import imageio.v3 as imageio

    pixels = np.ascontiguousarray(pixels)
    kind, content = "png", imageio.imwrite("<bytes>", pixels, extension=".png")
    if len(content) > _LARGEST_PNG_BYTES:
        kind = "jpeg"
        content = imageio.imwrite("<bytes>", pixels, extension=".jpg", quality=_JPEG_QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
