"""umamba models: which models there are, and what each needs to train."""

from __future__ import annotations

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
)


def models(
    workspace: WorkspaceArgument,
    configuration: ConfigurationOption = "3d_fullres",
    batch_size: BatchSizeOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show all models with the parameters and the training memory that a configuration gives them. Trains nothing."""
    from umamba_cli.pipeline.data.workspace import open_workspace
    from umamba_cli.pipeline.workflows.models import survey_models

    console = Console(json_output, quiet, verbose)
    with console.progress() as on_progress:
        survey = survey_models(
            open_workspace(workspace),
            configuration,
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
        if model.memory:
            figures = (mebibytes(model.memory.saved_bytes), mebibytes(model.memory.peak_bytes))
        rows.append((model.name, parameters, *figures, model.problem or model.description))
    console.table(("model", "parameters", "saved MiB", "training MiB", ""), rows)
    console.say(f"{mebibytes(survey.free_bytes)} MiB are free on {survey.compute.device_name}")
