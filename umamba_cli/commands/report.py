"""umamba report: one HTML file about a workspace, to read and to mail."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from umamba_cli.commands._console import Console, mebibytes
from umamba_cli.commands._options import JsonOption, QuietOption, VerboseOption, WorkspaceArgument

FileOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="File to write.", show_default="WORKSPACE/report.html")
]


def report(
    workspace: WorkspaceArgument,
    output: FileOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write one HTML file: dataset, plans, learning curves, results, and slices of the best, median and worst case."""
    from umamba_cli.pipeline.data.workspace import open_workspace
    from umamba_cli.pipeline.workflows.report import write_report

    console = Console(json_output, quiet, verbose)
    opened = open_workspace(workspace)
    path = output or opened.folder / "report.html"
    with console.progress() as on_progress:
        written = write_report(opened, path, on_progress=on_progress)
    console.result({"report": path, **written.to_json()})
    for note in written.notes:
        console.warn(note)
    console.say(f"{written.trainings} trainings, {written.models} models with results: {path}")
    console.say(
        f"{mebibytes(written.size_bytes)} MiB in one file; it holds names and slices of cases, see before you mail it"
    )
