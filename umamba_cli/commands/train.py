"""umamba train: train a model on one fold, then predict and evaluate its held-back cases."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from umamba_cli.commands._console import Console, elapsed, number, show_label_means
from umamba_cli.commands._options import (
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

ModelOption = Annotated[str, typer.Option("--model", "-m", help="unet, umamba-none, umamba-bot, umamba-enc.")]
FoldOption = Annotated[str, typer.Option("--fold", "-f", help="0 to 4, or all to train on every case.")]
EpochsOption = Annotated[int | None, typer.Option("--epochs", min=1, help="Epochs.", show_default="by plans")]
IterationsOption = Annotated[
    int | None, typer.Option("--iterations", min=1, help="Steps an epoch.", show_default="by plans")
]
BatchSizeOption = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Patches a step.", show_default="by plans")
]
PrecisionChoice = Annotated[
    str | None, typer.Option("--precision", help="auto, fp32, bf16 or fp16.", show_default="auto")
]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="Of all that is random.", show_default="0")]
TagOption = Annotated[str, typer.Option("--tag", help="Keep this training apart from others of the model.")]
RestartOption = Annotated[bool, typer.Option("--restart", help="Remove this training and start it over.")]


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
    console.log_to(opened.logs, "train")
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
    began = time.monotonic()
    with console.progress() as on_progress:
        trained = train_fold(job, on_progress=on_progress)
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
