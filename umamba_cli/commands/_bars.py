"""Progress bars on a terminal: one a task, its figures beside it, or below it where the terminal is too narrow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from umamba_cli.commands._console import clock_time
from umamba_cli.pipeline.progress import Progress

_NARROWEST_BAR, _WIDEST_BAR = 5, 40
_MOST_FIGURE_LINES = 3
_GAP = 2


@dataclass
class Pace:
    """How fast steps are done, by the later half of the time since the bar began; early steps are often the slowest.

    A bar may begin in the middle: what was done before counts for nothing.
    """

    began: float
    """Seconds of any clock."""

    first: float
    """Steps that were done by then."""

    _last: tuple[float, float] = field(init=False)
    _since: tuple[float, float] = field(init=False)
    _next_since: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        self._last = self._since = self._next_since = (self.began, self.first)

    def note(self, now: float, done: float) -> None:
        """Tell that so many steps are done by now."""
        self._last = now, done
        if now - self.began >= 2 * (self._next_since[0] - self.began):
            self._since, self._next_since = self._next_since, self._last

    def seconds_left(self, now: float, total: float) -> float | None:
        """Until all steps are done; None where nothing tells."""
        seconds, steps = self._last[0] - self._since[0], self._last[1] - self._since[1]
        if self._last[1] >= total:
            return 0.0
        if steps <= 0 or seconds <= 0:
            return None
        return max(0.0, (total - self._last[1]) * seconds / steps - (now - self._last[0]))


@dataclass
class _Bar:
    name: str
    total: int
    pace: Pace
    done: int = 0
    within: float = 0.0
    figures: Mapping[str, str] = field(default_factory=dict)
    ended: float | None = None


class Bars:
    """One bar for each task, on standard error."""

    def __init__(self, console: RichConsole | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or RichConsole(stderr=True)
        self._clock = clock
        self._bars: dict[str, _Bar] = {}
        self._live = Live(console=self._console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> Bars:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, progress: Progress) -> None:
        """Move the bar of the report's task; one that goes back, or has another number of steps, begins anew."""
        now, done = self._clock(), progress.done + progress.within
        bar = self._bars.get(progress.task)
        if bar is None or bar.total != progress.total or done < bar.done + bar.within:
            bar = _Bar(progress.task, progress.total, Pace(now, done), figures=bar.figures if bar else {})
            self._bars[progress.task] = bar
        bar.pace.note(now, done)
        bar.done, bar.within = progress.done, progress.within
        bar.figures = progress.figures or bar.figures
        bar.ended = (bar.ended or now) if bar.done >= bar.total else None

    def _render(self) -> RenderableType:
        bars = list(self._bars.values())
        names = max((cell_len(bar.name) for bar in bars), default=0)
        counts = max((len(_count(bar)) for bar in bars), default=0)
        return Group(*(line for bar in bars for line in self._lines(bar, names, counts)))

    def _lines(self, bar: _Bar, names: int, counts: int) -> Iterator[RenderableType]:
        now, width = self._clock(), self._console.width
        left = bar.pace.seconds_left(now, bar.total)
        times = f"{clock_time((bar.ended or now) - bar.pace.began)} left {clock_time(left)}"
        head, tail = bar.name.ljust(names), f"{_count(bar).rjust(counts)} {times}"
        bar_width = min(_WIDEST_BAR, width - cell_len(head) - len(tail) - 2)
        room = width - cell_len(head) - len(tail) - 2 - bar_width - _GAP
        figures = figure_lines(bar.figures, width)
        if len(figures) == 1 and cell_len(figures[0]) <= room:
            tail, figures = f"{tail}{' ' * _GAP}{figures[0]}", []
        if bar_width < _NARROWEST_BAR:
            yield Text(f"{head} {tail}", no_wrap=True, overflow="crop")
        else:
            done = ProgressBar(total=max(bar.total, 1), completed=bar.done + bar.within, width=bar_width)
            table = Table.grid(padding=(0, 1, 0, 0))
            table.add_row(Text(head), done, Text(tail))
            yield table
        for line in figures:
            yield Text(line, no_wrap=True, overflow="ellipsis")


def figure_lines(figures: Mapping[str, str], width: int) -> list[str]:
    """{"loss": "0.1", "Dice": "0.8"} as `loss 0.1  Dice 0.8`, over as few lines of at most `width` cells as it takes.

    No figure is broken; one that is longer than a line is cut and ends in `…`. What does not fit on the most lines that
    there may be is left out.
    """
    lines: list[str] = []
    texts = [_figure(name, value) for name, value in figures.items()]
    for text in sorted(texts, key=lambda text: cell_len(text) > width / 2):  # long ones last, on lines of their own
        if lines and cell_len(lines[-1]) + _GAP + cell_len(text) <= width:
            lines[-1] += " " * _GAP + text
        elif len(lines) < _MOST_FIGURE_LINES:
            lines.append(_cut(text, width))
    return lines


def _figure(name: str, value: str) -> str:
    return " ".join(f"{name} {value}".split())


def _cut(text: str, width: int) -> str:
    cut = Text(text)
    cut.truncate(max(width, 1), overflow="ellipsis")
    return cut.plain


def _count(bar: _Bar) -> str:
    return f"{bar.done}/{bar.total}"
