"""Slices of an image with its label maps: side by side, and as outlines."""

from __future__ import annotations

import colorsys
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data.files import replacing
from umamba_cli.pipeline.geometry import Spacing
from umamba_cli.pipeline.reporting.contours import inset, outlines
from umamba_cli.pipeline.reporting.slices import (
    REFERENCE,
    ShownCase,
    Window,
    across,
    best_slices,
    differing_voxels,
    slice_axis,
    smaller,
    to_8_bit,
    window_of,
)

# Source: Okabe & Ito 2008, a palette that people with any colour vision can tell apart. Its black is left out, and the
# brightest colours come first, because labels lie on grey.
_PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")

_PANEL_INCHES = 4.2
_DOTS_PER_INCH = 120
_LEGEND_ROW = 5
_LONGEST_LEGEND = 15
_GREY = "#808080"
_DOTS_PER_PIXEL, _MOST_DOTS_PER_INCH = 4, 240  # of outlines, so that two labels side by side show both
_LINE_POINTS = (0.5, 1.8)  # the width of outlines: half a pixel, within these
_INSET = 0.2  # pixels
_FILLED = 0.25  # opacity within outlines
_AXIS_NAMES = "zyx"
_STRIPES = 30  # along a slice's longer side, as many gaps between them


def label_colour(index: int) -> str:
    """The colour of the label at a position among the foreground labels (from 0), as `#RRGGBB`."""
    if index < len(_PALETTE):
        return _PALETTE[index]
    # Steps of the golden ratio never come back to a hue that was used.
    red, green, blue = colorsys.hsv_to_rgb(index * (math.sqrt(5) - 1) / 2 % 1, 0.65, 0.95)
    return f"#{round(red * 255):02X}{round(green * 255):02X}{round(blue * 255):02X}"


def draw_side_by_side(
    path: Path,
    image: NDArray[Any],
    reference: NDArray[Any],
    prediction: NDArray[Any],
    *,
    spacing_mm: Spacing,
    label_names: Mapping[int, str],
    title: str = "",
    left_out: NDArray[np.bool_] | None = None,
) -> None:
    """Write a PNG of one slice: the image, the image with the reference, the image with the prediction.

    The slice (along z) is the one with the most different labels in the reference, then the most labelled voxels.

    Args:
        path: the picture, written whole or not at all.
        image: (z, y, x), any number type.
        reference: labels (z, y, x).
        prediction: labels (z, y, x).
        spacing_mm: along z, y, x; gives the pixels their shape.
        label_names: label value to name, without the background; values without a name are called by their number.
        title: stands above.
        left_out: voxels (z, y, x) that count nowhere, striped in the reference; None means none.

    Raises:
        ValueError: the three shapes differ.
        WorkError: the file cannot be written.
    """
    if not image.shape == reference.shape == prediction.shape:
        raise ValueError(f"image {image.shape}, reference {reference.shape} and prediction {prediction.shape} differ")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    z = richest_slice(reference, prediction)
    names = _all_names(label_names, reference[z], prediction[z])
    legend = _legend(names, reference[z], prediction[z])
    grey = left_out[z] if left_out is not None and left_out[z].any() else None
    if grey is not None:
        legend["counts nowhere"] = _GREY
    aspect = spacing_mm[-2] / spacing_mm[-1]
    height = _PANEL_INCHES * float(np.clip(aspect * image.shape[1] / image.shape[2], 0.4, 2.0))
    legend_rows = math.ceil(len(legend) / _LEGEND_ROW)
    figure = Figure(figsize=(3 * _PANEL_INCHES, height + 0.75 + 0.25 * legend_rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (("image", None), ("reference", reference[z]), ("prediction", prediction[z]))
    for axes, (name, labels) in zip(figure.subplots(1, 3), panels, strict=True):
        _draw_image(axes, image[z], aspect)
        if labels is not None:
            _draw_labels(axes, labels, names, aspect)
        if name == "reference" and grey is not None:
            axes.imshow(_stripes(grey), aspect=aspect, interpolation="nearest")
        axes.set_title(name)
    place = f"slice {z + 1} of {len(image)}" if len(image) > 1 else ""
    figure.suptitle(", ".join(part for part in (title, place) if part))
    _draw_legend(figure, legend)
    _save(figure, path, _DOTS_PER_INCH)


def draw_overlay(
    path: Path, case: ShownCase, *, count: int = 1, window: Window | None = None, title: str = ""
) -> tuple[int, ...]:
    """Write a PNG of some slices: each of them bare, with the reference's outlines where there is one, and with those
    of the other label map (over which the reference's are dashed).

    Args:
        path: the picture, written whole or not at all.
        case: has one label map besides the reference; labels without a name are called by their number. It is cut
            across `slices.slice_axis`, and `slices.best_slices` chooses.
        count: slices, at most.
        window: of a grey image; None: by percentiles of the whole image.
        title: stands above.

    Returns:
        The slices that were drawn, from 0.

    Raises:
        WorkError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axis = slice_axis(case.spacing_mm)
    spacing = [step for index, step in enumerate(case.spacing_mm) if index != axis]
    grey = None if case.image.ndim == 4 else window or window_of(case.image)
    maps = {name: across(labels, axis) for name, labels in case.label_maps.items()}
    turned = replace(case, image=across(case.image, axis), label_maps=maps)
    chosen, wrong = best_slices(turned, count), differing_voxels(turned)
    aspect, columns = spacing[0] / spacing[1], 1 + len(maps)
    height = _PANEL_INCHES * float(np.clip(aspect * turned.image.shape[1] / turned.image.shape[2], 0.4, 2.0))
    given = {label: name for label, name in case.label_names.items() if isinstance(label, int)}
    names = _all_names(given, *(labels[z] for labels in maps.values() for z in chosen))
    legend = _legend(names, *(labels[z] for labels in maps.values() for z in chosen))
    size = (columns * _PANEL_INCHES, len(chosen) * (height + 0.3) + 0.75 + 0.25 * math.ceil(len(legend) / _LEGEND_ROW))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    for row, z in zip(figure.subplots(len(chosen), columns, squeeze=False), chosen, strict=True):
        differing = int(wrong[z]) if REFERENCE in maps else None
        _draw_row(row, turned, z, _Look(grey, aspect, names, _place(z, turned, axis, differing)))
    figure.suptitle(title)
    _draw_legend(figure, legend)
    wanted = _DOTS_PER_PIXEL * max(turned.image.shape[1:3]) / _PANEL_INCHES
    dots = np.clip(wanted, _DOTS_PER_INCH, _MOST_DOTS_PER_INCH)
    _save(figure, path, float(dots))
    return tuple(chosen)


def _save(figure: Any, path: Path, dots_per_inch: float) -> None:
    with replacing(path) as temporary, warnings.catch_warnings():
        # A box stands for a letter that the font lacks, and the name is the file's too.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(temporary, format="png", dpi=dots_per_inch)


@dataclass(frozen=True)
class _Look:
    """How the panels of a row are drawn."""

    window: Window | None
    aspect: float
    names: Mapping[int, str]
    place: str


def _place(z: int, case: ShownCase, axis: int, differing: int | None) -> str:
    """`slice 12 of 36 across z, 40 voxels differ`."""
    where = f"slice {z + 1} of {len(case.image)} across {_AXIS_NAMES[axis]}" if len(case.image) > 1 else ""
    wrong = "" if differing is None else f"{differing} {'pixels' if len(case.image) == 1 else 'voxels'} differ"
    return ", ".join(part for part in (where, wrong) if part)


def _draw_row(row: Sequence[Any], case: ShownCase, z: int, look: _Look) -> None:
    pixels = case.image[z] if look.window is None else to_8_bit(case.image[z], look.window)
    factor = -(-max(pixels.shape[:2]) // round(_PANEL_INCHES * _MOST_DOTS_PER_INCH))
    shown = smaller(pixels, factor)
    row[0].set_title("image")
    for axes in row:
        axes.imshow(shown, cmap="gray", vmin=0, vmax=255, aspect=look.aspect, interpolation="nearest")
        axes.set_axis_off()
    row[0].text(0, -0.02, look.place, transform=row[0].transAxes, va="top", fontsize="small")
    for axes, (name, labels) in zip(row[1:], case.label_maps.items(), strict=True):
        axes.set_title(name)
        # Outlines alone would hide each other where a label is a thin rim, as the boundaries of cells are.
        axes.imshow(_tint(labels[z], look.names, _FILLED, factor), aspect=look.aspect, interpolation="nearest")
        _draw_outlines(axes, labels[z], look.names, factor)
        if name == REFERENCE and case.ignored is not None and (grey := labels[z] == case.ignored).any():
            axes.imshow(_stripes(smaller(grey, factor)), aspect=look.aspect, interpolation="nearest")
        if name != REFERENCE and case.reference is not None:
            axes.set_title(f"{name}, reference dashed")
            _draw_outlines(axes, case.reference[z], look.names, factor, is_dashed=True)


def _draw_outlines(
    axes: Any, labels: NDArray[Any], names: Mapping[int, str], factor: int, *, is_dashed: bool = False
) -> None:
    """Outline every label; dashed ones are white, with black below, so that they are seen on any colour."""
    from matplotlib.collections import LineCollection
    from matplotlib.patheffects import withStroke

    pixel_points = 72 * _PANEL_INCHES * factor / max(labels.shape)
    width = float(np.clip(pixel_points / 2, *_LINE_POINTS)) * (0.6 if is_dashed else 1)
    for index, value in enumerate(names):
        mask = labels == value
        if not mask.any():
            continue
        loops = [inset(corners, _INSET) - 0.5 for corners in outlines(smaller(mask, factor))]
        lines = LineCollection(
            loops,
            colors="white" if is_dashed else label_colour(index),
            linewidths=width,
            linestyles=(0, (3, 3)) if is_dashed else "solid",
            path_effects=[withStroke(linewidth=width + 0.8, foreground="black", alpha=0.6)],
        )
        axes.add_collection(lines, autolim=False)


def richest_slice(reference: NDArray[Any], prediction: NDArray[Any]) -> int:
    """The slice along z to show: the most labels in the reference, then the most labelled voxels in either map."""

    def wealth(z: int) -> tuple[int, int]:
        labelled = np.count_nonzero((reference[z] != 0) | (prediction[z] != 0))
        return len(np.unique(reference[z])), int(labelled)

    middle_first = sorted(range(len(reference)), key=lambda z: abs(z - len(reference) // 2))
    return max(middle_first, key=wealth)


def _all_names(label_names: Mapping[int, str], *slices: NDArray[Any]) -> dict[int, str]:
    """Names by value: those given, and numbers for values that have none."""
    found = {int(value) for labels in slices for value in np.unique(labels)} - {0}
    nameless = {value: str(value) for value in sorted(found - label_names.keys())}
    return {**label_names, **nameless}


def _draw_image(axes: Any, pixels: NDArray[Any], aspect: float) -> None:
    low, high = window_of(pixels)
    axes.imshow(pixels, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
    axes.set_axis_off()


def _draw_labels(axes: Any, labels: NDArray[Any], names: Mapping[int, str], aspect: float) -> None:
    axes.imshow(_tint(labels, names, 0.35), aspect=aspect, interpolation="nearest")
    for index, value in enumerate(names):
        mask = labels == value
        if mask.any() and not mask.all() and min(mask.shape) > 1:
            axes.contour(mask.astype(float), levels=[0.5], colors=[label_colour(index)], linewidths=1.6)


def _tint(labels: NDArray[Any], names: Mapping[int, str], opacity: float, factor: int = 1) -> NDArray[Any]:
    """A picture (y, x, RGBA) of the labels' colours, made smaller by a factor; see-through where there is no label."""
    from matplotlib.colors import to_rgb

    tint = np.zeros((*smaller(labels != 0, factor).shape, 4))
    for index, value in enumerate(names):
        tint[smaller(labels == value, factor)] = (*to_rgb(label_colour(index)), opacity)
    return tint


def _stripes(mask: NDArray[np.bool_]) -> NDArray[Any]:
    """A picture (y, x, RGBA) of slanting grey stripes where the mask is, see-through elsewhere.

    Stripes, because an image may be of any grey itself.
    """
    from matplotlib.colors import to_rgb

    width = max(2, max(mask.shape) // (2 * _STRIPES))
    rows, columns = np.indices(mask.shape)
    striped = np.zeros((*mask.shape, 4))
    striped[mask & ((rows + columns) // width % 2 == 0)] = (*to_rgb(_GREY), 1.0)
    return striped


def _legend(names: Mapping[int, str], *slices: NDArray[Any]) -> dict[str, str]:
    """Name to colour of all labels; where there are many, of those that are seen."""
    seen = {int(value) for labels in slices for value in np.unique(labels)}
    is_long = len(names) > _LONGEST_LEGEND
    colours = {value: label_colour(index) for index, value in enumerate(names)}
    return {name: colours[value] for value, name in names.items() if value in seen or not is_long}


def _draw_legend(figure: Any, colours: Mapping[str, str]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=name) for name, colour in colours.items()]
    if patches:
        figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), _LEGEND_ROW), frameon=False)
