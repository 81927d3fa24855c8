"""umamba evaluate: compare predictions with references."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from umamba_cli.commands._console import Console, number, show_label_means
from umamba_cli.commands._options import JsonOption, QuietOption, VerboseOption, WorkersOption

PredictionsArgument = Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="Folder of predicted label maps.")]
ReferencesArgument = Annotated[Path, typer.Argument(metavar="REFERENCES", help="Folder of reference label maps.")]
DescriptionOption = Annotated[
    Path | None,
    typer.Option(
        "--dataset", metavar="DATASET_JSON", help="Names labels, regions, `ignore`.", show_default="labels found"
    ),
]
FileOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="File to write.", show_default="PREDICTIONS/summary.json")
]


def evaluate(
    predictions: PredictionsArgument,
    references: ReferencesArgument,
    dataset: DescriptionOption = None,
    output: FileOption = None,
    workers: WorkersOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Dice, IoU and volumes of every case and label (or region), their means, and a JSON file of all."""
    from umamba_cli.pipeline.data.dataset import read_description
    from umamba_cli.pipeline.evaluation.evaluate import evaluate_folders, write_summary

    console = Console(json_output, quiet, verbose)
    description = read_description(dataset) if dataset else None
    with console.progress() as on_progress:
        evaluation = evaluate_folders(
            predictions, references, description=description, workers=workers, on_progress=on_progress
        )
    path = output or predictions / "summary.json"
    write_summary(path, evaluation)
    console.result({"summary": path, **evaluation.to_json()})
    console.table(("case", "label", "Dice", "IoU", "predicted ml", "reference ml"), evaluation.case_rows())
    show_label_means(console, evaluation)
    if evaluation.missing:
        console.warn(f"{len(evaluation.missing)} references have no prediction and were left out")
    console.say(f"mean Dice {number(evaluation.foreground_mean.dice)} over {len(evaluation.cases)} cases, in {path}")
