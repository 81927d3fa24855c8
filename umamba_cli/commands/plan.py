"""umamba plan: measure a dataset and decide how to segment it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umamba_cli.commands._console import Console
from umamba_cli.commands._options import (
    JsonOption,
    QuietOption,
    VerboseOption,
    WorkersOption,
    WorkspaceOption,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from umamba_cli.pipeline.interop.nnunet import ImportResult
    from umamba_cli.pipeline.planning.presets import PresetName
    from umamba_cli.pipeline.workflows.plan import PlanResult

OptionalDatasetArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="DATASET",
        help="Folder in nnU-Net raw layout (dataset.json, imagesTr, labelsTr). May be left out with --from-nnunet.",
    ),
]
MemoryOption = Annotated[
    float | None,
    typer.Option("--memory", min=1, help="GPU memory to plan for, in GB.", show_default="what the preset says, 8"),
]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", help="default, resenc-m, resenc-l, resenc-xl or cpu.", show_default="default"),
]
SpacingOption = Annotated[
    str | None,
    typer.Option("--spacing", metavar="Z,Y,X", help="Target spacing in mm.", show_default="by rule"),
]
GroupByOption = Annotated[
    str | None,
    typer.Option("--group-by", metavar="REGEX", help="Keep cases whose identifiers match alike in one fold."),
]


LikeOption = Annotated[
    Path | None,
    typer.Option(
        "--like",
        metavar="MODEL",
        help="Take over patch size, spacing and network of this run or bundle, to begin with its weights.",
    ),
]
FromNnunetOption = Annotated[
    Path | None,
    typer.Option(
        "--from-nnunet",
        metavar="FOLDER",
        help="Take the plans, folds and preprocessed cases of this folder of nnUNet_preprocessed.",
    ),
]


def plan(
    dataset: OptionalDatasetArgument = None,
    workspace: WorkspaceOption = None,
    memory: MemoryOption = None,
    preset: PresetOption = None,
    spacing: SpacingOption = None,
    group_by: GroupByOption = None,
    like: LikeOption = None,
    from_nnunet: FromNnunetOption = None,
    workers: WorkersOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check and measure a dataset, decide patch size, network and all else, and say why."""
    console = Console(json_output, quiet, verbose)
    if from_nnunet is not None:
        decided = {
            "--memory": memory,
            "--preset": preset,
            "--spacing": spacing,
            "--group-by": group_by,
            "--like": like,
        }
        _import(console, from_nnunet, dataset, workspace, workers, [k for k, v in decided.items() if v is not None])
        return

    from umamba_cli.pipeline.resources import prepare_workers

    prepare_workers(workers, "umamba_cli.cli", "umamba_cli.pipeline.workflows.plan", "SimpleITK")

    from umamba_cli.pipeline.data.workspace import default_workspace
    from umamba_cli.pipeline.errors import InputError
    from umamba_cli.pipeline.planning.planner import PlanOptions
    from umamba_cli.pipeline.workflows.plan import plan_workspace

    if dataset is None:
        raise InputError("DATASET is missing", next_step="give a dataset's folder, or --from-nnunet FOLDER")
    if like is not None and (given := [n for n, v in (("--memory", memory), ("--spacing", spacing)) if v is not None]):
        raise InputError(
            f"{' and '.join(given)} cannot be given with --like, whose plans are made", next_step="leave it out"
        )
    options = PlanOptions(memory_gb=memory, preset=_preset(preset or "default"), spacing_mm=_spacing(spacing))
    with console.progress() as on_progress:
        planned = plan_workspace(
            dataset,
            workspace or default_workspace(dataset),
            options,
            group_by=group_by,
            like=like,
            workers=workers,
            on_progress=on_progress,
        )
    _show(console, planned)


def _show(console: Console, planned: PlanResult) -> None:
    console.log_to(planned.workspace.logs, "plan")
    console.result(
        {
            "workspace": planned.workspace.folder,
            "cases": len(planned.dataset.cases),
            "configurations": list(planned.plans.configurations),
            "decisions": [vars(decision) for decision in planned.decisions],
            "notes": planned.notes,
        }
    )
    for note in planned.notes:
        console.warn(note)
    rows = [(d.configuration or "all", d.what, d.value, d.reason) for d in planned.decisions]
    console.table(("configuration", "what", "decision", "why"), rows)
    _show_kept(console, planned)
    console.say(f"plans of {len(planned.dataset.cases)} cases are in {planned.workspace.plans_file}")
    console.say(f"next: umamba preprocess {planned.workspace.folder}")


def _show_kept(console: Console, done: PlanResult | ImportResult) -> None:
    if done.plans_replaced:
        console.say(f"the plans that were there are in {done.workspace.previous_plans_file} now")
    if done.folds_kept:
        console.say(f"the folds in {done.workspace.splits_file} were kept")


def _import(
    console: Console,
    folder: Path,
    raw: Path | None,
    workspace: Path | None,
    workers: int | None,
    decided: Sequence[str],
) -> None:
    """Take what nnU-Net preprocessed; `decided` names the options that would overrule its plans."""
    from umamba_cli.pipeline.data.workspace import default_workspace
    from umamba_cli.pipeline.errors import InputError
    from umamba_cli.pipeline.interop.nnunet import import_preprocessed

    if decided:
        raise InputError(
            f"{' and '.join(decided)} cannot be given with --from-nnunet, whose plans are made",
            next_step="leave it out, or plan anew with `umamba plan DATASET` and preprocess again",
        )
    place = workspace or default_workspace(raw or (folder.parent if folder.is_file() else folder))
    with console.progress() as on_progress:
        imported = import_preprocessed(folder, place, raw=raw, workers=workers, on_progress=on_progress)
    _show_import(console, imported)


def _show_import(console: Console, imported: ImportResult) -> None:
    from umamba_cli.pipeline.geometry import numbers_text, size_text

    console.log_to(imported.workspace.logs, "plan")
    source, cases = imported.source, len(imported.source.identifiers)
    configurations = {name: source.plans.configuration(name) for name in source.folders}
    console.result(
        {
            "workspace": imported.workspace.folder,
            "cases": cases,
            "kept": imported.kept,
            "configurations": {
                name: {"patch_size": c.patch_size, "batch_size": c.batch_size, "spacing": c.spacing}
                for name, c in configurations.items()
            },
            "not_preprocessed": source.not_preprocessed,
            "rebuilt_references": imported.rebuilt,
        }
    )
    rows = [
        (name, size_text(c.patch_size), str(c.batch_size), numbers_text(c.spacing), str(cases))
        for name, c in configurations.items()
    ]
    console.table(("configuration", "patch size", "batch size", "spacing in mm", "cases"), rows)
    if source.not_preprocessed:
        console.say(f"nnU-Net planned but did not preprocess {', '.join(source.not_preprocessed)}")
    if imported.rebuilt:
        console.say(
            f"{len(imported.rebuilt)} of {cases} label maps were not in gt_segmentations; "
            "they were rebuilt from the preprocessed labels"
        )
    if not source.folds:
        console.say("there was no splits_final.json: the folds are those that nnU-Net makes")
    _show_kept(console, imported)
    kept = f", {imported.kept} of them were there already" if imported.kept else ""
    console.say(f"{cases} cases of {source.folder} are imported{kept}")
    first = "3d_fullres" if "3d_fullres" in configurations else next(iter(configurations))
    console.say(f"next: umamba train {imported.workspace.folder} -c {first}")


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
