"""From a dataset's folder to a planned workspace: check, measure, decide, split."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from umamba_cli.pipeline.data.checks import CheckReport, load_and_check
from umamba_cli.pipeline.data.dataset import Case, Dataset, DatasetDescription, open_dataset
from umamba_cli.pipeline.data.files import json_text, write_json
from umamba_cli.pipeline.data.sizes import describe_case, workers_that_fit
from umamba_cli.pipeline.data.splits import make_folds, write_folds
from umamba_cli.pipeline.data.workspace import Workspace, create_workspace, require_own_folder
from umamba_cli.pipeline.parallel import for_each_case
from umamba_cli.pipeline.planning.decisions import Decision
from umamba_cli.pipeline.planning.fingerprint import (
    CaseFingerprint,
    Fingerprint,
    combine,
    measure_case,
    voxels_per_case,
)
from umamba_cli.pipeline.planning.planner import PlannedDataset, PlanOptions, make_plans
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


def plan_workspace(
    dataset_folder: Path,
    workspace_folder: Path,
    options: PlanOptions,
    *,
    group_by: str | None = None,
    workers: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> PlanResult:
    """Check and measure every case, decide the plans, and write them into the workspace.

    Nothing is written before every case was found usable. A `splits.json` that is there is kept, unless `group_by` asks
    for another one.

    Raises:
        InputError: the dataset, a case, an option or the workspace's folder cannot be used.
        WorkError: a worker died or a file could not be written.
    """
    dataset = open_dataset(dataset_folder)
    folds = make_folds([case.identifier for case in dataset.cases], group_by=group_by)
    require_own_folder(workspace_folder, dataset)
    planned, fingerprint = _measure_and_plan(dataset, options, workers, on_progress)
    workspace = create_workspace(workspace_folder, dataset)
    write_json(workspace.fingerprint_file, fingerprint)
    replaced = workspace.set_plans_aside(json_text(planned.plans))
    write_plans(workspace.plans_file, planned.plans)
    keep = workspace.splits_file.exists() and group_by is None
    if not keep:
        write_folds(workspace.splits_file, folds)
    return PlanResult(workspace, dataset, planned.plans, planned.decisions, keep, replaced)


def _measure_and_plan(
    dataset: Dataset, options: PlanOptions, workers: int | None, on_progress: OnProgress
) -> tuple[PlannedDataset, Fingerprint]:
    measure = partial(
        check_and_measure,
        description=dataset.description,
        most_voxels=voxels_per_case(len(dataset.cases), dataset.description.num_channels),
    )
    measured = for_each_case(
        measure,
        dataset.cases,
        task="plan",
        name=lambda case: case.identifier,
        describe=describe_case,
        workers=workers or workers_that_fit(dataset.cases),
        on_progress=on_progress,
    )
    problems = {
        case.identifier: result
        for case, result in zip(dataset.cases, measured, strict=True)
        if isinstance(result, tuple)
    }
    CheckReport(len(dataset.cases), problems).raise_if_bad()
    fingerprint = combine([result for result in measured if isinstance(result, CaseFingerprint)])
    return make_plans(fingerprint, dataset.description, dataset.name, options), fingerprint


def check_and_measure(
    case: Case, *, description: DatasetDescription, most_voxels: int
) -> CaseFingerprint | tuple[str, ...]:
    """One case's share of the fingerprint, or all that is wrong with it."""
    checked = load_and_check(case, description)
    if checked.problems or checked.image is None or checked.label_map is None:
        return checked.problems
    return measure_case(case, checked.image, checked.label_map, most_voxels=most_voxels)
