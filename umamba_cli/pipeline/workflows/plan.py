"""From a dataset's folder to a planned workspace: check, measure, decide, split."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from umamba_cli.pipeline.data.checks import CaseReport, CheckReport, load_and_check, summarise
from umamba_cli.pipeline.data.dataset import Case, Dataset, DatasetDescription, open_dataset
from umamba_cli.pipeline.data.files import json_text, write_json
from umamba_cli.pipeline.data.sizes import describe_case, workers_that_fit
from umamba_cli.pipeline.data.splits import fold_notes, make_folds, read_folds, write_folds
from umamba_cli.pipeline.data.workspace import Workspace, create_workspace, require_own_folder
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.parallel import for_each_case
from umamba_cli.pipeline.planning.decisions import Decision
from umamba_cli.pipeline.planning.fingerprint import (
    CaseFingerprint,
    Fingerprint,
    combine,
    measure_case,
    voxels_per_case,
)
from umamba_cli.pipeline.planning.inherited import plans_like
from umamba_cli.pipeline.planning.planner import PlanOptions, make_plans
from umamba_cli.pipeline.planning.plans import Plans, write_plans
from umamba_cli.pipeline.progress import OnProgress, ignore_progress


@dataclass(frozen=True)
class PlanResult:
    """What was planned, and where it lies."""

    workspace: Workspace
    dataset: Dataset
    plans: Plans
    decisions: tuple[Decision, ...]

    folds_kept: bool
    """True where the workspace had a splits.json already, which was left as it is."""

    plans_replaced: bool
    """True where the workspace had another plans.json, which is `plans.previous.json` now: it may have been edited."""

    notes: tuple[str, ...]
    """What is odd about the dataset; see `CheckReport.notes`."""


def plan_workspace(
    dataset_folder: Path,
    workspace_folder: Path,
    options: PlanOptions,
    *,
    group_by: str | None = None,
    like: Path | None = None,
    workers: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> PlanResult:
    """Check and measure every case, decide the plans, and write them into the workspace.

    With `like`, a run's folder, the folder above its folds or a bundle, the plans are those of that model: its patch
    size, spacing, normalisation and network, so that a training can begin with its weights.

    Nothing is written before every case was found usable. A `splits.json` that is there is kept, unless `group_by` asks
    for another one.

    Raises:
        InputError: the dataset, a case, an option or the workspace's folder cannot be used.
        WorkError: a worker died or a file could not be written.
    """
    dataset = open_dataset(dataset_folder)
    folds = make_folds([case.identifier for case in dataset.cases], group_by=group_by)
    require_own_folder(workspace_folder, dataset)
    model = _model_plans(like, dataset) if like else None
    report, fingerprint = _measure(dataset, workers, on_progress)
    planned = make_plans(fingerprint, dataset.description, dataset.name, options)
    if model:
        planned = plans_like(model, planned, source=str(like))
    workspace = create_workspace(workspace_folder, dataset)
    write_json(workspace.fingerprint_file, fingerprint)
    replaced = workspace.set_plans_aside(json_text(planned.plans))
    write_plans(workspace.plans_file, planned.plans)
    keep = workspace.splits_file.exists() and group_by is None
    if not keep:
        write_folds(workspace.splits_file, folds)
    notes = report.notes
    if keep:
        notes += fold_notes(read_folds(workspace.splits_file), [case.identifier for case in dataset.cases])
    elif not folds:
        notes += ("a single case makes no folds: train with -f all",)
    return PlanResult(workspace, dataset, planned.plans, planned.decisions, keep, replaced, notes)


def _model_plans(model: Path, dataset: Dataset) -> Plans:
    """The plans that a model was trained with.

    Raises:
        InputError: there is no model, or it takes other images than the dataset's.
    """
    from umamba_cli.pipeline.workflows.initial_weights import read_source  # imports torch

    record = read_source(model, 0).record
    theirs, ours = record.dataset.num_channels, dataset.description.num_channels
    if theirs != ours:
        raise InputError(
            f"{model} takes images of {theirs} channels, those of {dataset.name} have {ours}",
            next_step="leave --like out; `umamba train --init-from` takes what fits",
        )
    return record.plans


def _measure(dataset: Dataset, workers: int | None, on_progress: OnProgress) -> tuple[CheckReport, Fingerprint]:
    measured = for_each_case(
        partial(
            check_and_measure,
            description=dataset.description,
            most_voxels=voxels_per_case(len(dataset.cases), dataset.description.num_channels),
        ),
        dataset.cases,
        task="plan",
        name=lambda case: case.identifier,
        describe=describe_case,
        workers=workers or workers_that_fit(dataset.cases),
        on_progress=on_progress,
    )
    report = summarise(dataset, [report for report, _ in measured])
    report.raise_if_bad()
    return report, combine([fingerprint for _, fingerprint in measured if fingerprint is not None])


def check_and_measure(
    case: Case, *, description: DatasetDescription, most_voxels: int
) -> tuple[CaseReport, CaseFingerprint | None]:
    """All there is to say of one case, and its share of the fingerprint where it can be used."""
    checked = load_and_check(case, description)
    if checked.problems or checked.image is None or checked.label_map is None:
        return checked.report, None
    return checked.report, measure_case(case, checked.image, checked.label_map, most_voxels=most_voxels)
