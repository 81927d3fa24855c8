"""umamba convert: bring other people's datasets into nnU-Net raw layout."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from umamba_cli.commands._console import Console, elapsed
from umamba_cli.commands._options import JsonOption, QuietOption, VerboseOption, WorkersOption

FolderArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Folder of one task (dataset.json, imagesTr, labelsTr, imagesTs).")
]
NewDatasetArgument = Annotated[
    Path, typer.Argument(metavar="DATASET", help="Folder to make, in nnU-Net raw layout (Dataset004_Hippocampus).")
]

convert = typer.Typer(no_args_is_help=True)


@convert.callback()
def sources() -> None:
    """Bring a dataset of another layout into nnU-Net raw layout."""


@convert.command(no_args_is_help=True)
def msd(
    folder: FolderArgument,
    dataset: NewDatasetArgument,
    workers: WorkersOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Convert a task of the Medical Segmentation Decathlon. Finished cases are kept, so it can be run again."""
    from umamba_cli.pipeline.interop.msd import convert_msd

    console = Console(json_output, quiet, verbose)
    began = time.monotonic()
    with console.progress() as on_progress:
        converted = convert_msd(folder, dataset, workers=workers, on_progress=on_progress)
    console.result(vars(converted))
    kept = f", {converted.kept} of them were there already" if converted.kept else ""
    console.say(
        f"{converted.cases} training cases and {converted.test_images} test images "
        f"({', '.join(converted.channels)}; {', '.join(converted.labels)}) are in {dataset}{kept} ({elapsed(began)})"
    )
    console.say(f"next: umamba plan {shlex.quote(str(dataset))}")
