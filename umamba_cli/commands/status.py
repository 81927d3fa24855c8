"""umamba status: where all trainings of a workspace are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from umamba_cli.commands._console import Console, clock_time, number
from umamba_cli.commands._options import JsonOption, QuietOption, VerboseOption, WorkspaceArgument

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from umamba_cli.pipeline.workflows.status import RunStatus

WatchOption = Annotated[bool, typer.Option("--watch", help="Show it anew every 2 seconds, until Ctrl-C.")]

_SECONDS_BETWEEN_LOOKS = 2.0
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_COLUMNS = (
    "run",
    "fold",
    "state",
    "epoch",
    "best Dice (epoch)",
    "final Dice",
    "left",
    "last change",
)


def status(
    workspace: WorkspaceArgument,
    watch: WatchOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show all trainings: where they are, their best Dice, the time left. Reads alone, also while they run."""
    from umamba_cli.pipeline.data.workspace import open_workspace
    from umamba_cli.pipeline.workflows.status import survey_runs

    console = Console(json_output, quiet, verbose)
    opened = open_workspace(workspace)
    if watch:
        console.watch(_COLUMNS, lambda: _rows(survey_runs(opened)), every_s=_SECONDS_BETWEEN_LOOKS)
        return
    runs = survey_runs(opened)
    console.result({"workspace": opened.folder, "runs": [run.to_json() for run in runs]})
    if not runs:
        console.say(f"no training was started in {opened.folder} yet")
        console.say(f"next: umamba train {opened.folder}")
        return
    console.table(_COLUMNS, _rows(runs))
    for run in runs:
        if run.problem:
            console.say(f"{run.run}: {run.problem}")


def _rows(runs: Sequence[RunStatus]) -> list[tuple[str, ...]]:
    return [_row(run) for run in runs]


def _row(run: RunStatus) -> tuple[str, ...]:
    best = f"{number(run.best_dice)} ({run.best_epoch})" if run.best_dice is not None else "-"
    return (
        run.title,
        run.fold,
        _state(run),
        f"{run.epoch}/{'-' if run.epochs is None else run.epochs}",
        best,
        number(run.validation_dice),
        "-" if run.seconds_left is None else clock_time(run.seconds_left),
        _since(run.moved),
    )


def _state(run: RunStatus) -> str:
    """As `state_text`, but short: the epochs have a column of their own, and a machine is known by its first name."""
    who = f" on {run.host.partition('.')[0]}" if run.host else ""
    return f"{run.state}{who}" + (f" pid {run.process}" if run.process is not None else "")


def _since(moved: datetime | None) -> str:
    """How long ago, as `5 s` or `3 min`: the largest unit alone."""
    from datetime import datetime, timezone

    if moved is None:
        return "-"
    # Clocks of machines that share a disk differ a little: what seems to lie ahead is now.
    seconds = max(0, int((datetime.now(timezone.utc) - moved).total_seconds()))
    size, unit = next((size, unit) for size, unit in _UNITS if seconds >= size or size == 1)
    return f"{seconds // size} {unit}"
