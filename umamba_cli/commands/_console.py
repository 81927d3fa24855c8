"""The only place that prints: tables, progress bars, errors, and the one JSON document of --json."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

    from umamba_cli.pipeline.errors import UmambaError
    from umamba_cli.pipeline.evaluation.evaluate import Evaluation
    from umamba_cli.pipeline.progress import OnProgress, Progress


@dataclass
class Console:
    """What one command shows, and how.

    Results go to standard output, progress and errors to standard error. Without a terminal there are neither bars nor
    control characters, but a line a step.
    """

    json_output: bool = False
    quiet: bool = False
    verbose: bool = False
    _log: Path | None = None

    def __post_init__(self) -> None:
        global _current  # noqa: PLW0603 - a process runs one command; `cli.py` asks for its console when it fails
        _current = self

    def log_to(self, folder: Path, command: str) -> None:
        """From now on append what is shown, with times, to a command's log file in a workspace."""
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / f"{command}.log"
        self._note(f"umamba {' '.join(sys.argv[1:])}")

    def result(self, content: object) -> None:
        """Print the command's one JSON document, with --json; otherwise nothing."""
        if self.json_output:
            from umamba_cli.pipeline.data.files import json_text

            sys.stdout.write(json_text(content))

    def say(self, text: str) -> None:
        """Print a line of the result; not with --json or --quiet."""
        self._note(text)
        if not self.json_output and not self.quiet:
            self._out.print(text, highlight=False, markup=False, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; numbers stand on the right. Not with --json or --quiet."""
        for row in (columns, *rows):
            self._note("\t".join(row))
        if self.json_output or self.quiet:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(columns):
            cells = [row[index] for row in rows]
            numeric = bool(cells) and all(_is_number(cell) for cell in cells)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._out.print(table)

    def warn(self, text: str) -> None:
        """Print a line to standard error, even with --quiet."""
        self._note(f"warning: {text}")
        sys.stderr.write(f"warning: {text}\n")

    @contextmanager
    def progress(self) -> Iterator[OnProgress]:
        """A function that takes progress reports, to hand to the library."""
        if self.quiet or not sys.stderr.isatty():
            yield self._show_step
        else:
            with _Bars() as bars:

                def show(progress: Progress) -> None:
                    bars.show(progress)
                    self._note_step(progress)

                yield show

    def interrupted(self) -> None:
        """Say that the user, or the system, stopped the command."""
        text = "interrupted; run the same command again to go on"
        sys.stderr.write(text + "\n")
        self._note(text)
        self.result({"error": "interrupted"})

    def error(self, error: UmambaError, cause: BaseException) -> None:
        """Print what is wrong and what to do next; the traceback goes to the log, and with --verbose is shown too."""
        trace = "".join(traceback.format_exception(cause))
        if error is not cause:  # what umamba explains needs no traceback
            self._note(trace)
        if self.verbose:
            sys.stderr.write(trace)
        lines = [f"error: {error.problem}", *(f"  {line}" for line in error.details)]
        if error.next_step:
            lines.append(f"next: {error.next_step}")
        sys.stderr.write("\n".join(lines) + "\n")
        self._note("\n".join(lines))
        with suppress(OSError):  # standard output may be what failed
            self.result({"error": error.problem, "details": error.details, "next": error.next_step})

    def _show_step(self, progress: Progress) -> None:
        line = self._note_step(progress)
        if line and not self.quiet:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def _note_step(self, progress: Progress) -> str:
        if not progress.step:
            return ""
        figures = f", {figures_text(progress.figures)}" if progress.figures else ""
        line = f"{progress.task} {progress.done}/{progress.total}: {progress.step}{figures}"
        self._note(line)
        return line

    def _note(self, text: str) -> None:
        if self._log is None:
            return
        stamp = datetime.now().astimezone().isoformat(timespec="seconds")
        try:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(f"{stamp} {text}\n")
        except OSError:  # a full disk must not end the work; what does the work says so itself
            self._log = None

    @property
    def _out(self) -> RichConsole:
        from rich.console import Console as RichConsole

        # Without a terminal rich would fold tables at 80 columns; a log file has no width.
        return RichConsole(width=None if sys.stdout.isatty() else 160, highlight=False)


_current: Console | None = None


def current_console() -> Console:
    """The console of the command that runs, or a plain one where none has begun."""
    return _current or Console()


class _Bars:
    """One bar for each task, on standard error."""

    def __init__(self) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._rich = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=RichConsole(stderr=True),
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bars:
        self._rich.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._rich.stop()

    def show(self, progress: Progress) -> None:
        """Move the bar of the report's task."""
        count = f"{progress.done}/{progress.total}"
        if progress.task not in self._tasks:
            self._tasks[progress.task] = self._rich.add_task(
                progress.task, total=progress.total, completed=progress.done, count=count, figures=""
            )
        update: dict[str, Any] = {"completed": progress.done + progress.within, "count": count}
        if progress.figures:
            update["figures"] = figures_text(progress.figures)
        self._rich.update(self._tasks[progress.task], **update)


def show_label_means(console: Console, evaluation: Evaluation) -> None:
    """Print a table with a row for each label: Dice and IoU, and over how many cases."""
    rows = [(mean.name, number(mean.dice), number(mean.iou), str(mean.cases)) for mean in evaluation.label_means]
    console.table(("label", "Dice", "IoU", "cases"), rows)


def figures_text(figures: Mapping[str, str]) -> str:
    """{"loss": "0.1", "Dice": "0.8"} as `loss 0.1  Dice 0.8`."""
    return "  ".join(f"{name} {value}" for name, value in figures.items())


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a hyphen where there is none."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"  # noqa: PLR0124 - NaN


def mebibytes(size: int) -> str:
    """Bytes in MiB, as `1,234`; small ones as `0.4`."""
    size_mib = size / 1024**2
    return f"{size_mib:,.0f}" if size_mib >= 10 else f"{size_mib:.1f}"


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).replace(",", "").lstrip("-").isdigit()


def elapsed(since: float) -> str:
    """Time since `time.monotonic()` gave `since`, as `1 min 20 s`."""
    minutes, seconds = divmod(round(time.monotonic() - since), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
