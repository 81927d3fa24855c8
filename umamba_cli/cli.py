"""The Typer app, and the one place that turns an exception into a message and an exit code."""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from umamba_cli.commands._console import Console, current_console
from umamba_cli.commands.check import check
from umamba_cli.commands.compare import compare
from umamba_cli.commands.convert import convert
from umamba_cli.commands.demo import demo
from umamba_cli.commands.doctor import doctor
from umamba_cli.commands.ensemble import ensemble
from umamba_cli.commands.evaluate import evaluate
from umamba_cli.commands.export import export
from umamba_cli.commands.import_ import import_
from umamba_cli.commands.models import models
from umamba_cli.commands.overlay import overlay
from umamba_cli.commands.plan import plan
from umamba_cli.commands.postprocess import postprocess
from umamba_cli.commands.predict import predict
from umamba_cli.commands.preprocess import preprocess
from umamba_cli.commands.report import report
from umamba_cli.commands.select import select
from umamba_cli.commands.status import status
from umamba_cli.commands.train import train
from umamba_cli.pipeline.errors import InputError, Stopped, UmambaError, WorkError

FAILED, INTERRUPTED = 1, 130
_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGHUP")
"""Of `kill`, of schedulers, and of a terminal that is closed."""

app = typer.Typer(
    name="umamba",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS = (
    *(check, plan, preprocess, train, status, select, predict, ensemble, evaluate, compare, report, overlay),
    *(export, models, demo, doctor),
)
for command in _COMMANDS:
    app.command(no_args_is_help=command not in (demo, doctor))(command)
app.command("import", no_args_is_help=True)(import_)
app.add_typer(convert, name="convert")
app.add_typer(postprocess, name="postprocess")


def _show_version(wanted: bool) -> None:
    if wanted:
        from umamba_cli import __version__

        typer.echo(f"umamba {__version__}")
        raise typer.Exit


@app.callback()
def umamba(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """From a folder of labelled images to evaluated segmentations with U-Mamba, on any machine."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 it failed, 2 the input is wrong, 130 interrupted.

    Args:
        arguments: what follows `umamba`; None takes the process's own.
    """
    # Threads that wait without spinning: on a machine shared with other work, spinning costs several times as much.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings are for those who write trainings
    arguments = sys.argv[1:] if arguments is None else arguments
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as in `umamba ... 2>&-`
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - it stays open
    Console(json_output="--json" in arguments)  # for errors before the command makes its own
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    _end_as_by_ctrl_c()
    try:
        code = app(list(arguments), standalone_mode=False)
        if code == INTERRUPTED:  # newer versions of Typer catch the interrupt themselves and say nothing
            raise KeyboardInterrupt
    except BaseException as error:
        code = _exit_code(error, begins_anew="--restart" in arguments)
    atexit.register(_leave_in_peace)
    sys.exit(code or 0)


def _end_as_by_ctrl_c() -> None:
    """Let the signals of `kill` and of schedulers end a command as Ctrl-C does: with a word, nothing half-written."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for name in _SIGNALS:
            if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:  # as by nohup
                signal.signal(getattr(signal, name), end)


def _leave_in_peace() -> None:
    """All is done and said: a signal while Python ends would only spoil the exit code."""
    for name in _SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _exit_code(error: BaseException, *, begins_anew: bool) -> int:
    """Show what ended the command, and return the exit code for it."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    if isinstance(error, Stopped):
        current_console().interrupted(f"{error.problem}; {error.next_step}")
        return INTERRUPTED
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        again = ", but without --restart," if begins_anew else ""
        current_console().interrupted(f"interrupted; run the same command again{again} to go on")
        return INTERRUPTED
    if hasattr(error, "format_message") and not error.format_message():
        return InputError.exit_code  # no command was given; Typer has shown the help
    if isinstance(error, BrokenPipeError):  # the reader of our output has gone, as in `umamba evaluate ... | head`
        return FAILED
    explained = _explained(error)
    current_console().error(explained, error)
    return explained.exit_code


def _explained(error: BaseException) -> UmambaError:
    """The error itself where umamba raised it, otherwise one that says the same in its form."""
    if isinstance(error, UmambaError):
        return error
    if hasattr(error, "format_message"):  # a usage error of Typer, whose base class has moved between its versions
        return InputError(str(error.format_message()), next_step="see `umamba --help` and `umamba COMMAND --help`")
    if isinstance(error, MemoryError):
        return WorkError("memory ran out", next_step="use fewer --workers, or a smaller patch")
    if isinstance(error, OSError):
        place = f": {error.filename}" if error.filename else ""
        return WorkError(
            f"{error.strerror or error}{place}", next_step="see the path, its permissions and the disk's free space"
        )
    return WorkError(
        f"unexpected {type(error).__name__}: {error}",
        next_step="run again with --verbose and report the traceback with what `umamba doctor` prints",
    )
