"""umamba check: is every case of a dataset usable?"""

from __future__ import annotations

import typer

from umamba_cli.commands._console import Console
from umamba_cli.commands._options import DatasetArgument, JsonOption, QuietOption, VerboseOption, WorkersOption


def check(
    dataset: DatasetArgument,
    workers: WorkersOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Look at every case of a dataset and list all that is wrong. Exits with 2 where a case is bad."""
    from umamba_cli.pipeline.resources import prepare_workers

    prepare_workers(workers, "umamba_cli.cli", "umamba_cli.pipeline.data.checks", "SimpleITK")

    from umamba_cli.pipeline.data.checks import check_dataset
    from umamba_cli.pipeline.data.dataset import open_dataset

    console = Console(json_output, quiet, verbose)
    opened = open_dataset(dataset)
    with console.progress() as on_progress:
        report = check_dataset(opened, workers=workers, on_progress=on_progress)
    console.result(
        {"dataset": opened.folder, "cases": report.cases, "bad_cases": report.problems, "notes": report.notes}
    )
    if report.problems:
        if console.json_output:
            raise typer.Exit(2)
        report.raise_if_bad()
    for note in report.notes:
        console.warn(note)
    console.say(f"{report.cases} cases of {opened.name} are usable")
