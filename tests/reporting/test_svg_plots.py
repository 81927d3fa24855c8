from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from umamba_cli.pipeline.reporting.svg_plots import Box, Line, box_figures, box_plot, line_plot, style_of

BAD = "<script>alert('x')</script> & \"quoted\""
NaN = math.nan


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def lines_of(svg: str, kind: str) -> list[ElementTree.Element]:
    return [each for each in parsed(svg).iter("path") if kind in each.get("class", "").split()]


def small_plot(*lines: Line, y_range: tuple[float, float] | None = (0.0, 1.0)) -> str:
    return line_plot("plot", "A title", lines, x_name="epoch", y_name="Dice", y_range=y_range)


def small_boxes(*boxes: Box, limits: tuple[float, float] | None = (0.0, 1.0)) -> str:
    return box_plot("boxes", "A title", boxes, value_name="Dice", value_range=limits)


def test_a_plot_is_named_and_described_for_those_who_hear_it() -> None:
    for svg in (small_plot(Line("one", [1, 2, 3], [0.5, 0.25, 0.75], 0)), small_boxes(Box("a", "m", 0, (0.5, 0.7)))):
        root = parsed(svg)
        assert root.get("role") == "img"
        title, described = list(root)[:2]
        assert root.get("aria-labelledby") == f"{title.get('id')} {described.get('id')}"
        assert title.text == "A title"
        assert described.text
    told = list(parsed(small_plot(Line("one", [1, 2, 3], [0.5, 0.25, 0.75], 0))))[1].text
    assert told == "Dice over epoch. one: from 0.5 to 0.75, lowest 0.25, highest 0.75"


def test_names_are_text_and_nothing_else() -> None:
    for svg in (
        line_plot("k", BAD, [Line(BAD, [1, 2], [0.1, 0.2], 0)], x_name=BAD, y_name=BAD),
        box_plot("k", BAD, [Box(BAD, BAD, 0, (0.1, 0.2), (BAD, BAD))], value_name=BAD),
    ):
        assert "<script" not in svg
        assert not list(parsed(svg).iter("script"))
        assert BAD in {each.text for each in parsed(svg).iter()}


def test_a_line_goes_through_its_values() -> None:
    (path,) = lines_of(small_plot(Line("one", [1, 2, 3], [0.0, 0.5, 1.0], 0)), "line")
    points = [tuple(map(float, point.split())) for point in path.get("d", "")[1:].split("L")]
    (x1, y1), (x2, y2), (x3, y3) = points
    assert (x2 - x1, y2 - y1) == pytest.approx((x3 - x2, y3 - y2))
    assert x3 > x1
    assert y3 < y1  # upwards


def test_a_value_that_is_no_number_leaves_a_gap() -> None:
    (path,) = lines_of(small_plot(Line("one", [1, 2, 3, 4], [0.1, NaN, 0.2, 0.3], 0)), "line")
    assert path.get("d", "").count("M") == 2
    assert path.get("d", "").count("L") == 1


def test_one_epoch_has_a_dot() -> None:
    svg = small_plot(Line("one", [1], [0.1], 0))
    assert len(list(parsed(svg).iter("circle"))) == 1


def test_a_long_line_is_thinned_and_keeps_its_end() -> None:
    svg = small_plot(Line("one", list(range(1, 5001)), [0.5] * 5000, 0))
    (path,) = lines_of(svg, "line")
    points = path.get("d", "")[1:].split("L")
    assert len(points) <= 162
    assert float(points[-1].split()[0]) == pytest.approx(312)


def test_a_few_values_far_above_do_not_flatten_the_others() -> None:
    values = [1.0 - 0.01 * index for index in range(60)]
    values[1] = 1e6
    svg = small_plot(Line("one", list(range(1, 61)), values, 0), y_range=None)
    (path,) = lines_of(svg, "line")
    ys = [float(point.split()[1]) for point in path.get("d", "")[1:].split("L")]
    assert max(ys) - min(ys[2:]) > 80
    assert min(ys) >= 24
    assert "1 values above what is shown" in svg


def test_figures_of_a_box_by_hand() -> None:
    # Quartiles of 1..9 are 3 and 7: whiskers reach to -3 and 13 at most; 30 lies beyond.
    found = box_figures([*range(1, 10), NaN])
    assert (found.count, found.quartile_1, found.median, found.quartile_3) == (9, 3, 5, 7)
    assert (found.lowest, found.whisker_low, found.whisker_high, found.highest) == (1, 1, 9, 9)
    with_outlier = box_figures([1, 2, 3, 4, 5, 6, 7, 8, 30])
    assert (with_outlier.whisker_high, with_outlier.highest) == (8, 30)
    assert with_outlier.mean == pytest.approx(66 / 9)
    assert with_outlier.sd == pytest.approx(np.std([1, 2, 3, 4, 5, 6, 7, 8, 30], ddof=1))
    single = box_figures([0.5])
    assert single.median == single.whisker_low == 0.5
    assert math.isnan(single.sd)
    assert box_figures([NaN]).count == 0
    assert math.isnan(box_figures([]).median)


def test_a_box_lies_where_its_values_do() -> None:
    svg = small_boxes(Box("a", "m", 0, (0.0, 0.25, 0.5, 0.75, 1.0)))
    (rectangle,) = parsed(svg).iter("rect")
    left, width = float(rectangle.get("x", "")), float(rectangle.get("width", ""))
    dots = sorted(float(dot.get("cx", "")) for dot in parsed(svg).iter("circle"))
    assert left == pytest.approx(dots[1], abs=0.2)
    assert left + width == pytest.approx(dots[3], abs=0.2)
    assert dots[-1] == 624


def test_every_case_has_its_dot_and_name_and_of_many_only_outliers() -> None:
    few = small_boxes(Box("a", "m", 0, (0.25, 0.5), ("first", "second")))
    assert [dot.text for circle in parsed(few).iter("circle") for dot in circle] == ["first: 0.250", "second: 0.500"]
    many = [0.5 + 0.001 * index for index in range(100)]
    svg = small_boxes(Box("a", "m", 0, (0.01, *many), tuple(map(str, range(101)))))
    assert [dot.text for circle in parsed(svg).iter("circle") for dot in circle] == ["0: 0.010"]


def test_a_model_without_a_number_is_named() -> None:
    svg = small_boxes(Box("a", "m", 0, (0.5, 0.6)), Box("a", "other", 1, (NaN,)))
    texts = [each.text for each in parsed(svg).iter("text")]
    assert "other" in texts
    assert "no number" in texts


def test_a_label_stands_once_above_its_models() -> None:
    boxes = [Box(label, model, 0, (0.5, 0.6)) for label in ("a", "b") for model in ("m", "n")]
    texts = [each.text for each in parsed(small_boxes(*boxes)).iter("text")]
    assert [text for text in texts if text in {"a", "b", "m", "n"}] == ["a", "m", "n", "b", "m", "n"]


def test_an_axis_that_does_not_begin_at_0_says_so() -> None:
    assert "the axis begins at 0.8" in small_boxes(Box("a", "m", 0, (0.81, 0.99)))
    assert "begins" not in small_boxes(Box("a", "m", 0, (0.0, 0.99)))


def test_values_all_the_same_and_huge_ones_can_be_drawn() -> None:
    for values in ((1.0, 1.0), (0.0, 0.0), (1e9, 2e9), (-1e-9, 1e-9)):
        parsed(small_boxes(Box("a", "m", 0, values), limits=None))
        parsed(small_plot(Line("one", [1, 2], list(values), 0), y_range=None))


def test_series_differ_without_colour() -> None:
    assert len({style_of(index) for index in range(35)}) == 35
    dashes = [style_of(index)[1] for index in range(5)]
    assert len(set(dashes)) == 5


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(ValueError, match="no number"):
        small_plot(Line("one", [1], [NaN], 0))
    with pytest.raises(ValueError, match="no number"):
        small_boxes(Box("a", "m", 0, ()))
