"""umamba export: make one file of a trained model, to share."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from umamba_cli.commands._console import Console, number
from umamba_cli.commands._options import (
    BundleOption,
    BundleOverwriteOption,
    FoldsToTakeOption,
    JsonOption,
    QuietOption,
    VerboseOption,
    parse_folds,
)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or the folder above its folds.")]


def export(
    run: RunArgument,
    output: BundleOption,
    fold: FoldsToTakeOption = None,
    overwrite: BundleOverwriteOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make a bundle of a trained model: one zip to copy anywhere and predict with. It holds nothing that could run."""
    from umamba_cli.pipeline.workflows.export import export_model

    console = Console(json_output, quiet, verbose)
    folds = parse_folds(*(fold or ()))
    with console.progress() as on_progress:
        exported = export_model(run, output, folds=folds, overwrite=overwrite, on_progress=on_progress)
    record, manifest = exported.record, exported.manifest
    console.result(
        {
            "bundle": output,
            "model": record.variant.title,
            "configuration": record.configuration,
            "folds": exported.folds,
            "origin": manifest.origin,
            "validation": manifest.validation,
            "bytes": output.stat().st_size,
        }
    )
    console.say(
        f"{record.variant.title} in {record.configuration}, fold {', '.join(map(str, exported.folds))}, is in {output} "
        f"({output.stat().st_size / 2**20:.1f} MiB)"
    )
    for name, result in ((manifest.validation or {}).get("folds") or {}).items():
        console.say(f"fold {name}: mean Dice {number(result['foreground_mean']['dice'])} on its held-back cases")
    console.say(f"next: umamba predict {shlex.quote(str(output))} -i IMAGES -o predictions")
