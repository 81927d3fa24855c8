from __future__ import annotations

import re
from dataclasses import replace
from importlib import resources
from itertools import pairwise

import numpy as np
import pytest
from html_pages import Page, read_page

from umamba_cli.pipeline.reporting.html_report import (
    CaseView,
    ComparisonTables,
    Figure,
    ReportContent,
    Table,
    TrainingView,
    numeric_columns,
    render_report,
)
from umamba_cli.pipeline.reporting.slices import REFERENCE, ShownCase, cut_case
from umamba_cli.pipeline.reporting.svg_plots import Box, Line, box_plot, line_plot

BAD = '</script><script>alert("x")</script>\'<img src=x onerror=alert(1)> & \u202e'
AA_TEXT, AA_GRAPHICS = 4.5, 3.0


def table(title: str = "A table") -> Table:
    return Table(title, ("case", "Dice", "state"), (("a 1", "0.5", "good"), ("b", "-", "bad")), "of cases")


def case_view(name: str = "case_1", *, depth: int = 5) -> CaseView:
    labels = np.zeros((depth, 12, 10), dtype=np.int32)
    labels[:, 3:9, 3:8] = 1
    labels[depth // 2, 9, 3] = 2
    other = np.roll(labels, 1, axis=1)
    maps = {REFERENCE: labels, name: other, "unet": labels}
    shown = ShownCase(np.random.default_rng(0).random(labels.shape), maps, (2.0, 1.0, 1.0), {1: name, 2: "back"})
    return CaseView(f"Worst case: {name}", "Told.", cut_case(shown, most_bytes=10**6), (-1, 0, 1), table(name))


def content(name: str = "Hippocampus") -> ReportContent:
    line = line_plot("run0", name, [Line(name, [1, 2], [0.1, 0.2], 0)], x_name="epoch", y_name="loss")
    boxes = box_plot("box0", name, [Box(name, name, 0, (0.1, 0.2), (name, name))], value_name="Dice")
    return ReportContent(
        title=f"Report on {name}",
        made="2026-01-02 03:04+00:00",
        version="9.8.7",
        summary=(f"Short: {name}.",),
        notes=(f"Missing: {name}.",),
        dataset_facts=((name, name),),
        dataset_tables=(table(name),),
        plans_facts=(("plans", name),),
        plans_tables=(table(),),
        trainings_table=table(),
        trainings_figure=Figure(
            name, (line_plot("all", name, [Line(name, [1], [1.0], 0)], x_name="x", y_name="y"),), name
        ),
        trainings=(
            TrainingView(name, "finished", ((name, name),), Figure(name, (line, line_of(name)), name, table()), name),
        ),
        result_tables=(table(),),
        result_notes=(name,),
        result_figures=(Figure(name, (boxes,), name, table(name)),),
        worst=table(name),
        comparison=ComparisonTables((f"No difference shown: {name}.",), (table(name),)),
        cases=(case_view(name), replace(case_view(name, depth=1), title="Flat"), replace(case_view(), slices=None)),
    )


def line_of(name: str) -> str:
    return line_plot("run1", name, [Line(name, [1, 2], [0.3, 0.2], 3)], x_name="epoch", y_name="rate")


def page(name: str = "Hippocampus") -> Page:
    return read_page(render_report(content(name)))


def test_a_page_is_whole_and_refers_to_what_it_holds() -> None:
    shown = page()
    ids = [each.attributes["id"] for each in shown.elements if "id" in each.attributes]
    assert len(ids) == len(set(ids))
    for element in shown.elements:
        for name in ("aria-labelledby", "for"):
            assert set(element.attributes.get(name, "").split()) <= set(ids)
        link = element.attributes.get("href", "")
        if element.tag in ("a", "use"):
            assert link[0] == "#"
            assert link[1:] in ids


def test_nothing_is_fetched() -> None:
    text = render_report(content())
    assert not re.search(r"(https?:)?//(?![*\s])[a-z0-9.-]+\.[a-z]", text.replace("data:image", ""))
    shown = read_page(text)
    assert not shown.of("link")
    assert not shown.of("img")
    for element in shown.elements:
        assert "src" not in element.attributes
        if element.tag == "image":
            assert element.attributes["href"].startswith("data:image/")
    (policy,) = shown.of("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy.attributes["content"].startswith("default-src 'none';")


def test_names_are_text_wherever_they_stand() -> None:
    good, bad = page("x" * len(BAD)), page(BAD)  # names that are long have a title
    assert [element.tag for element in bad.elements] == [element.tag for element in good.elements]
    for one, other in zip(good.elements, bad.elements, strict=True):
        assert one.attributes.keys() == other.attributes.keys(), "a name became an attribute"
    assert len(bad.of("script")) == 1
    assert BAD not in bad.of("script")[0].text
    assert bad.of("h1")[0].text == f"Report on {BAD}"
    assert any(element.text == f"{BAD}: {BAD}" for element in bad.of("title"))
    assert any(element.text.startswith(f"Short: {BAD}") for element in bad.of("li"))


def test_characters_that_a_page_must_not_hold_are_replaced() -> None:
    text = render_report(content("a\x00b\x1b[31m\udc80\x85c\td\ne"))
    assert "a\ufffdb\ufffd[31m\ufffd\ufffdc\td" in text
    text.encode()


def test_headings_are_in_order_and_landmarks_are_there() -> None:
    shown = page()
    levels = [int(element.tag[1]) for element in shown.elements if re.fullmatch("h[1-6]", element.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for tag in ("header", "nav", "main", "footer"):
        assert len(shown.of(tag)) == 1
    first = next(element for element in shown.elements if element.tag in ("a", "button", "input", "summary"))
    assert first.attributes == {"class": "skip", "href": "#main"}
    assert shown.of("html")[0].attributes["lang"] == "en"


def test_tables_have_captions_and_their_heads_a_scope() -> None:
    shown = page()
    assert len(shown.of("table")) == len(shown.of("caption")) > 5
    assert all(head.attributes["scope"] in ("col", "row") for head in shown.of("th"))
    first = shown.of("caption")[0].text
    assert first == "Hippocampus. of cases"
    assert numeric_columns(table()) == [False, True, False]
    assert numeric_columns(Table("t", ("a", "b"), ())) == [False, False]
    assert numeric_columns(Table("t", ("case", "x", "y"), (("001", "0.5 (0.4 - 0.6)", "2.5 mm"),))) == [
        False,
        True,
        False,
    ]


def test_what_scrolls_can_be_reached_by_keyboard_and_has_a_name() -> None:
    shown = page()
    for kind in ("scroll", "wide"):
        regions = shown.of("div", class_=kind)
        assert regions
        for region in regions:
            assert region.attributes["tabindex"] == "0"
            assert region.attributes["role"] == "region"
            assert region.attributes["aria-label"]


def test_every_picture_has_words() -> None:
    shown = page()
    pictures = [element for element in shown.of("svg") if element.attributes.get("role") == "img"]
    titles = {element.attributes.get("id"): element.text for element in shown.of("title")}
    assert pictures
    for picture in pictures:
        assert titles[picture.attributes["aria-labelledby"].split()[0]]
    others = [element for element in shown.of("svg") if element.attributes.get("role") != "img"]
    assert all(element.attributes["aria-hidden"] == "true" for element in others)
    heard = [text for text in titles.values() if "contours of reference, Hippocampus, unet" in text]
    assert heard[2].startswith("Worst case: Hippocampus, slice 3 of 5: ")


def test_without_javascript_the_chosen_slice_is_seen() -> None:
    shown = page()
    slices = shown.of("div", class_="slice")
    assert [("hidden" in each.attributes) for each in slices] == [True, True, False, True, True, False]
    ranges = shown.of("input", type="range")
    assert [each.attributes["value"] for each in ranges] == ["2"]  # a picture needs none
    assert ranges[0].attributes["max"] == "4"
    told = [each.text for each in shown.of("p", class_="which")]
    assert (
        told[0]
        == slices[2].attributes["data-text"]
        == "slice 3 of 5: 11 voxels differ from the reference, added up over the models"
    )
    assert told[1].startswith("the picture: ")
    (label,) = [each for each in shown.of("label") if each.attributes.get("for") == "case1-range"]
    assert "Slice" in label.text


def test_contours_can_be_left_out_and_differ_without_colour() -> None:
    text = render_report(content())
    shown = read_page(text)
    boxes = [each for each in shown.of("input", type="checkbox") if "checked" in each.attributes]
    assert [each.attributes["class"] for each in boxes[:5]] == ["t0", "t1", "t2", "u0", "u1"]
    for rule in (".t2:not(:checked)) .s2", ".u1:not(:checked)) .l1"):
        assert rule in text
    groups = [each for each in shown.of("g") if "s0" in each.attributes.get("class", "").split()]
    assert all("stroke-dasharray" not in group.attributes for group in groups)
    dashes = {
        each.attributes["class"]: each.attributes.get("stroke-dasharray")
        for each in shown.of("g")
        if "s2" in each.attributes.get("class", "")
    }
    assert set(dashes.values()) == {"7 3"}
    labels = [each.text.strip() for each in shown.of("label")]
    assert labels[:3] == ["reference", "Hippocampus", "unet"]


def test_what_is_not_there_is_said() -> None:
    empty = ReportContent("Report on nothing", "today", "1", ("0 trainings.",))
    shown = read_page(render_report(empty))
    text = " ".join(element.text for element in shown.of("p"))
    for what in (
        "No training was started yet.",
        "There are no plans to show.",
        "No training is finished",
        "no result yet",
    ):
        assert what in text
    assert not shown.of("section", id="comparison")
    assert "What is missing" not in text


def test_the_verdict_comes_first() -> None:
    shown = page()
    assert next(
        each.text
        for each in shown.of(
            "li",
        )
        if "ul" in each.parents and "main" in each.parents
    ).startswith("No difference shown")


def themes() -> dict[str, dict[str, str]]:
    """The colours of the style sheet for light, dark and print."""
    css = resources.files("umamba_cli.pipeline.reporting").joinpath("report.css").read_text()
    blocks = re.findall(r":root \{([^}]*)\}", css)
    assert len(blocks) == 3
    found = [dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", block)) for block in blocks]
    light, dark, printed = found
    return {"light": light, "dark": {**light, **dark}, "print": {**light, **printed}}


def luminance(colour: str) -> float:
    """Source: WCAG 2.1, relative luminance."""
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_as_wcag_counts_it() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_text_and_lines_can_be_told_from_the_paper(theme: str) -> None:
    colours = themes()[theme]
    for name in ("ink", "quiet", "link"):
        assert contrast(colours[name], colours["paper"]) >= AA_TEXT, name
    for name in ("focus", "rule", *(f"c{index}" for index in range(7))):
        assert contrast(colours[name], colours["paper"]) >= AA_GRAPHICS, name


def test_contours_can_be_told_from_their_dark_rim() -> None:
    css = resources.files("umamba_cli.pipeline.reporting").joinpath("report.css").read_text()
    colours = re.findall(r"\.o\d \{ color: (#[0-9a-f]{6})", css)
    assert len(colours) == 7
    assert all(contrast(colour, "#000000") >= AA_GRAPHICS for colour in colours)
