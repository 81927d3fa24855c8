"""umamba postprocess: find out what raises the Dice of predictions afterwards, and do it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umamba_cli.commands._console import Console, number
from umamba_cli.commands._options import JsonOption, QuietOption, VerboseOption, WorkersOption

if TYPE_CHECKING:
    from umamba_cli.pipeline.workflows.postprocess import FoundPostprocessing

ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="The folder above a model's folds, WORKSPACE/runs/NAME.")
]
FoundArgument = Annotated[
    Path, typer.Argument(metavar="FOUND", help="The folder above a model's folds, or a postprocessing.json.")
]
InputOption = Annotated[Path, typer.Option("--input", "-i", help="Folder of predicted label maps.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder for the new label maps.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Make finished ones again.")]

postprocess = typer.Typer(no_args_is_help=True, help="Remove small pieces and fill holes, where that raises the Dice.")


@postprocess.command(no_args_is_help=True)
def find(
    model: ModelArgument,
    workers: WorkersOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Try each step on the held-back cases of all finished folds; what raises their Dice is noted beside the folds."""
    from umamba_cli.pipeline.workflows.postprocess import find_postprocessing

    console = Console(json_output, quiet, verbose)
    with console.progress() as on_progress:
        found = find_postprocessing(model, workers=workers, on_progress=on_progress)
    console.result(
        {
            "file": found.file,
            "cases": found.cases,
            "steps": found.steps,
            "tried": [each.to_json() for each in found.tried],
        }
    )
    _show(console, found)


def _show(console: Console, found: FoundPostprocessing) -> None:
    rows = []
    for each in found.tried:
        labels = ", ".join(map(str, each.step.labels))
        dices = [f"{number(each.before[label])} to {number(each.after[label])}" for label in found.names]
        rows.append((each.step.operation, labels, *dices, "kept" if each.kept else "-"))
    console.table(("step", "labels", *found.names.values(), ""), rows)
    count = len(found.steps)
    console.say(
        f"{count} of {len(found.tried)} steps raise the Dice of the {found.cases} held-back cases: {found.file}"
    )
    if count:
        console.say(f"next: umamba postprocess apply {found.file.parent} -i PREDICTIONS -o postprocessed")


@postprocess.command(no_args_is_help=True)
def apply(
    found: FoundArgument,
    predictions: InputOption,
    output: OutputOption,
    overwrite: OverwriteOption = False,
    workers: WorkersOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Do to predictions what was found to help. Finished label maps are skipped."""
    from umamba_cli.pipeline.inference.postprocessing import postprocessing_file, read_postprocessing
    from umamba_cli.pipeline.workflows.postprocess import apply_postprocessing

    console = Console(json_output, quiet, verbose)
    steps = read_postprocessing(postprocessing_file(found) if found.is_dir() else found).steps
    with console.progress() as on_progress:
        written = apply_postprocessing(
            steps, predictions, output, overwrite=overwrite, workers=workers, on_progress=on_progress
        )
    console.result({"output": output, "steps": steps, "written": written})
    console.say(f"{written} label maps were written to {output}, after {len(steps)} steps")
