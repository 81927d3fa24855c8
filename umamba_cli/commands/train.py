"""umamba train: train a model on folds, then predict and evaluate their held-back cases."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umamba_cli.commands._console import (
    Console,
    duration,
    elapsed,
    mebibytes,
    number,
    show_cross_validation,
    show_evaluation,
)
from umamba_cli.commands._options import (
    BatchSizeOption,
    ConfigurationOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    ThreadsOption,
    VerboseOption,
    WorkersOption,
    WorkspaceArgument,
    given_again,
    parse_folds,
)

if TYPE_CHECKING:
    from umamba_cli.pipeline.workflows.folds import FoldsResult
    from umamba_cli.pipeline.workflows.preview import TrainingPreview
    from umamba_cli.pipeline.workflows.train import TrainingJob, TrainingResult

_HOW = "How it learns"
_WHERE = "What it runs on"

ModelOption = Annotated[str, typer.Option("--model", "-m", help="unet, umamba-bot, ...: see `umamba models`.")]
MixerOption = Annotated[
    str | None,
    typer.Option("--mixer", help="State space layers of U-Mamba: mamba, s4d or mamba2.", show_default="mamba"),
]
DirectionsOption = Annotated[
    str | None,
    typer.Option(
        "--directions", help="How they read the voxels: forward, both or axes (both ways each).", show_default="forward"
    ),
]
FoldOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fold",
        "-f",
        help="0 to 4; several as 0-4 or 0,2; or all: one training on every case.",
        show_default="0",
    ),
]
TagOption = Annotated[str, typer.Option("--tag", help="Keep this training apart from others of the model.")]
RestartOption = Annotated[bool, typer.Option("--restart", help="Remove this training and start it over.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, time a few steps and show the training; change nothing.")
]
EpochsOption = Annotated[
    int | None, typer.Option("--epochs", min=1, help="Epochs.", show_default="by plans", rich_help_panel=_HOW)
]
IterationsOption = Annotated[
    int | None,
    typer.Option("--iterations", min=1, help="Steps an epoch.", show_default="by plans", rich_help_panel=_HOW),
]
RateOption = Annotated[
    float | None,
    typer.Option("--lr", help="Learning rate.", show_default="0.01, adamw 0.001", rich_help_panel=_HOW),
]
OptimizerOption = Annotated[
    str | None, typer.Option("--optimizer", help="sgd or adamw.", show_default="sgd", rich_help_panel=_HOW)
]
WarmupOption = Annotated[
    int | None,
    typer.Option("--warmup", min=0, help="Epochs of rising rate.", show_default="0", rich_help_panel=_HOW),
]
WeightDecayOption = Annotated[
    float | None,
    typer.Option("--weight-decay", help="Weight decay.", show_default="3e-5, adamw 0.01", rich_help_panel=_HOW),
]
InitFromOption = Annotated[
    Path | None,
    typer.Option(
        "--init-from",
        metavar="MODEL",
        help="Begin with the weights of this run or bundle, as far as they fit (fine-tuning).",
        rich_help_panel=_HOW,
    ),
]
AugmentationOption = Annotated[
    str | None,
    typer.Option(
        "--augmentation",
        help="batched (on the device), workers (batchgenerators) or auto.",
        show_default="auto",
        rich_help_panel=_HOW,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="Of all that is random.", show_default="0", rich_help_panel=_HOW),
]
PrecisionChoice = Annotated[
    str | None,
    typer.Option("--precision", help="auto, fp32, bf16 or fp16.", show_default="auto", rich_help_panel=_WHERE),
]
CheckpointingOption = Annotated[
    bool,
    typer.Option("--checkpointing", help="Less memory for more time, the same result.", rich_help_panel=_WHERE),
]
GpusOption = Annotated[
    int | None,
    typer.Option("--gpus", min=1, help="GPUs to train on together.", show_default="1", rich_help_panel=_WHERE),
]
TensorboardOption = Annotated[
    bool, typer.Option("--tensorboard", help="Write RUN/tensorboard too (extra `tensorboard`).")
]


def train(
    context: typer.Context,
    workspace: WorkspaceArgument,
    configuration: ConfigurationOption = "3d_fullres",
    model: ModelOption = "umamba-bot",
    mixer: MixerOption = None,
    directions: DirectionsOption = None,
    fold: FoldOption = None,
    tag: TagOption = "",
    restart: RestartOption = False,
    dry_run: DryRunOption = False,
    epochs: EpochsOption = None,
    iterations: IterationsOption = None,
    batch_size: BatchSizeOption = None,
    learning_rate: RateOption = None,
    optimizer: OptimizerOption = None,
    warmup: WarmupOption = None,
    weight_decay: WeightDecayOption = None,
    init_from: InitFromOption = None,
    augmentation: AugmentationOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionChoice = None,
    checkpointing: CheckpointingOption = False,
    gpus: GpusOption = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    tensorboard: TensorboardOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a model. A training that was stopped goes on where it was; one that is finished is only evaluated."""
    from umamba_cli.pipeline.data.workspace import open_workspace
    from umamba_cli.pipeline.training.distributed import this_world
    from umamba_cli.pipeline.training.settings import SettingsChosen
    from umamba_cli.pipeline.workflows.train import TrainingJob

    is_first = this_world().is_first
    console = Console(json_output and is_first, quiet or not is_first, verbose)
    job = TrainingJob(
        workspace=open_workspace(workspace),
        configuration=configuration,
        model=model,
        mixer=mixer,
        scan_directions=directions,
        tag=tag,
        chosen=SettingsChosen(
            epochs=epochs,
            iterations=iterations,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer=optimizer,
            warmup=warmup,
            weight_decay=weight_decay,
            init_from=str(init_from.resolve()) if init_from else None,
            augmentation=augmentation,
            seed=seed,
            precision=precision,
            checkpointing=checkpointing or None,
        ),
        device=device,
        restart=restart,
        workers=workers,
        threads=threads,
        tensorboard=tensorboard,
    )
    folds = parse_folds(",".join(fold or ("0",)))
    if dry_run:
        _preview(console, job, folds, gpus or 1)
    elif gpus is not None and gpus > 1:
        _train_on_several(console, job, folds, gpus, given_again(context, without=("gpus",)))
    else:
        _train(console, job, folds, is_first=is_first)


def _train(console: Console, job: TrainingJob, folds: Sequence[int | str], *, is_first: bool) -> None:
    from umamba_cli.pipeline.errors import Stopped
    from umamba_cli.pipeline.workflows.folds import train_folds

    if is_first:
        console.log_to(job.workspace.logs, "train")
    began = time.monotonic()
    try:
        with console.progress() as on_progress:
            trained = train_folds(job, folds, on_progress=on_progress)
    except Stopped as stopped:
        if is_first:
            raise
        sys.exit(stopped.exit_code)  # the first one says it
    if is_first:
        _show_trained(console, trained, began)


def _train_on_several(
    console: Console, job: TrainingJob, folds: Sequence[int | str], processes: int, arguments: Sequence[str]
) -> None:
    from dataclasses import replace

    from umamba_cli.pipeline.training.distributed import World
    from umamba_cli.pipeline.workflows.launch import require_devices, run_processes
    from umamba_cli.pipeline.workflows.train import prepare_training

    require_devices(processes, job.device)
    for fold in folds:  # what is wrong is said once, before the processes start
        prepare_training(replace(job, fold=fold), world=World(size=processes))
    sys.exit(run_processes(arguments, processes))  # which have said what there is to say


def _show_trained(console: Console, done: FoldsResult, began: float) -> None:
    trained = done.trained[-1] if done.trained else None
    console.result(done.to_json())
    for fold, problem in done.left.items():
        console.warn(f"fold {fold} was left: {problem}")
    for result in done.trained:
        _show_fold(console, result, alone=len(done.trained) == 1)
    if done.cross_validation:
        show_cross_validation(console, done.cross_validation)
    if trained:
        folder = trained.run.folder
        console.say(f"the model is in {folder if len(done.trained) == 1 else folder.parent} ({elapsed(began)})")
        console.say(f"next: umamba predict {folder.parent} -i IMAGES -o predictions")
    if done.left:
        raise typer.Exit(1)


def _show_fold(console: Console, trained: TrainingResult, *, alone: bool) -> None:
    evaluation, compute = trained.evaluation, trained.compute
    skipped = sum(entry.get("skipped_steps", 0) for entry in trained.log)
    precision = trained.log[-1].get("precision", compute.precision) if trained.log else compute.precision
    if alone:
        console.say(f"trained on {compute.device_name} in {precision}: {compute.reason}")
    if skipped:
        console.say(f"{skipped} steps of {trained.run.folder.name} were skipped: no finite loss or gradient")
    if evaluation and alone:
        console.say(f"held-back cases ({len(evaluation.cases)}):")
        show_evaluation(console, evaluation)
        console.say(f"mean Dice {number(evaluation.foreground_mean.dice)}")


def _preview(console: Console, job: TrainingJob, folds: Sequence[int | str], processes: int) -> None:
    from dataclasses import replace

    from umamba_cli.pipeline.workflows.launch import require_devices
    from umamba_cli.pipeline.workflows.preview import preview_training

    if processes > 1:
        require_devices(processes, job.device)
    previews = [
        preview_training(replace(job, fold=fold), processes=processes, time_it=fold == folds[0]) for fold in folds
    ]
    console.result(previews[0].to_json() if len(previews) == 1 else {"folds": [p.to_json() for p in previews]})
    for preview in previews:
        _show_preview(console, preview)
    if previews[0].seconds_in_all and len(previews) > 1:
        console.say(f"{len(previews)} folds take about {duration(len(previews) * previews[0].seconds_in_all)}")
    console.say("nothing was changed; leave --dry-run out to train")


def _show_preview(console: Console, preview: TrainingPreview) -> None:
    record, compute, settings = preview.training.record, preview.training.compute, preview.settings
    needs, memory = preview.needs, preview.needs.memory
    parameters = "-" if needs.parameters is None else f"{needs.parameters:,}"
    sizes = "x".join(str(n) for n in record.network_configuration.patch_size)
    of_optimizer = f"momentum {settings.momentum:g}" if settings.optimizer == "sgd" else settings.optimizer
    rows = [
        ("run", str(preview.training.run.folder), _how_it_begins(preview)),
        ("model", needs.name, needs.description),
        ("parameters", parameters, ""),
        ("cases", f"{len(record.train_cases)}", f"{len(record.val_cases)} held back"),
        ("steps", f"{preview.steps:,}", f"{settings.epochs} x {settings.iterations} (epochs x steps)"),
        ("patch", sizes, f"batch size {settings.batch_size}"),
        ("processes", str(preview.processes), "memory is that of one" if preview.processes > 1 else ""),
        ("precision", compute.precision, f"on {compute.device_name}: {compute.reason}"),
        ("augmentation", settings.augmentation, record.device.get("augmentation_reason", "")),
        ("learning rate", f"{settings.learning_rate:g}", f"{of_optimizer}, seed {settings.seed}"),
    ]
    if preview.seconds_a_step is not None and preview.seconds_in_all is not None:
        about = f"about {duration(preview.seconds_in_all)}"
        rows.append(("time", about, f"{preview.seconds_a_step:.3g} s a step, data and evaluation not counted"))
    if memory:
        rows += [
            ("memory", f"{mebibytes(memory.peak_bytes)} MiB", f"of {mebibytes(preview.free_bytes)} MiB that are free"),
            ("  parameters", f"{mebibytes(memory.parameter_bytes)} MiB", ""),
            ("  gradients", f"{mebibytes(memory.gradient_bytes)} MiB", ""),
            ("  optimizer", f"{mebibytes(memory.optimizer_bytes)} MiB", ""),
            ("  saved for backward", f"{mebibytes(memory.saved_bytes)} MiB", "goes while gradients come"),
        ]
    else:
        rows.append(("memory", "-", needs.problem))
    console.table(("what", "", ""), rows)
    for line in preview.would_fit:
        console.warn(line)


def _how_it_begins(preview: TrainingPreview) -> str:
    run = preview.training.run
    if preview.busy:
        return f"is being trained by process {preview.busy.get('process')} on {preview.busy.get('host')}"
    if not preview.training.goes_on:
        return "new, what is there is removed" if run.configuration_file.exists() else "new"
    return "finished, is only evaluated" if run.is_finished else f"goes on after epoch {preview.epochs_done}"
