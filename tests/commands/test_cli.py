from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import umamba_cli
from umamba_cli import cli
from umamba_cli.commands._console import Console

COMMANDS = (
    "check",
    "convert",
    "plan",
    "preprocess",
    "train",
    "status",
    "select",
    "predict",
    "ensemble",
    "evaluate",
    "compare",
    "report",
    "overlay",
    "export",
    "postprocess",
    "import",
    "models",
    "demo",
    "doctor",
)


def test_help_names_every_command_and_loads_no_torch() -> None:
    code = (
        "import sys\nfrom umamba_cli.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'numpy', 'SimpleITK', 'pydantic_core._pydantic_core', 'matplotlib', 'skimage'}\n"
        "print('loaded', sorted(heavy & set(sys.modules) - {'pydantic_core._pydantic_core'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "loaded []" in done.stdout
    for command in COMMANDS:
        assert command in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_the_common_options(umamba: Callable, command: str) -> None:
    below = {"convert": ("msd",), "postprocess": ("find",)}
    done = umamba(command, *below.get(command, ()), "--help")
    assert done.code == 0
    for option in ("--json", "--quiet", "--verbose"):
        assert option in done.out


def test_version(umamba: Callable) -> None:
    assert umamba("--version").out.strip() == f"umamba {umamba_cli.__version__}"


def test_wrong_arguments_exit_with_2_in_two_lines(umamba: Callable) -> None:
    for arguments in (("nonsense",), ("plan", "x", "--nonsense"), ("plan", "x", "--memory", "much"), ("predict", "x")):
        done = umamba(*arguments)
        assert done.code == 2, arguments
        error, advice = done.err.strip().splitlines()
        assert error.startswith("error: ")
        assert advice.startswith("next: ")


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "/x/y"), 1, "error: No space left on device: /x/y"),
        (MemoryError(), 1, "error: memory ran out"),
        (ZeroDivisionError("division by zero"), 1, "error: unexpected ZeroDivisionError: division by zero"),
    ],
)
def test_whatever_happens_has_its_message_and_exit_code(
    umamba: Callable, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, text: str
) -> None:
    def fail() -> None:
        raise raised

    monkeypatch.setattr("umamba_cli.pipeline.workflows.doctor.examine", fail)
    done = umamba("doctor")
    assert done.code == code
    assert text in done.err
    assert "Traceback" not in done.err
    if code == 1:
        assert "Traceback" in umamba("doctor", "--verbose").err


def test_errors_are_json_too(umamba: Callable, tmp_path: Path) -> None:
    done = umamba("plan", tmp_path, "--json")
    assert done.code == 2
    assert "dataset.json does not exist" in json.loads(done.out)["error"]


@pytest.mark.parametrize(
    "arguments", [("train", "--json"), ("plan", "x", "--memory", "much", "--json"), ("no", "--json")]
)
def test_wrong_arguments_are_json_too(umamba: Callable, arguments: tuple[str, ...]) -> None:
    done = umamba(*arguments)
    assert done.code == 2
    assert json.loads(done.out)["error"]


def test_no_command_shows_the_help(umamba: Callable) -> None:
    done = umamba()
    assert "evaluate" in done.out + done.err
    assert "error" not in done.err


def test_doctor_says_which_scan_is_used_and_why(umamba: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UMAMBA_SCAN", raising=False)
    report = json.loads(umamba("doctor", "--json").out)
    assert report["selective scan"]["used"]["value"] == "numba"
    assert report["selective scan"]["used"]["note"]
    assert report["selective scan"]["mamba_ssm"]["value"] == "mamba_ssm is not installed"
    monkeypatch.setenv("UMAMBA_SCAN", "torch")
    assert json.loads(umamba("doctor", "--json").out)["selective scan"]["used"]["value"] == "torch"
    assert report["versions"]["umamba"]["value"] == umamba_cli.__version__
    assert "umamba-enc" in report["models"]
    assert "used by --precision auto" in umamba("doctor").out


def test_a_terminal_gets_bars_and_a_log_file_gets_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from umamba_cli.pipeline.progress import Progress

    console = Console()
    console.log_to(tmp_path, "test")
    with console.progress() as report:
        report(Progress("work", 0, 2))
        report(Progress("work", 0, 2, within=0.5))
        report(Progress("work", 1, 2, "case_1", {"Dice": "0.9"}))
    captured = capsys.readouterr()
    assert captured.err == "work 1/2: case_1, Dice 0.9\n"
    assert captured.out == ""
    assert "work 1/2: case_1, Dice 0.9" in (tmp_path / "test.log").read_text()
    with Console(quiet=True).progress() as report:
        report(Progress("work", 1, 2, "case_1"))
    assert capsys.readouterr().err == ""


def test_output_into_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m umamba_cli doctor | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_main_takes_the_process_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["umamba", "--version"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
