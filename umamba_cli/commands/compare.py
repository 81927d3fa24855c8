"""umamba compare: which model does better on this data, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umamba_cli.commands._console import Console, some_of, there_are
from umamba_cli.commands._options import (
    BatchSizeOption,
    ConfigurationOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    ThreadsOption,
    VerboseOption,
    WorkersOption,
    parse_folds,
    split_names,
)

if TYPE_CHECKING:
    from umamba_cli.pipeline.workflows.comparison_files import ComparisonResult

_HOW = "How what is missing is trained"
_FOLDERS = "Finished predictions"

ComparedArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[WORKSPACE]", help="Folder that `umamba plan` made; not needed for folders of predictions alone."
    ),
]
ModelsOption = Annotated[
    str,
    typer.Option(
        "--models",
        "-m",
        metavar="NAME,NAME,...",
        help="Models to compare, see `umamba models`; umamba-bot+s4d has another mixer.",
    ),
]
FoldsOption = Annotated[
    str | None, typer.Option("--folds", "-f", help="0, 0-4 or 0,2.", show_default="all of splits.json")
]
SeedsOption = Annotated[
    int, typer.Option("--seeds", min=1, max=100, help="Trainings of each model and fold, with different seeds.")
]
TrainOption = Annotated[
    bool, typer.Option("--train/--no-train", help="Train what is missing; otherwise what is there is compared.")
]
EpochsOption = Annotated[
    int | None,
    typer.Option(
        "--epochs", min=1, help="Epochs.", show_default="as trainings that are there, or plans", rich_help_panel=_HOW
    ),
]
IterationsOption = Annotated[
    int | None,
    typer.Option(
        "--iterations", min=1, help="Steps an epoch.", show_default="as those, or plans", rich_help_panel=_HOW
    ),
]
PrecisionChoice = Annotated[
    str | None,
    typer.Option("--precision", help="auto, fp32, bf16 or fp16.", show_default="auto", rich_help_panel=_HOW),
]
PredictionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--predictions",
        metavar="NAME=FOLDER",
        help="Label maps of the same cases, by whichever program; may be given several times, one NAME too (a model "
        "trained again).",
        rich_help_panel=_FOLDERS,
    ),
]
ReferencesOption = Annotated[
    Path | None,
    typer.Option("--references", help="Folder of references, without WORKSPACE.", rich_help_panel=_FOLDERS),
]
DescriptionOption = Annotated[
    Path | None,
    typer.Option(
        "--dataset",
        metavar="DATASET_JSON",
        help="Names labels, regions, `ignore`, without WORKSPACE.",
        show_default="labels found",
        rich_help_panel=_FOLDERS,
    ),
]
MarginOption = Annotated[
    float,
    typer.Option(
        "--margin",
        min=0,
        help="Smallest difference that counts where one training of each is all there is, in fewer than 3 folds.",
    ),
]
GroupOption = Annotated[
    str | None,
    typer.Option(
        "--group-by",
        metavar="REGEX",
        help="Finds the patient in a case's name: patients are compared, and must lie on one side of each fold.",
        show_default="each case is one",
    ),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder for the result.", show_default="WORKSPACE/compare")
]


def compare(
    workspace: ComparedArgument = None,
    models: ModelsOption = "unet,umamba-none,umamba-bot,umamba-enc",
    configuration: ConfigurationOption = "3d_fullres",
    folds: FoldsOption = None,
    seeds: SeedsOption = 1,
    train: TrainOption = True,
    epochs: EpochsOption = None,
    iterations: IterationsOption = None,
    batch_size: BatchSizeOption = None,
    precision: PrecisionChoice = None,
    device: DeviceOption = "auto",
    predictions: PredictionsOption = None,
    references: ReferencesOption = None,
    dataset: DescriptionOption = None,
    margin: MarginOption = 0.02,
    group_by: GroupOption = None,
    output: OutputOption = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train, evaluate and compare models in one regime: which does better, and whether that is more than chance.

    Can be stopped and goes on with the same command; what is there so far is in compare/comparison.json.
    """
    from umamba_cli.pipeline.data.workspace import open_workspace
    from umamba_cli.pipeline.training.settings import SettingsChosen
    from umamba_cli.pipeline.workflows.compare import ComparisonJob, compare_models

    console = Console(json_output, quiet, verbose)
    folders = tuple(_named_folder(text) for text in predictions or ())
    how: dict[str, Any] = {"margin": margin, "group_by": group_by, "workers": workers}
    if workspace is None:
        run = _of_folders(folders, references, dataset, output, how)
    else:
        _refuse_options_of_folders(references, dataset)
        opened = open_workspace(workspace)
        job = ComparisonJob(
            opened,
            models=split_names(models),
            configuration=configuration,
            folds=_numbered(parse_folds(folds) if folds is not None else []),
            seeds=seeds,
            chosen=SettingsChosen(epochs=epochs, iterations=iterations, batch_size=batch_size, precision=precision),
            device=device,
            threads=threads,
            train=train,
            predictions=folders,
            **how,
        )
        console.log_to(opened.logs, "compare")
        run = partial(compare_models, job, output=output, on_result=partial(_tell_so_far, console))
    with console.progress() as on_progress:
        result = run(on_progress=on_progress)
    console.result({"file": result.file, **result.to_json()})
    _show(console, result)


def _of_folders(
    folders: tuple[tuple[str, Path], ...],
    references: Path | None,
    dataset: Path | None,
    output: Path | None,
    how: Mapping[str, Any],
) -> Callable[..., ComparisonResult]:
    """Comparing folders of predictions, to be called."""
    from umamba_cli.pipeline.data.dataset import read_description
    from umamba_cli.pipeline.errors import InputError
    from umamba_cli.pipeline.evaluation.task import task_of
    from umamba_cli.pipeline.workflows.compare import compare_folders

    if references is None or output is None:
        raise InputError(
            "there is neither a workspace nor folders of predictions to compare",
            next_step="give WORKSPACE, or --predictions NAME=FOLDER twice or more, --references FOLDER and -o FOLDER",
        )
    task = task_of(read_description(dataset) if dataset else None)
    return partial(compare_folders, folders, references, output, task=task, **how)


def _named_folder(text: str) -> tuple[str, Path]:
    from umamba_cli.pipeline.errors import InputError

    name, _, folder = text.partition("=")
    if not name or not folder:
        raise InputError(f"--predictions {text!r} is no NAME=FOLDER", next_step="give it as nnunet=path/to/predictions")
    return name, Path(folder)


def _refuse_options_of_folders(references: Path | None, dataset: Path | None) -> None:
    from umamba_cli.pipeline.errors import InputError

    if references is not None or dataset is not None:
        raise InputError("WORKSPACE knows its references and labels", next_step="leave --references and --dataset out")


def _numbered(folds: Sequence[int | str]) -> tuple[int, ...]:
    from umamba_cli.pipeline.errors import InputError

    numbers = tuple(fold for fold in folds if isinstance(fold, int))
    if len(numbers) < len(folds):
        raise InputError("fold all holds no case back to compare on", next_step="choose numbered folds, as --folds 0-4")
    return numbers


def _tell_so_far(console: Console, result: ComparisonResult) -> None:
    if result.comparison:
        console.note(f"so far, it may change: {result.comparison.verdict}")


def _show(console: Console, result: ComparisonResult) -> None:
    for table in result.tables:
        console.say(f"{table.title}: {table.caption}.")
        console.table(table.columns, table.rows)
    if result.missing:
        each = [f"{name} {why}" for name, why in result.missing.items()]
        console.warn(f"{there_are(len(each), 'training')} not in this comparison: {some_of(each, '; ')}")
    for title, names in result.unpredicted.items():
        console.warn(
            f"{title}: {there_are(len(names), 'prediction')} missing and counted with Dice 0: {some_of(names)}"
        )
    if result.left_out:
        count = there_are(len(result.left_out), "reference")
        console.warn(f"{count} left out, for no folder has a prediction: {some_of(result.left_out)}")
    for note in result.notes:
        console.warn(note)
    if result.comparison is None:
        console.say(f"fewer than two models have results yet: {result.file}")
        return
    for verdict in result.comparison.verdicts.values():
        console.say(verdict)
    if result.comparison.mamba_verdict:
        console.say(result.comparison.mamba_verdict)
    console.say(f"all figures: {result.file}")
