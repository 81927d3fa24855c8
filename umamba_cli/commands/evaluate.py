"""umamba evaluate: compare predictions with references."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umamba_cli.commands._console import Console, number, show_evaluation, some_of, there_are
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
    from umamba_cli.pipeline.evaluation.case import Task
    from umamba_cli.pipeline.evaluation.results import Evaluation
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
        help="File to write; a table of all cases goes beside it, as CSV.",
        show_default="PREDICTIONS/summary.json, of a shard PREDICTIONS/summary.K-of-N.json",
    ),
]
ToleranceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tolerance",
        metavar="[LABEL=]MM",
        help="Of surface Dice, in mm (pictures: pixels); LABEL=MM for one label, may be given several times.",
        show_default="1",
    ),
]
SizesOption = Annotated[
    str | None,
    typer.Option(
        "--sizes", metavar="MM,MM,...", help="Diameters between classes of size of lesions.", show_default="5,10,20"
    ),
]
CellsOption = Annotated[
    str | None,
    typer.Option(
        "--instances",
        metavar="INTERIOR,BOUNDARY",
        help="Labels (names or values) by which touching objects, such as cells, are told apart and counted.",
        show_default="labels of --dataset called interior and boundary",
    ),
]
OnlyPredictedOption = Annotated[
    bool,
    typer.Option("--only-predicted", help="Leave out references without a prediction; they count as Dice 0 otherwise."),
]
NnunetOption = Annotated[
    Path | None,
    typer.Option(
        "--nnunet", metavar="FILE", help="Write nnU-Net's summary.json too; missing predictions are not in it."
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
    tolerance: ToleranceOption = None,
    sizes: SizesOption = None,
    instances: CellsOption = None,
    only_predicted: OnlyPredictedOption = False,
    nnunet: NnunetOption = None,
    shard: ShardOption = None,
    merge: MergeOption = False,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Dice, surface Dice, distances, lesions and volumes of every case and label (or region), and their means."""
    from umamba_cli.pipeline.data.dataset import read_description
    from umamba_cli.pipeline.evaluation.evaluate import evaluate_folders
    from umamba_cli.pipeline.evaluation.parts import merge_parts, part_path
    from umamba_cli.pipeline.evaluation.tables import require_own_files
    from umamba_cli.pipeline.evaluation.task import new_task
    from umamba_cli.pipeline.shards import Shard

    console = Console(json_output, quiet, verbose)
    refuse_workers_of_cluster(workers, cluster)
    given: dict[str, object] = {"--shard": shard, "--cluster": cluster, "--tolerance": tolerance, "--sizes": sizes}
    given |= {"--instances": instances, "--only-predicted": only_predicted}
    _refuse_contradictions(merge, [option for option, value in given.items() if value])
    part = Shard.parse(shard) if shard else None
    description = read_description(dataset) if dataset else None
    task = new_task(description, tolerances=tolerance or (), sizes=sizes, cells=instances)
    path = output or (part_path(predictions, part) if part else predictions / "summary.json")
    require_own_files(path, nnunet, with_table=part is None)
    if merge:
        evaluation = merge_parts(predictions, references, description=description)
    else:
        with console.progress() as on_progress:
            evaluation = evaluate_folders(
                predictions,
                references,
                task,
                only_predicted=only_predicted,
                shard=part,
                workers=workers,
                cluster=cluster,
                on_progress=on_progress,
            )
    _write(path, nnunet, evaluation, task, part, only_predicted=only_predicted)
    _show(console, evaluation, path, part)


def _refuse_contradictions(merge: bool, given: Sequence[str]) -> None:
    from umamba_cli.pipeline.errors import InputError

    if merge and given:
        raise InputError(
            f"--merge and {' and '.join(given)} do not go together",
            next_step="evaluate every shard so, then put them together with --merge alone",
        )


def _write(
    path: Path, nnunet: Path | None, evaluation: Evaluation, task: Task, part: Shard | None, *, only_predicted: bool
) -> None:
    from umamba_cli.pipeline.evaluation.parts import write_part
    from umamba_cli.pipeline.evaluation.tables import cases_path, write_cases, write_nnunet_summary, write_summary

    if part:
        write_part(path, evaluation, part, task, only_predicted=only_predicted)
        return
    write_cases(cases_path(path), evaluation)
    if nnunet is not None:
        write_nnunet_summary(nnunet, evaluation)
    write_summary(path, evaluation)


def _show(console: Console, evaluation: Evaluation, path: Path, part: Shard | None) -> None:
    console.result({"summary": path, **evaluation.to_json()})
    console.table(evaluation.case_columns, evaluation.case_rows())
    show_evaluation(console, evaluation)
    mean, count = evaluation.foreground_mean, len(evaluation.cases)
    without = sum(not case.predicted for case in evaluation.cases)
    if evaluation.missing:
        missing = there_are(len(evaluation.missing), "reference")
        console.warn(f"{missing} without a prediction: {some_of(evaluation.missing)}")
    if without:
        of_others = number(evaluation.mean_of_predicted.dice)
        console.say(
            f"{there_are(without, 'case')} without a prediction and counted with Dice 0; the mean Dice of the other "
            f"{count - without} is {of_others}"
        )
    of_shard = f" of shard {part}" if part else ""
    interval = f" (95 % interval {number(mean.low.dice)} to {number(mean.high.dice)})" if count > 1 else ""
    cases = f"{count} case{'' if count == 1 else 's'}"
    console.say(f"mean Dice {number(mean.dice)}{interval} over {cases}{of_shard}, in {path}")
    if part:
        console.say("next: when all shards are evaluated, the same command with --merge in place of --shard")
