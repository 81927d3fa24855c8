"""umamba evaluate: compare predictions with references."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umamba_cli.commands._console import Console, number, show_label_means
from umamba_cli.commands._options import (
    ClusterOption,
    JsonOption,
    QuietOption,
    ShardOption,
    VerboseOption,
    WorkersOption,
    refuse_workers_of_cluster,
)

if TYPE_CHECKING:
    from umamba_cli.pipeline.evaluation.evaluate import Evaluation
    from umamba_cli.pipeline.shards import Shard

PredictionsArgument = Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="Folder of predicted label maps.")]
ReferencesArgument = Annotated[Path, typer.Argument(metavar="REFERENCES", help="Folder of reference label maps.")]
DescriptionOption = Annotated[
    Path | None,
    typer.Option(
        "--dataset", metavar="DATASET_JSON", help="Names labels, regions, `ignore`.", show_default="labels found"
    ),
]
FileOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="File to write.",
        show_default="PREDICTIONS/summary.json, of a shard PREDICTIONS/summary.K-of-N.json",
    ),
]
MergeOption = Annotated[
    bool, typer.Option("--merge", help="Evaluate nothing: put the files of all shards in PREDICTIONS together.")
]


def evaluate(
    predictions: PredictionsArgument,
    references: ReferencesArgument,
    dataset: DescriptionOption = None,
    output: FileOption = None,
    shard: ShardOption = None,
    merge: MergeOption = False,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Dice, IoU and volumes of every case and label (or region), their means, and a JSON file of all."""
    from umamba_cli.pipeline.data.dataset import read_description
    from umamba_cli.pipeline.evaluation.evaluate import evaluate_folders, write_summary
    from umamba_cli.pipeline.evaluation.parts import merge_parts, part_path, write_part
    from umamba_cli.pipeline.shards import Shard

    console = Console(json_output, quiet, verbose)
    refuse_workers_of_cluster(workers, cluster)
    _refuse_contradictions(merge, shard, cluster)
    part = Shard.parse(shard) if shard else None
    description = read_description(dataset) if dataset else None
    if merge:
        evaluation = merge_parts(predictions, references, description=description)
    else:
        with console.progress() as on_progress:
            evaluation = evaluate_folders(
                predictions,
                references,
                description=description,
                shard=part,
                workers=workers,
                cluster=cluster,
                on_progress=on_progress,
            )
    if part:
        path = output or part_path(predictions, part)
        write_part(path, evaluation, part, description)
    else:
        path = output or predictions / "summary.json"
        write_summary(path, evaluation)
    _show(console, evaluation, path, part)


def _refuse_contradictions(merge: bool, shard: str | None, cluster: str | None) -> None:
    from umamba_cli.pipeline.errors import InputError

    if merge and (shard is not None or cluster is not None):
        raise InputError(
            f"--merge and {'--cluster' if shard is None else '--shard'} do not go together",
            next_step="evaluate every shard first, then put them together with --merge alone",
        )


def _show(console: Console, evaluation: Evaluation, path: Path, part: Shard | None) -> None:
    console.result({"summary": path, **evaluation.to_json()})
    console.table(("case", "label", "Dice", "IoU", "predicted ml", "reference ml"), evaluation.case_rows())
    show_label_means(console, evaluation)
    if evaluation.missing:
        console.warn(f"{len(evaluation.missing)} references have no prediction and were left out")
    of_shard = f" of shard {part}" if part else ""
    console.say(
        f"mean Dice {number(evaluation.foreground_mean.dice)} over {len(evaluation.cases)} cases{of_shard}, in {path}"
    )
    if part:
        console.say("next: when all shards are evaluated, the same command with --merge in place of --shard")
