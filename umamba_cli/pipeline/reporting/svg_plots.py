"""Plots as inline SVG: lines over epochs, and boxes of cases by label and model.

Colours are the page's: text and axes are `currentColor`, lines and boxes have the classes `c0` to `c6`, which the style
sheet fills for light and dark. What a colour tells a dash pattern tells too. Every text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

COLOURS = 7
DASHES = ("", "7 3", "2 3", "10 3 2 3", "4 2")
"""As many as share no divisor with the colours, so that 35 series look different."""

_WIDTH, _HEIGHT, _WIDE_WIDTH, _WIDE_HEIGHT = 324, 220, 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 24, 34
_LEGEND_LINE = 17
_MOST_POINTS = 160  # of a line; more cannot be told apart
_LONGEST_NAME, _LONGEST_MODEL = 40, 26
_FEW_VALUES = 60  # of a box: up to here each has its dot, beyond only outliers
_MOST_OUTLIERS = 40
_BOX_WIDTH, _ROW, _HEADER, _BOX_LEFT = 640, 19, 22, 190
_WHISKER = 1.5  # times the distance of the quartiles; source: Tukey 1977


@dataclass(frozen=True)
class Line:
    """One line of a plot; values that are no number leave a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int
    """Chooses colour and dashes, see `style_of`."""

    is_thick: bool = False


@dataclass(frozen=True)
class Box:
    """The values of one model for one label, those that are no number left out."""

    label: str
    model: str
    style: int
    values: tuple[float, ...]
    names: tuple[str, ...] = ()
    """Of the cases, in the order of the values."""


@dataclass(frozen=True)
class BoxFigures:
    """What a box shows."""

    count: int
    mean: float
    sd: float
    """Sample standard deviation (n - 1); NaN of a single value."""

    lowest: float
    quartile_1: float
    median: float
    quartile_3: float
    highest: float
    whisker_low: float
    """The lowest value within 1.5 times the quartiles' distance below the first."""

    whisker_high: float


def style_of(index: int) -> tuple[str, str]:
    """The class and the dash pattern of a series at a position."""
    return f"c{index % COLOURS}", DASHES[index % len(DASHES)]


def box_figures(values: Sequence[float]) -> BoxFigures:
    """The figures of a box; all are NaN without a value. Quartiles are interpolated linearly."""
    numbers = np.sort([value for value in values if math.isfinite(value)])
    if not numbers.size:
        return BoxFigures(0, *[math.nan] * 9)
    low, middle, high = (float(value) for value in np.percentile(numbers, (25, 50, 75)))
    reach = _WHISKER * (high - low)
    within = numbers[(numbers >= low - reach) & (numbers <= high + reach)]
    sd = float(numbers.std(ddof=1)) if numbers.size > 1 else math.nan
    ends = float(numbers[0]), low, middle, high, float(numbers[-1])
    return BoxFigures(numbers.size, float(numbers.mean()), sd, *ends, float(within[0]), float(within[-1]))


def line_plot(
    key: str,
    title: str,
    lines: Sequence[Line],
    *,
    x_name: str,
    y_name: str,
    y_range: tuple[float, float] | None = None,
    is_wide: bool = False,
) -> Markup:
    """Lines over a common axis, with their names below.

    Args:
        key: letters and digits that no other plot of the page has.
        title: what is shown; for readers who hear the page.
        lines: at least one, with at least one number.
        x_name: of the axis; its values are whole numbers.
        y_name: of the axis, with the unit.
        y_range: None: by the values, those far above all others left out.
        is_wide: for a plot that stands alone.

    Raises:
        ValueError: there is nothing to draw.
    """
    known = [value for line in lines for value in line.y if math.isfinite(value)]
    if not known:
        raise ValueError("there is no number to draw")
    low, high = y_range or _range_of(known)
    xs = [value for line in lines for value in line.x]
    width, bottom = (_WIDE_WIDTH, _WIDE_HEIGHT) if is_wide else (_WIDTH, _HEIGHT)
    across = _Scale(min(xs), max(xs), _LEFT, width - _RIGHT)
    up = _Scale(low, high, bottom - _BOTTOM, _TOP)
    beyond = sum(value > high for value in known)
    described = f"{y_name} over {x_name}. " + "; ".join(map(_told, lines))
    described += f". {beyond} values above what is shown" if beyond else ""
    parts = [
        Markup('<text class="strong" x="0" y="12">{}</text>').format(y_name),
        _grid_up(up, width - _RIGHT),
        *(_tick(across, value, bottom - _BOTTOM) for value in _ticks(across.low, across.high, 5, are_whole=True)),
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (_LEFT + width - _RIGHT) / 2, bottom - 4, x_name
        ),
        *(_drawn(line, across, up) for line in lines),
        *(_legend(line, bottom + 4 + _LEGEND_LINE * index) for index, line in enumerate(lines)),
    ]
    return _svg(key, title, described, width, bottom + _LEGEND_LINE * len(lines) + 4, parts)


def box_plot(
    key: str,
    title: str,
    boxes: Sequence[Box],
    *,
    value_name: str,
    value_range: tuple[float, float] | None = None,
) -> Markup:
    """Horizontal boxes, one row a model, under a heading for each label: median, quartiles, whiskers (Tukey), cases.

    Args:
        key: letters and digits that no other plot of the page has.
        title: what is shown; for readers who hear the page.
        boxes: those of a label one after the other.
        value_name: of the axis, with the unit.
        value_range: the lowest and highest that the axis may hold, such as 0 and 1; it begins where the values do.

    Raises:
        ValueError: there is nothing to draw.
    """
    known = [value for box in boxes for value in box.values if math.isfinite(value)]
    if not known:
        raise ValueError("there is no number to draw")
    across = _Scale(*_box_range(known, value_range), _BOX_LEFT, _BOX_WIDTH - 16)
    y, rows, label = 4.0, [], None
    for box in boxes:
        if box.label != label:
            label = box.label
            y += _HEADER
            rows.append(
                Markup('<text class="strong" x="0" y="{}">{}{}</text>').format(y - 7, _hover(label), short(label))
            )
        rows.append(_box_row(box, across, y))
        y += _ROW
    axis = [_vertical(across, value, y) for value in _ticks(across.low, across.high, 6)]
    name = Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
        (_BOX_LEFT + _BOX_WIDTH) / 2, y + 34, value_name
    )
    starts = "" if across.low == 0 else f"; the axis begins at {_number(across.low)}"
    described = f"{value_name}, a box for each label and model{starts}. The numbers are in the table below."
    return _svg(key, title, described, _BOX_WIDTH, y + 40, [*axis, name, *rows])


def short(name: str, most: int = _LONGEST_NAME) -> str:
    """A name that fits: of a longer one the middle is left out, as names often differ at their ends."""
    if len(name) <= most:
        return name
    return f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"


@dataclass(frozen=True)
class _Scale:
    """From values to places."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.begin + share * (self.end - self.begin), 1)


def _svg(key: str, title: str, described: str, width: float, height: float, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg class="plot" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-labelledby="{k}-t {k}-d">'
        '<title id="{k}-t">{title}</title><desc id="{k}-d">{described}</desc>{content}</svg>'
    ).format(w=round(width), h=round(height), k=key, title=title, described=described, content=Markup("").join(parts))


def _range_of(values: Sequence[float]) -> tuple[float, float]:
    """A range that holds the values; of many, a few far above all others may lie beyond it."""
    low, high = min(values), max(values)
    if len(values) >= 40:
        typical = float(np.percentile(values, 98))
        top = typical + 0.5 * (typical - low)
        high = high if high <= top + (top - low) else top
    margin = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _box_range(values: Sequence[float], limits: tuple[float, float] | None) -> tuple[float, float]:
    """From a round number at or below the lowest value to one at or above the highest, within the limits."""
    low, high = min(values), max(values)
    step = _step((high - low) or abs(high) or 1.0, 5)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    if low == high:
        low, high = low - step, high + step
    if limits:
        low, high = max(low, limits[0]), min(max(high, low + step), limits[1])
    return round(low, 12), round(high, 12)


def _step(size: float, count: int) -> float:
    """A round number (1, 2 or 5 times a power of ten) that goes into a size about so many times."""
    power = 10 ** math.floor(math.log10(size / count))
    return float(min((factor * power for factor in (1, 2, 5, 10)), key=lambda step: abs(size / step - count)))


def _ticks(low: float, high: float, count: int, *, are_whole: bool = False) -> list[float]:
    if high <= low:
        return [low]
    step = _step(high - low, count)
    step = max(1.0, round(step)) if are_whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:.6g}"


def _grid_up(up: _Scale, right: float) -> Markup:
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text x="{}" y="{}" text-anchor="end">{}</text>')
    return Markup("").join(
        line.format(_LEFT, right, up(value), up(value), _LEFT - 5, up(value) + 4, _number(value))
        for value in _ticks(up.low, up.high, 5)
    )


def _tick(across: _Scale, value: float, bottom: float) -> Markup:
    return Markup(
        '<line class="axis" x1="{x}" x2="{x}" y1="{y}" y2="{end}"/>'
        '<text x="{x}" y="{text}" text-anchor="middle">{v}</text>'
    ).format(x=across(value), y=bottom, end=bottom + 4, text=bottom + 16, v=_number(value))


def _vertical(across: _Scale, value: float, bottom: float) -> Markup:
    return Markup(
        '<line class="grid" x1="{x}" x2="{x}" y1="8" y2="{y}"/><text x="{x}" y="{text}" text-anchor="middle">{v}</text>'
    ).format(x=across(value), y=bottom + 2, text=bottom + 16, v=_number(value))


def _told(line: Line) -> str:
    """A line in words: `training: from 0.9 to 0.2`."""
    known = [value for value in line.y if math.isfinite(value)]
    if not known:
        return f"{line.name}: no number"
    return f"{line.name}: from {known[0]:.3g} to {known[-1]:.3g}, lowest {min(known):.3g}, highest {max(known):.3g}"


def _drawn(line: Line, across: _Scale, up: _Scale) -> Markup:
    colour, dashes = style_of(line.style)
    last = len(line.x) - 1
    kept = sorted({*range(0, last + 1, -(-len(line.x) // _MOST_POINTS)), last})
    path: list[str] = []
    begins = True
    for index in kept:
        value = line.y[index]
        if not math.isfinite(value):
            begins = True
            continue
        value = min(max(value, up.low), up.high)
        path.append(f"{'M' if begins else 'L'}{across(line.x[index])} {up(value)}")
        begins = False
    if not path:
        return Markup("")
    shape = Markup('<path class="line {}{}" d="{}" stroke-dasharray="{}"/>')
    drawn = shape.format(colour, " thick" if line.is_thick else "", "".join(path), dashes or "none")
    if len(path) == 1:  # one epoch alone would not be seen
        x, y = path[0][1:].split(" ")
        drawn += Markup('<circle class="dot {}" cx="{}" cy="{}" r="3"/>').format(colour, x, y)
    return drawn


def _legend(line: Line, y: float) -> Markup:
    colour, dashes = style_of(line.style)
    return Markup(
        '<line class="line {}{}" x1="{}" x2="{}" y1="{}" y2="{}" stroke-dasharray="{}"/><text x="{}" y="{}">{}{}</text>'
    ).format(
        colour,
        " thick" if line.is_thick else "",
        _LEFT,
        _LEFT + 30,
        y + 6,
        y + 6,
        dashes or "none",
        _LEFT + 38,
        y + 10,
        _hover(line.name),
        short(line.name),
    )


def _hover(name: str) -> Markup:
    """The whole of a name that is cut."""
    return Markup("<title>{}</title>").format(name) if short(name) != name else Markup("")


def _box_row(box: Box, across: _Scale, y: float) -> Markup:
    colour, dashes = style_of(box.style)
    middle = y + _ROW / 2
    name = short(box.model, _LONGEST_MODEL)
    title = Markup("<title>{}</title>").format(box.model) if name != box.model else Markup("")
    text = Markup('<text x="10" y="{}">{}{}</text>').format(middle + 4, title, name)
    figures = box_figures(box.values)
    if not figures.count:
        return text + Markup('<text class="quiet" x="{}" y="{}">no number</text>').format(_BOX_LEFT + 4, middle + 4)
    low, high = across(figures.whisker_low), across(figures.whisker_high)
    left, right, median = across(figures.quartile_1), across(figures.quartile_3), across(figures.median)
    shape = Markup(
        '<path class="line {c}" d="M{low} {m}H{left}M{right} {m}H{high}"/>'
        '<rect class="box {c}" x="{left}" y="{top}" width="{w}" height="{h}" stroke-dasharray="{dash}"/>'
        '<path class="line thick {c}" d="M{median} {top}v{h}"/>'
    ).format(
        c=colour,
        low=low,
        high=high,
        left=left,
        right=right,
        median=median,
        m=middle,
        top=y + 3,
        w=round(max(right - left, 0.5), 1),
        h=_ROW - 6,
        dash=dashes or "none",
    )
    return text + shape + _dots(box, figures, across, middle, colour)


def _dots(box: Box, figures: BoxFigures, across: _Scale, middle: float, colour: str) -> Markup:
    """A dot for each case where there are few, otherwise for those beyond the whiskers; hovering names it."""
    names: Mapping[int, str] = dict(enumerate(box.names))
    known = [(value, names.get(index, "")) for index, value in enumerate(box.values) if math.isfinite(value)]
    if len(known) > _FEW_VALUES:
        known = [pair for pair in known if not figures.whisker_low <= pair[0] <= figures.whisker_high]
        known = sorted(known, key=lambda pair: -abs(pair[0] - figures.median))[:_MOST_OUTLIERS]
    dot = Markup('<circle class="dot {}" cx="{}" cy="{}" r="2"><title>{}</title></circle>')
    return Markup("").join(
        dot.format(colour, across(value), middle, f"{name}: {value:.3f}" if name else f"{value:.3f}")
        for value, name in known
    )
