"""The bars of a terminal, drawn into memory at a known width with a known clock."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console as RichConsole

from umamba_cli.commands._bars import Bars, Pace, figure_lines
from umamba_cli.commands._console import Console, clock_time, duration
from umamba_cli.pipeline.progress import Progress

FIGURES = {
    "loss": "-0.812",
    "Dice": "0.912",
    "Dice by label": ", ".join(f"structure {index} 0.91" for index in range(12)),
    "rate": "0.0093",
    "memory": "10.2 GiB",
    "waiting": "0%",
}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def bars_at(width: int) -> tuple[Bars, RichConsole, Clock]:
    console = RichConsole(file=io.StringIO(), width=width, height=40, force_terminal=True, color_system=None)
    clock = Clock()
    return Bars(console, clock), console, clock


def picture(bars: Bars, console: RichConsole) -> list[str]:
    with console.capture() as capture:
        console.print(bars._render())
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [20, 40, 80, 100, 200, 400])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    bars, console, clock = bars_at(width)
    bars.show(Progress("train", 500, 1000))
    clock.now += 7200
    bars.show(Progress("train", 501, 1000, "epoch 501", FIGURES))
    bars.show(Progress("validate", 3, 26, "case"))
    lines = picture(bars, console)
    assert max(map(cell_len, lines)) <= width
    assert sum(line.startswith(("train", "validate")) for line in lines) == 2
    assert len(lines) <= 5


def test_at_80_columns_the_figures_stand_below_the_bar() -> None:
    bars, console, clock = bars_at(80)
    bars.show(Progress("train", 0, 10))
    clock.now += 60
    bars.show(Progress("train", 1, 10, "epoch 1", FIGURES))
    bar, short, labels = picture(bars, console)
    assert bar.startswith("train ")
    assert bar.endswith("1/10 0:01:00 left 0:09:00")
    assert short.rstrip() == "loss -0.812  Dice 0.912  rate 0.0093  memory 10.2 GiB  waiting 0%"
    assert labels.startswith("Dice by label structure 0 0.91, structure 1 0.91")
    assert labels.rstrip().endswith("…")


def test_a_wide_terminal_has_all_on_one_line() -> None:
    bars, console, _ = bars_at(200)
    bars.show(Progress("train", 1, 10, "epoch 1", {"loss": "0.5", "Dice": "0.9"}))
    (line,) = picture(bars, console)
    assert line.rstrip().endswith("loss 0.5  Dice 0.9")


def test_names_that_look_like_markup_or_are_wide_are_shown_as_they_are() -> None:
    bars, console, _ = bars_at(40)
    bars.show(Progress("train", 1, 10, "epoch 1", {"Dice by label": "[red]tumour[/red] 0.90, " + "腫瘍" * 20}))
    lines = picture(bars, console)
    assert "[red]tumour[/red] 0.90" in lines[1]
    assert max(map(cell_len, lines)) <= 40


def test_a_bar_that_begins_in_the_middle_counts_only_what_it_saw() -> None:
    bars, console, clock = bars_at(100)
    bars.show(Progress("train", 500, 1000))
    assert "left -:--:--" in picture(bars, console)[0]
    for step in range(1, 11):
        clock.now += 10
        bars.show(Progress("train", 500 + step // 10, 1000, within=step % 10 / 10))
    # 100 s an epoch, 499 to go.
    assert f"left {clock_time(49900)}" in picture(bars, console)[0]
    clock.now += 50
    assert f"left {clock_time(49850)}" in picture(bars, console)[0]


def test_the_pace_follows_the_later_half() -> None:
    pace = Pace(0.0, 0)
    pace.note(100.0, 1)  # the first step took 100 s, all others 1 s
    for step in range(2, 400):
        pace.note(99.0 + step, step)
    assert pace.seconds_left(498.0, 1000) == pytest.approx(601, rel=0.01)
    pace.note(500.0, 1000)
    assert pace.seconds_left(600.0, 1000) == 0


def test_a_task_that_starts_again_has_a_new_bar() -> None:
    bars, console, clock = bars_at(100)
    bars.show(Progress("train", 0, 2))
    clock.now += 1000
    bars.show(Progress("train", 2, 2, "epoch 2", {"loss": "0.5"}))
    clock.now += 1000
    assert "2/2 0:16:40 left 0:00:00" in picture(bars, console)[0]  # time stands still when all is done
    bars.show(Progress("train", 0, 2))
    assert "0/2 0:00:00 left -:--:--" in picture(bars, console)[0]


def test_nothing_to_do_is_no_error() -> None:
    bars, console, _ = bars_at(60)
    assert picture(bars, console) == []
    bars.show(Progress("validate", 0, 0))
    assert "0/0" in picture(bars, console)[0]


def test_figures_are_never_broken() -> None:
    assert figure_lines({"loss": "0.1", "Dice": "0.8"}, 80) == ["loss 0.1  Dice 0.8"]
    assert figure_lines({"loss": "0.1", "Dice": "0.8"}, 17) == ["loss 0.1", "Dice 0.8"]
    assert figure_lines({}, 80) == []
    assert figure_lines({"a": "two\nlines"}, 80) == ["a two lines"]
    many = {f"figure{index}": "1" for index in range(50)}
    assert len(figure_lines(many, 30)) == 3


@pytest.mark.parametrize("quiet", [False, True])
def test_a_warning_is_shown_and_noted_even_when_quiet(
    quiet: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    console = Console(quiet=quiet)
    console.log_to(tmp_path, "train")
    with console.progress() as report:
        report(Progress("train", 3, 10, "epoch 3", warning="12 steps were skipped, on in fp32"))
        report(Progress("train", 3, 10, within=0.5, warning="a worker died"))
    shown = capsys.readouterr().err
    expected = "warning: 12 steps were skipped, on in fp32\nwarning: a worker died\n"
    assert shown == (expected if quiet else "train 3/10: epoch 3\n" + expected)
    log = (tmp_path / "train.log").read_text()
    assert log.count("warning: ") == 2
    assert "train 3/10: epoch 3" in log


def test_a_warning_on_a_terminal_stands_above_the_bar(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    console = Console()
    console.log_to(tmp_path, "train")
    with console.progress() as report:
        report(Progress("train", 3, 10, "epoch 3", {"loss": "0.5"}))
        report(Progress("train", 4, 10, "epoch 4", {"loss": "0.4"}, warning="back to epoch 2, in fp32"))
    shown = terminal.getvalue()
    assert shown.count("warning: back to epoch 2, in fp32") == 1
    assert "warning: back to epoch 2, in fp32" in (tmp_path / "train.log").read_text()
    assert "4/10" in shown.partition("warning: back")[2]
    assert capsys.readouterr().out == ""


def test_times_as_text() -> None:
    assert [clock_time(seconds) for seconds in (None, 0, 3722.9, 183840)] == [
        "-:--:--",
        "0:00:00",
        "1:02:03",
        "2d 03:04",
    ]
    assert [duration(seconds) for seconds in (0.4, 80, 7500, 273600)] == ["0 s", "1 min 20 s", "2 h 05 min", "3 d 4 h"]
