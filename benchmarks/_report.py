"""What every benchmark prints: a table, a line for each bar, and with --json a document instead."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NoReturn


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
        return f"{self.name}: {self.figure:.3g}, {relation} {self.limit:g}: {'ok' if self.ok else 'MISSED'}"


def finish(columns: Sequence[str], rows: Sequence[Sequence[object]], bars: Sequence[Bar], *, as_json: bool) -> NoReturn:
    """Print the results and exit: 0 where every bar is met, 1 where one is missed."""
    if as_json:
        content = {
            "machine": f"{platform.processor() or platform.machine()}, {platform.platform()}",
            "rows": [dict(zip(columns, row, strict=True)) for row in rows],
            "bars": [{**asdict(bar), "ok": bar.ok} for bar in bars],
        }
        print(json.dumps(content, indent=1))
    else:
        cells = [[str(column) for column in columns], *([_cell(value) for value in row] for row in rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
        for row in cells:
            print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))
        for bar in bars:
            print(bar)
    sys.exit(0 if all(bar.ok for bar in bars) else 1)


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
