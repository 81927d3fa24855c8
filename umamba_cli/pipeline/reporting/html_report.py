"""One HTML page about a workspace, complete in itself: no other file and no network is needed to read it.

What is on the page is told by `ReportContent`, which holds texts and numbers already made into texts; the template
`report.html.j2` escapes all of them, `report.css` and `report.js` are put into the page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from umamba_cli.pipeline.reporting.slices import CaseSlices
from umamba_cli.pipeline.reporting.svg_plots import COLOURS, DASHES

MOST_BYTES = 10_000_000
"""Of a page, so that it can be mailed; pictures are what is left out to keep to it."""

_NOT_ALLOWED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Characters that a page in UTF-8 must not hold; names of files may."""

_OF_NUMBERS = frozenset("0123456789+-.,/:()% ")
_MOST_LABELS_TO_CHOOSE = 16


@dataclass(frozen=True)
class Table:
    """A table; the first column names its rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    """What the numbers are of."""


@dataclass(frozen=True)
class Figure:
    """A plot, and its numbers as a table."""

    title: str
    pictures: tuple[Markup, ...]
    """Inline SVG."""

    caption: str = ""
    table: Table | None = None


@dataclass(frozen=True)
class TrainingView:
    """One training."""

    title: str
    state: str
    facts: tuple[tuple[str, str], ...]
    figure: Figure | None
    """None where it has no log yet."""

    note: str = ""


@dataclass(frozen=True)
class CaseView:
    """One case with its slices."""

    title: str
    text: str
    slices: CaseSlices | None
    """None where the case cannot be shown; `text` says why."""

    styles: tuple[int, ...] = ()
    """Of every source: -1 is the reference, others as `svg_plots.style_of`."""

    table: Table | None = None


@dataclass(frozen=True)
class ComparisonTables:
    """What comparing the models gave."""

    verdicts: tuple[str, ...]
    """Sentences."""

    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class ReportContent:
    """All that is on the page."""

    title: str
    made: str
    """Date and time, with the time zone."""

    version: str
    summary: tuple[str, ...]
    """Sentences that say the most important."""

    notes: tuple[str, ...] = ()
    """What is missing or could not be read."""

    dataset_facts: tuple[tuple[str, str], ...] = ()
    dataset_tables: tuple[Table, ...] = ()
    plans_facts: tuple[tuple[str, str], ...] = ()
    plans_tables: tuple[Table, ...] = ()
    trainings_table: Table | None = None
    trainings_figure: Figure | None = None
    trainings: tuple[TrainingView, ...] = ()
    result_tables: tuple[Table, ...] = ()
    result_notes: tuple[str, ...] = ()
    result_figures: tuple[Figure, ...] = ()
    worst: Table | None = None
    comparison: ComparisonTables | None = None
    cases: tuple[CaseView, ...] = field(default=())


def render_report(content: ReportContent) -> str:
    """The page as text. Characters that a page must not hold are replaced by U+FFFD."""
    shown = [case for case in content.cases if case.slices]
    text = (
        _environment()
        .get_template("report.html.j2")
        .render(
            content=content,
            dashes=DASHES,
            colours=COLOURS,
            most_labels=_MOST_LABELS_TO_CHOOSE,
            sources=max((len(case.slices.sources) for case in shown if case.slices), default=0),
            labels=max((len(case.slices.labels) for case in shown if case.slices), default=0),
            most_megabytes=MOST_BYTES // 1_000_000,
        )
    )
    return _NOT_ALLOWED.sub("\N{REPLACEMENT CHARACTER}", text)


def is_numeric(text: str) -> bool:
    """Whether a cell holds a number, perhaps with a range or a count beside it, or the hyphen of a missing one."""
    return text == "-" or (_OF_NUMBERS.issuperset(text) and any(map(str.isdigit, text)))


def numeric_columns(table: Table) -> list[bool]:
    """For each column of a table whether all of its cells are numbers, which stand on the right; not the first one."""
    columns: Sequence[tuple[str, ...]] = list(zip(*table.rows, strict=True)) if table.rows else []
    found = [index > 0 and all(map(is_numeric, cells)) for index, cells in enumerate(columns)]
    return found or [False] * len(table.columns)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["numeric_columns"] = numeric_columns
    return environment


def _source(name: str) -> str:
    return resources.files("umamba_cli.pipeline.reporting").joinpath(name).read_text(encoding="utf-8")
