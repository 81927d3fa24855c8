"""What every benchmark shares: its arguments, a table, a line for each bar, and with --json a document instead."""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from umamba_cli.pipeline.errors import UmambaError

_WIDEST = 40
"""Columns are padded to this at most; a longer text just runs on."""


@dataclass(frozen=True)
class Bar:
    """One figure and what it is held against."""

    name: str
    figure: float
    limit: float
    at_most: bool
    """True: the figure may not be above the limit; False: not below."""

    @property
    def ok(self) -> bool:
        return self.figure <= self.limit if self.at_most else self.figure >= self.limit

    def __str__(self) -> str:
        relation = "at most" if self.at_most else "at least"
        return f"{self.name}: {self.figure:.5g}, {relation} {self.limit:g}: {'ok' if self.ok else 'MISSED'}"


@dataclass(frozen=True)
class Table:
    """Rows that a benchmark prints below its first table, where there are any."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


class Parser(argparse.ArgumentParser):
    """Arguments of a benchmark: --json, the script's docstring as its help, and errors in two lines."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--json", action="store_true", help="print one JSON document in place of the table")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments, and exit with 2."""
        self.exit(2, f"error: {message}\nnext: see `{self.prog} --help`\n")


def positive(text: str) -> int:
    """A whole number above 0, as the type of an argument."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def run(main: Callable[[], None]) -> None:
    """Call a benchmark's `main`; an error that umamba explains ends it in two lines, with 2 if the input is wrong."""
    try:
        main()
    except UmambaError as error:
        print(f"error: {error}\nnext: {error.next_step}", file=sys.stderr)
        sys.exit(error.exit_code)


def in_short(error: Exception) -> str:
    """What an error says, on one line."""
    text = "; ".join(detail["msg"] for detail in error.errors()) if hasattr(error, "errors") else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())}"[:300]


def finish(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    bars: Sequence[Bar],
    *,
    as_json: bool,
    more: Table | None = None,
) -> NoReturn:
    """Print the results and exit: 0 where every bar is met, 1 where one is missed."""
    if as_json:
        content: dict[str, Any] = {
            "machine": f"{platform.processor() or platform.machine()}, {platform.platform()}",
            "rows": _records(columns, rows),
        }
        if more is not None:
            content[more.name] = _records(more.columns, more.rows)
        content["bars"] = [{**_finite(asdict(bar)), "ok": bar.ok} for bar in bars]
        print(json.dumps(content, indent=1, allow_nan=False))
    else:
        _print_table(columns, rows)
        if more is not None and more.rows:
            print(f"\n{more.name}")
            _print_table(more.columns, more.rows, to_the_left=True)
            print()
        for bar in bars:
            print(bar)
    sys.exit(0 if all(bar.ok for bar in bars) else 1)


def _records(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[dict[str, Any]]:
    return [_finite(dict(zip(columns, row, strict=True))) for row in rows]


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """The record with None for what is no number (NaN, infinite): JSON has no word for it."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, to_the_left: bool = False) -> None:
    cells = [[str(column) for column in columns], *([_cell(value) for value in row] for row in rows)]
    widths = [min(max(len(row[i]) for row in cells), _WIDEST) for i in range(len(columns))]
    for row in cells:
        pairs = zip(row, widths, strict=True)
        print("  ".join(text.ljust(width) if to_the_left else text.rjust(width) for text, width in pairs).rstrip())


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) >= 0.001 else f"{value:.1e}" if value else "0"
    return str(value)
