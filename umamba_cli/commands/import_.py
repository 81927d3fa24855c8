"""umamba import: a bundle of a model that nnU-Net or U-Mamba trained."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from umamba_cli.commands._console import Console
from umamba_cli.commands._options import (
    BundleOption,
    BundleOverwriteOption,
    FoldsToTakeOption,
    JsonOption,
    QuietOption,
    VerboseOption,
    parse_folds,
)

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="checkpoint_final.pth, or the folder of a model with its folds.")
]


def import_(
    file: FileArgument,
    output: BundleOption,
    fold: FoldsToTakeOption = None,
    overwrite: BundleOverwriteOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make a bundle of a model that nnU-Net 2 or the released U-Mamba trained; nothing in its files is run."""
    from umamba_cli.pipeline.interop.checkpoints import import_model

    console = Console(json_output, quiet, verbose)
    folds = parse_folds(*(fold or ()))
    with console.progress() as on_progress:
        imported = import_model(file, output, folds=folds, overwrite=overwrite, on_progress=on_progress)
    record, origin = imported.record, imported.manifest.origin
    console.result(
        {
            "bundle": output,
            "model": record.variant.title,
            "configuration": record.configuration,
            "folds": imported.folds,
            "origin": origin,
            "notes": imported.notes,
        }
    )
    for note in imported.notes:
        console.warn(note)
    console.say(
        f"{record.variant.title} in {record.configuration}, fold {', '.join(map(str, imported.folds))}, trained by "
        f"{origin['trainer']} on {origin['dataset']} (epochs: {origin['epochs']}), is in {output}"
    )
    console.say(f"next: umamba predict {shlex.quote(str(output))} -i IMAGES -o predictions")
