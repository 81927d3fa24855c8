"""umamba models: which models there are, and what each needs to train."""

from __future__ import annotations

from typing import Annotated

import typer

from umamba_cli.commands._console import Console, mebibytes
from umamba_cli.commands._options import (
    BatchSizeOption,
    ConfigurationOption,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    QuietOption,
    VerboseOption,
    WorkspaceArgument,
    split_names,
)

ModelsOption = Annotated[
    str | None,
    typer.Option(
        "--models",
        "-m",
        metavar="NAME,NAME,...",
        help="Models, or variants of U-Mamba such as umamba-bot+s4d, umamba-enc+mamba2-both.",
        show_default="all",
    ),
]


def models(
    workspace: WorkspaceArgument,
    configuration: ConfigurationOption = "3d_fullres",
    names: ModelsOption = None,
    batch_size: BatchSizeOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show models with their paper, parameters, multiply-adds and training memory for a configuration.

    Trains nothing. Multiply-adds are those of predicting one patch.
    """
    from umamba_cli.pipeline.data.workspace import open_workspace
    from umamba_cli.pipeline.workflows.models import survey_models

    console = Console(json_output, quiet, verbose)
    with console.progress() as on_progress:
        survey = survey_models(
            open_workspace(workspace),
            configuration,
            models=split_names(names) if names is not None else (),
            batch_size=batch_size,
            device=device,
            precision=precision,
            on_progress=on_progress,
        )
    console.result(survey.to_json())
    sizes = "x".join(str(n) for n in survey.patch_size)
    console.say(f"{configuration}: patch {sizes}, batch size {survey.batch_size}, {survey.compute.precision}")
    rows = []
    for model in survey.models:
        parameters = "-" if model.parameters is None else f"{model.parameters:,}"
        figures = ("-", "-")
        operations = "-" if model.multiply_adds is None else f"{model.multiply_adds / 1e9:,.2f}"
        if model.memory:
            figures = (mebibytes(model.memory.saved_bytes), mebibytes(model.memory.peak_bytes))
        needs = f"{model.needs} ({'installed' if model.is_installed else 'not installed'})" if model.needs else "-"
        rows.append((model.name, parameters, operations, *figures, needs, model.description))
    console.table(("model", "parameters", "G multiply-adds", "saved MiB", "training MiB", "needs", "paper"), rows)
    console.say(f"{mebibytes(survey.free_bytes)} MiB are free on {survey.compute.device_name}")
    for text, found in (
        ("do not fit into that", [model for model in survey.models if survey.fits(model) is False]),
        ("take --mixer and --directions", [model for model in survey.models if model.has_mixer]),
        ("do not know --checkpointing", [m for m in survey.models if m.memory and not m.can_checkpoint]),
    ):
        if found:
            console.say(f"{text}: {', '.join(model.name for model in found)}")
    for model in survey.models:
        if model.problem:
            is_named = model.problem.startswith(f"{model.name} ")
            console.warn(model.problem if is_named else f"{model.name}: {model.problem}")
