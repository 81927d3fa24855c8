"""A slice of an image with its reference and its prediction side by side."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data.files import replacing
from umamba_cli.pipeline.geometry import Spacing

# Source: Okabe & Ito 2008, a palette that people with any colour vision can tell apart. Its black is left out, and the
# brightest colours come first, because labels lie on grey.
_PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")

_PANEL_INCHES = 4.2
_DOTS_PER_INCH = 120
_WINDOW_PERCENTILES = (0.5, 99.5)
_LEGEND_ROW = 5
_LONGEST_LEGEND = 15
_GREY = "#808080"
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
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DOTS_PER_INCH)


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


def _window(pixels: NDArray[Any]) -> tuple[float, float]:
    """The intensities shown as black and white: a few very bright pixels must not darken all others."""
    finite = pixels[np.isfinite(pixels)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, _WINDOW_PERCENTILES)
    return float(low), float(high if high > low else low + 1)


def _draw_image(axes: Any, pixels: NDArray[Any], aspect: float) -> None:
    low, high = _window(pixels)
    axes.imshow(pixels, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
    axes.set_axis_off()


def _draw_labels(axes: Any, labels: NDArray[Any], names: Mapping[int, str], aspect: float) -> None:
    from matplotlib.colors import to_rgb

    tint = np.zeros((*labels.shape, 4))
    for index, value in enumerate(names):
        mask = labels == value
        tint[mask] = (*to_rgb(label_colour(index)), 0.35)
    axes.imshow(tint, aspect=aspect, interpolation="nearest")
    for index, value in enumerate(names):
        mask = labels == value
        if mask.any() and not mask.all() and min(mask.shape) > 1:
            axes.contour(mask.astype(float), levels=[0.5], colors=[label_colour(index)], linewidths=1.6)


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
