"""umamba select: which trained model, or which two of them averaged, does best on the cases held back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from umamba_cli.commands._console import Console, number
from umamba_cli.commands._options import (
    DeviceOption,
    JsonOption,
    PrecisionOption,
    QuietOption,
    ThreadsOption,
    VerboseOption,
    WorkspaceArgument,
)

if TYPE_CHECKING:
    from umamba_cli.pipeline.workflows.select import Selection

PairsOption = Annotated[
    bool, typer.Option("--pairs/--no-pairs", help="Also average two models each; predicts all cases held back.")
]
ModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--models",
        metavar="NAME",
        help="Folder under WORKSPACE/runs; may be given several times.",
        show_default="all",
    ),
]


def select(
    workspace: WorkspaceArgument,
    models: ModelsOption = None,
    pairs: PairsOption = True,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Compare trained models, alone and in pairs, by cross-validation. What was predicted before is not done again."""
    from umamba_cli.pipeline.data.workspace import open_workspace
    from umamba_cli.pipeline.devices import use_threads
    from umamba_cli.pipeline.workflows.select import select_model

    console = Console(json_output, quiet, verbose)
    opened = open_workspace(workspace)
    console.log_to(opened.logs, "select")
    use_threads(threads)
    with console.progress() as on_progress:
        selection = select_model(
            opened, models=models or (), pairs=pairs, device=device, precision=precision, on_progress=on_progress
        )
    console.result({"file": selection.file, **selection.to_json()})
    _show(console, selection)


def _show(console: Console, selection: Selection) -> None:
    names = selection.label_names
    rows = []
    for each in selection.candidates:
        dices = [number(each.dice, 4), *(number(each.labels[label]) for label in names)]
        rows.append((each.name, *dices, "chosen" if each is selection.chosen else "-"))
    console.table(("Dice", "mean", *names.values(), ""), rows)
    folds = ", ".join(map(str, selection.folds))
    console.say(f"means over the {selection.cases} cases that folds {folds} held back")
    if not selection.is_complete:
        console.say(f"no model has all {selection.all_folds} folds; these are all that can be compared now. To go on:")
        for command in selection.to_train:
            console.say(f"  {command}")
    for left in selection.left_out:
        console.say(f"left out: {left.model}, {left.why}")
        if left.command:
            console.say(f"  {left.command}")
    because = f"; {selection.reason}" if selection.reason else ""
    console.say(f"{selection.chosen.name} is chosen{because}: {selection.file}")
    for command in selection.commands:
        console.say(f"next: {command}")
