"""The only place that prints: tables, progress bars, errors, and the one JSON document of --json."""

from __future__ import annotations

import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.table import Table

    from umamba_cli.pipeline.errors import UmambaError
    from umamba_cli.pipeline.evaluation.results import Evaluation
    from umamba_cli.pipeline.progress import OnProgress, Progress
    from umamba_cli.pipeline.workflows.cross_validation import CrossValidation


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal acts on; a file's name may hold them. Not tab and newline."""

_LONGEST_WORD = 10  # in a table's cell: a longer one is broken where the terminal is narrow


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
    _so_far: Mapping[str, object] = field(default_factory=dict)

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

    def result_before_error(self, content: Mapping[str, object]) -> None:
        """Have the document of the error that is about to be raised say this too: what was done all the same."""
        self._so_far = content

    def say(self, text: str) -> None:
        """Print a line of the result; not with --json or --quiet."""
        self._note(text)
        if not self.json_output and not self.quiet:
            self._out.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; numbers stand on the right. Not with --json or --quiet."""
        for row in (columns, *rows):
            self._note("\t".join(row))
        if self.json_output or self.quiet:
            return
        self._out.print(_rich_table(columns, rows))

    def warn(self, text: str) -> None:
        """Print a line to standard error, even with --quiet."""
        self._note(f"warning: {text}")
        _to_stderr(f"warning: {text}")

    def note(self, text: str) -> None:
        """Print a line to standard error; not with --quiet."""
        self._note(text)
        if not self.quiet:
            _to_stderr(text)

    @contextmanager
    def progress(self) -> Iterator[OnProgress]:
        """A function that takes progress reports, to hand to the library."""
        if self.quiet or not sys.stderr.isatty():
            yield self._show_step
            return
        from umamba_cli.commands._bars import Bars

        with Bars() as bars:

            def show(progress: Progress) -> None:
                bars.show(_printable_progress(progress))
                self._note_step(progress)
                self._tell(progress)  # appears above the bars

            yield show

    def watch(self, columns: Sequence[str], look: Callable[[], Sequence[Sequence[str]]], *, every_s: float) -> None:
        """Show a table anew every few seconds until Ctrl-C, which is how it is meant to end.

        Raises:
            InputError: nobody could see it.
        """
        if self.json_output or self.quiet or not sys.stdout.isatty():
            from umamba_cli.pipeline.errors import InputError

            raise InputError(
                "--watch needs a terminal, and neither --json nor --quiet",
                next_step="leave it out to see once how things are",
            )
        from rich.live import Live

        with suppress(KeyboardInterrupt), Live(console=self._out, auto_refresh=False) as live:
            while True:
                live.update(_rich_table(columns, look()), refresh=True)
                time.sleep(every_s)

    def interrupted(self, text: str) -> None:
        """Say that the user, or the system, stopped the command."""
        self._note(text)
        with suppress(OSError):
            self.result({"error": "interrupted"})
        _to_stderr(text)

    def error(self, error: UmambaError, cause: BaseException) -> None:
        """Print what is wrong and what to do next; the traceback goes to the log, and with --verbose is shown too."""
        trace = "".join(traceback.format_exception(cause))
        if error is not cause:  # what umamba explains needs no traceback
            self._note(trace)
        lines = [f"error: {error.problem}", *(f"  {line}" for line in error.details)]
        if error.next_step:
            lines.append(f"next: {error.next_step}")
        self._note("\n".join(lines))
        with suppress(OSError):  # standard output may be what failed
            what = {"error": error.problem, "details": error.details, "next": error.next_step}
            self.result({**self._so_far, **what})
        if self.verbose:
            _to_stderr(trace.rstrip("\n"))
        _to_stderr("\n".join(lines))

    def _show_step(self, progress: Progress) -> None:
        line = self._note_step(progress)
        if line and not self.quiet:
            _to_stderr(line)
        self._tell(progress)

    def _tell(self, progress: Progress) -> None:
        if progress.note:
            self.note(progress.note)
        if progress.warning:
            self.warn(progress.warning)

    def _note_step(self, progress: Progress) -> str:
        if not progress.step:
            return ""
        figures = "  ".join(f"{name} {value}" for name, value in progress.figures.items())
        line = f"{progress.task} {progress.done}/{progress.total}: {progress.step}{', ' if figures else ''}{figures}"
        self._note(line)
        return line

    def _note(self, text: str) -> None:
        if self._log is None:
            return
        stamp = datetime.now().astimezone().isoformat(timespec="seconds")
        try:
            with self._log.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{stamp} {printable(text)}\n")
        except OSError:  # a full disk must not end the work; what does the work says so itself
            self._log = None

    @property
    def _out(self) -> RichConsole:
        from rich.console import Console as RichConsole

        # Without a terminal rich would fold tables at 80 columns; a log file has no width.
        return RichConsole(width=None if sys.stdout.isatty() else 160, highlight=False)


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Numbers stand on the right and are never broken; other cells are between words, where the terminal is narrow."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = [[printable(cell) for cell in row] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for index, column in enumerate(columns):
        cells = [row[index] for row in rows]
        numeric = bool(cells) and all(_is_number(cell) for cell in cells)
        unbroken = cells if numeric else [word[:_LONGEST_WORD] for cell in cells for word in cell.split()]
        table.add_column(
            printable(column),
            justify="right" if numeric else "left",
            overflow="fold",
            min_width=max(map(len, unbroken), default=1),
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def printable(text: str) -> str:
    """The same text with characters that a terminal would act on in hexadecimal: a file's name may hold some."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _printable_progress(progress: Progress) -> Progress:
    figures = {printable(name): printable(value) for name, value in progress.figures.items()}
    return replace(progress, task=printable(progress.task), figures=figures)


def _to_stderr(text: str) -> None:
    with suppress(OSError):  # the terminal may be gone, the work goes on
        sys.stderr.write(printable(text) + "\n")
        sys.stderr.flush()


_current: Console | None = None


def current_console() -> Console:
    """The console of the command that runs, or a plain one where none has begun."""
    return _current or Console()


def show_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Print a table with a row for each label: means with their intervals, the median, and over how many cases."""
    rows = []
    for mean in evaluation.label_means:
        interval = f"{number(mean.low.dice)} to {number(mean.high.dice)}" if mean.cases > 1 else "-"
        others = [number(mean.median.dice), number(mean.surface_dice), number(mean.hd95, 2), number(mean.lesion_f1)]
        rows.append((mean.name, number(mean.dice), interval, *others, str(mean.cases)))
    distance = f"HD95 {evaluation.unit}"
    console.table(("label", "Dice", "95 % interval", "median", "surface Dice", distance, "lesion F1", "cases"), rows)
    if cells := evaluation.instances:
        f1 = ", ".join(f"{number(value)} at {threshold:g}" for threshold, value in cells.f1.items())
        console.say(f"instances: panoptic quality {number(cells.pq)}; F1 by IoU {f1}")


def show_cross_validation(console: Console, result: CrossValidation) -> None:
    """Print a table with a row for each label: its mean Dice in every fold, over the folds, and over all cases."""
    columns = ("Dice", *(f"fold {fold}" for fold in result.folds), "mean of folds", "sd", "all cases", "IoU, all cases")
    rows = []
    for label, name in (*result.label_names.items(), (None, "mean of the labels")):
        over_folds, over_cases = result.dice_over_folds(label), result.of_all_cases(label)
        by_fold = [number(result.of_fold(fold, label).dice) for fold in result.folds]
        ends = [number(value) for value in (over_folds.mean, over_folds.sd, over_cases.dice, over_cases.iou)]
        rows.append((name, *by_fold, *ends))
    cases = sum(len(fold.cases) for fold in result.folds.values())
    console.say(f"cross-validation of {result.model}, held-back cases ({cases}):")
    console.table(columns, rows)
    if result.missing:
        missing = ", ".join(map(str, result.missing))
        console.say(f"folds that are not finished and not in the table: {missing}")
    if result.repeated:
        some = ", ".join(result.repeated[:5]) + (", ..." if len(result.repeated) > 5 else "")
        console.say(f"held back by several folds, so that there is no result over all cases: {some}")


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a hyphen where there is none."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"  # noqa: PLR0124 - NaN


_MOST_NAMED = 5


def there_are(count: int, what: str) -> str:
    """`1 case is`, `2 cases are`."""
    return f"1 {what} is" if count == 1 else f"{count} {what}s are"


def some_of(names: Sequence[str], separator: str = ", ") -> str:
    """The first few names in a sentence."""
    return separator.join([*names[:_MOST_NAMED], *(["..."] if len(names) > _MOST_NAMED else [])])


def mebibytes(size: int) -> str:
    """Bytes in MiB, as `1,234`; small ones as `0.4`."""
    size_mib = size / 1024**2
    return f"{size_mib:,.0f}" if size_mib >= 10 else f"{size_mib:.1f}"


def _is_number(text: str) -> bool:
    """Also `3/10`, `0.81 (3)`, `1:02:03`, and the hyphen of a number that is not there."""
    return text == "-" or (any(map(str.isdigit, text)) and not text.strip("0123456789.,-/(): "))


def elapsed(since: float) -> str:
    """Time since `time.monotonic()` gave `since`, as `1 min 20 s`."""
    return duration(time.monotonic() - since)


def duration(seconds: float) -> str:
    """Seconds as `20 s`, `1 min 20 s`, `2 h 05 min` or `3 d 4 h`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour} h"
    if hours:
        return f"{hours} h {minute:02} min"
    return f"{minutes} min {second} s" if minutes else f"{second} s"


def clock_time(seconds: float | None) -> str:
    """Seconds as `1:02:03`, from a day on `2d 03:04`; hyphens where nobody knows."""
    if seconds is None:
        return "-:--:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}d {hour:02}:{minute:02}" if days else f"{hour}:{minute:02}:{second:02}"
