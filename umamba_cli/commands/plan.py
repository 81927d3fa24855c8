"""umamba plan: measure a dataset and decide how to segment it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from umamba_cli.commands._console import Console
from umamba_cli.commands._options import (
    DatasetArgument,
    JsonOption,
    QuietOption,
    VerboseOption,
    WorkersOption,
    WorkspaceOption,
)

if TYPE_CHECKING:
    from umamba_cli.pipeline.planning.presets import PresetName

MemoryOption = Annotated[
    float | None,
    typer.Option("--memory", min=1, help="GPU memory to plan for, in GB.", show_default="what the preset says, 8"),
]
PresetOption = Annotated[str, typer.Option("--preset", help="default, resenc-m, resenc-l, resenc-xl or cpu.")]
SpacingOption = Annotated[
    str | None,
    typer.Option("--spacing", metavar="Z,Y,X", help="Target spacing in mm.", show_default="by rule"),
]
GroupByOption = Annotated[
    str | None,
    typer.Option("--group-by", metavar="REGEX", help="Keep cases whose identifiers match alike in one fold."),
]


def plan(
    dataset: DatasetArgument,
    workspace: WorkspaceOption = None,
    memory: MemoryOption = None,
    preset: PresetOption = "default",
    spacing: SpacingOption = None,
    group_by: GroupByOption = None,
    workers: WorkersOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check and measure a dataset, decide patch size, network and all else, and say why."""
    from umamba_cli.pipeline.data.workspace import default_workspace
    from umamba_cli.pipeline.planning.planner import PlanOptions
    from umamba_cli.pipeline.workflows.plan import plan_workspace

    console = Console(json_output, quiet, verbose)
    options = PlanOptions(memory_gb=memory, preset=_preset(preset), spacing_mm=_spacing(spacing))
    with console.progress() as on_progress:
        planned = plan_workspace(
            dataset,
            workspace or default_workspace(dataset),
            options,
            group_by=group_by,
            workers=workers,
            on_progress=on_progress,
        )
    console.log_to(planned.workspace.logs, "plan")
    console.result(
        {
            "workspace": planned.workspace.folder,
            "cases": len(planned.dataset.cases),
            "configurations": list(planned.plans.configurations),
            "decisions": [vars(decision) for decision in planned.decisions],
        }
    )
    rows = [(d.configuration or "all", d.what, d.value, d.reason) for d in planned.decisions]
    console.table(("configuration", "what", "decision", "why"), rows)
    if planned.plans_replaced:
        console.say(f"the plans that were there are in {planned.workspace.previous_plans_file} now")
    if planned.folds_kept:
        console.say(f"the folds in {planned.workspace.splits_file} were kept")
    console.say(f"plans of {len(planned.dataset.cases)} cases are in {planned.workspace.plans_file}")
    console.say(f"next: umamba preprocess {planned.workspace.folder}")


def _preset(name: str) -> PresetName:
    from umamba_cli.pipeline.errors import InputError
    from umamba_cli.pipeline.planning.presets import PRESETS

    for known in PRESETS:
        if name == known:
            return known
    raise InputError(f"there is no preset {name!r}", next_step=f"choose one of {', '.join(PRESETS)}")


def _spacing(text: str | None) -> tuple[float, ...] | None:
    from umamba_cli.pipeline.errors import InputError

    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or any(not value > 0 for value in values):
        raise InputError(f"--spacing {text!r} is not three lengths in mm", next_step="give Z,Y,X, as in 3,0.8,0.8")
    return values
