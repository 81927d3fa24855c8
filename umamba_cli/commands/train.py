"""umamba train: train a model on one fold, then predict and evaluate its held-back cases."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from umamba_cli.commands._console import Console, elapsed, mebibytes, number, show_label_means
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
    parse_fold,
)

if TYPE_CHECKING:
    from umamba_cli.pipeline.workflows.preview import TrainingPreview
    from umamba_cli.pipeline.workflows.train import TrainingResult

ModelOption = Annotated[str, typer.Option("--model", "-m", help="unet, umamba-bot, ...: see `umamba models`.")]
FoldOption = Annotated[str, typer.Option("--fold", "-f", help="0 to 4, or all to train on every case.")]
EpochsOption = Annotated[int | None, typer.Option("--epochs", min=1, help="Epochs.", show_default="by plans")]
IterationsOption = Annotated[
    int | None, typer.Option("--iterations", min=1, help="Steps an epoch.", show_default="by plans")
]
PrecisionChoice = Annotated[
    str | None, typer.Option("--precision", help="auto, fp32, bf16 or fp16.", show_default="auto")
]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="Of all that is random.", show_default="0")]
TagOption = Annotated[str, typer.Option("--tag", help="Keep this training apart from others of the model.")]
RestartOption = Annotated[bool, typer.Option("--restart", help="Remove this training and start it over.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and show what would be trained; change nothing.")
]


def train(
    workspace: WorkspaceArgument,
    configuration: ConfigurationOption = "3d_fullres",
    model: ModelOption = "umamba-bot",
    fold: FoldOption = "0",
    epochs: EpochsOption = None,
    iterations: IterationsOption = None,
    batch_size: BatchSizeOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionChoice = None,
    seed: SeedOption = None,
    tag: TagOption = "",
    restart: RestartOption = False,
    dry_run: DryRunOption = False,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a model. A training that was stopped goes on where it was; one that is finished is only evaluated."""
    from umamba_cli.pipeline.data.workspace import open_workspace
    from umamba_cli.pipeline.training.settings import SettingsChosen
    from umamba_cli.pipeline.workflows.train import TrainingJob, train_fold

    console = Console(json_output, quiet, verbose)
    opened = open_workspace(workspace)
    job = TrainingJob(
        workspace=opened,
        configuration=configuration,
        model=model,
        fold=parse_fold(fold),
        tag=tag,
        chosen=SettingsChosen(epochs, iterations, batch_size, precision, seed),
        device=device,
        restart=restart,
        workers=workers,
        threads=threads,
    )
    if dry_run:
        from umamba_cli.pipeline.workflows.preview import preview_training

        _show_preview(console, preview_training(job))
        return
    console.log_to(opened.logs, "train")
    began = time.monotonic()
    with console.progress() as on_progress:
        trained = train_fold(job, on_progress=on_progress)
    _show_trained(console, trained, began)


def _show_trained(console: Console, trained: TrainingResult, began: float) -> None:
    evaluation = trained.evaluation
    console.result(
        {
            "run": trained.run.folder,
            "epochs": len(trained.log),
            "device": trained.compute.device_name,
            "precision": trained.compute.precision,
            "validation": evaluation.to_json() if evaluation else None,
        }
    )
    console.say(f"trained on {trained.compute.device_name} in {trained.compute.precision}: {trained.compute.reason}")
    if evaluation:
        console.say(f"the {len(evaluation.cases)} cases held back:")
        show_label_means(console, evaluation)
        console.say(f"mean Dice {number(evaluation.foreground_mean.dice)}")
    console.say(f"the model is in {trained.run.folder} ({elapsed(began)})")
    console.say(f"next: umamba predict {trained.run.folder.parent} -i IMAGES -o predictions")


def _show_preview(console: Console, preview: TrainingPreview) -> None:
    console.result(preview.to_json())
    record, compute, settings = preview.training.record, preview.training.compute, preview.settings
    needs, memory = preview.needs, preview.needs.memory
    parameters = "-" if needs.parameters is None else f"{needs.parameters:,}"
    sizes = "x".join(str(n) for n in record.network_configuration.patch_size)
    rows = [
        ("run", str(preview.training.run.folder), _how_it_begins(preview)),
        ("model", needs.name, needs.description),
        ("parameters", parameters, ""),
        ("cases", f"{len(record.train_cases)}", f"{len(record.val_cases)} held back"),
        ("steps", f"{preview.steps:,}", f"{settings.epochs} epochs of {settings.iterations}"),
        ("patch", sizes, f"batch size {settings.batch_size}"),
        ("precision", compute.precision, f"on {compute.device_name}: {compute.reason}"),
        ("learning rate", f"{settings.learning_rate:g}", f"momentum {settings.momentum:g}, seed {settings.seed}"),
    ]
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
    if preview.fits is False:
        console.warn("the device has too little memory free: take a smaller --batch-size, or plan for less memory")
    console.say("nothing was changed; leave --dry-run out to train")


def _how_it_begins(preview: TrainingPreview) -> str:
    run = preview.training.run
    if not preview.training.goes_on:
        return "new, what is there is removed" if run.folder.exists() else "new"
    return "finished, is only evaluated" if run.is_finished else f"goes on after epoch {preview.epochs_done}"
