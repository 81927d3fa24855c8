"""Standard error that cannot be written to, and names of files that a terminal would act on."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from umamba_cli import cli
from umamba_cli.commands._console import Console
from umamba_cli.pipeline.progress import Progress

ODD = "a\x1b[31m\r\x9b2J\x7f"
SHOWN = r"a\x1b[31m\x0d\x9b2J\x7f"


class Broken(io.StringIO):
    """A stream whose reader has gone, or whose disk is full."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
@pytest.mark.parametrize("stream", ["2>/dev/full", "2>&-", "2> >(true)"])
def test_an_error_is_in_the_json_where_standard_error_is_broken(stream: str) -> None:
    command = f"{sys.executable} -m umamba_cli check /nonexistent --json {stream}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "/nonexistent" in json.loads(done.stdout)["error"]


@pytest.mark.parametrize("verbose", [False, True])
def test_each_end_is_in_the_json_where_standard_error_is_broken(
    umamba: Callable, monkeypatch: pytest.MonkeyPatch, *, verbose: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", Broken())
    done = umamba("check", "/nonexistent", "--json", *["--verbose"] * verbose)
    assert (done.code, "/nonexistent" in json.loads(done.out)["error"]) == (2, True)

    def stopped(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", stopped)
    done = umamba("check", "/nonexistent", "--json")
    assert (done.code, json.loads(done.out)) == (130, {"error": "interrupted"})


def test_names_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    console = Console()
    console.log_to(tmp_path, "test")
    with console.progress() as report:
        report(Progress("work", 1, 2, ODD, {"case": ODD}, note=f"note {ODD}", warning=f"careful {ODD}"))
    console.say(f"said {ODD}")
    console.table((ODD, "Dice"), [(f"row {ODD}", "0.5")])
    captured = capsys.readouterr()
    log = (tmp_path / "test.log").read_text(encoding="utf-8")
    for text in (captured.out, captured.err, log):
        assert not any(character in text for character in "\x1b\r\x9b\x7f")
    assert captured.err == (f"work 1/2: {SHOWN}, case {SHOWN}\nnote {SHOWN}\nwarning: careful {SHOWN}\n")
    assert f"said {SHOWN}\n" in captured.out
    assert f"row {SHOWN}" in captured.out


def test_an_error_cannot_move_the_cursor(umamba: Callable, tmp_path: Path) -> None:
    done = umamba("check", tmp_path / ODD)
    assert (done.code, SHOWN in done.err, "\x1b" in done.err) == (2, True, False)


def test_names_of_no_encoding_do_not_end_the_log(tmp_path: Path) -> None:
    console = Console(quiet=True)
    console.log_to(tmp_path, "test")
    console.note("a\udce9")
    assert r"a\udce9" in (tmp_path / "test.log").read_text(encoding="utf-8")


def test_bars_cannot_move_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = []
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("umamba_cli.commands._bars.Bars.show", lambda _bars, progress: shown.append(progress))
    with Console().progress() as report:
        report(Progress(ODD, 0, 2, figures={ODD: ODD}))
    assert (shown[0].task, dict(shown[0].figures)) == (SHOWN, {SHOWN: SHOWN})
