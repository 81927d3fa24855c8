"""Preprocessing all cases of a workspace for one configuration, in worker processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from umamba_cli.pipeline.data.checks import CheckReport, load_and_check
from umamba_cli.pipeline.data.dataset import Case, Dataset, DatasetDescription
from umamba_cli.pipeline.data.store import Store
from umamba_cli.pipeline.data.workspace import Workspace
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.parallel import for_each_case
from umamba_cli.pipeline.planning.plans import Plans, read_plans
from umamba_cli.pipeline.preprocessing.case import plans_digest, preprocess, sample_class_voxels, source_state
from umamba_cli.pipeline.progress import OnProgress, ignore_progress
from umamba_cli.pipeline.resources import default_workers, require_disk


@dataclass(frozen=True)
class PreprocessingResult:
    """What `preprocess_workspace` did for one configuration."""

    configuration: str
    cases: int
    kept: int
    """Cases that were there already, made from the same files with the same plans."""


@dataclass(frozen=True)
class _Job:
    """One case's work, as a worker process gets it."""

    case: Case
    description: DatasetDescription
    plans: Plans
    configuration: str
    store: Store


def preprocess_workspace(
    workspace: Workspace,
    configuration: str,
    *,
    workers: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> PreprocessingResult:
    """Preprocess every case of a workspace's dataset; complete ones are kept, so it can be run again after a kill.

    Raises:
        InputError: no such configuration, a case cannot be used, or the disk is too small.
        WorkError: a worker died or a file could not be written.
    """
    plans = read_plans(workspace.plans_file)
    plans.configuration(configuration)
    dataset = workspace.dataset()
    store = Store(workspace.preprocessed(configuration))
    jobs = [_Job(case, dataset.description, plans, configuration, store) for case in dataset.cases]
    todo = [job for job in jobs if not _is_current(job)]
    voxels = _voxels_a_case(plans, configuration)
    require_disk(store.folder, int(len(todo) * voxels * (4 * dataset.description.num_channels + 1)))
    # A case and its float64 intermediate of one channel; an image may be several times the median's size.
    workers = workers or default_workers(int(20 * voxels * (dataset.description.num_channels + 2)))
    problems: list[tuple[str, ...]] = for_each_case(
        _preprocess_and_store,
        todo,
        task="preprocess",
        name=lambda job: job.case.identifier,
        workers=workers,
        on_progress=on_progress,
    )
    found = {job.case.identifier: phrases for job, phrases in zip(todo, problems, strict=True) if phrases}
    CheckReport(len(jobs), found).raise_if_bad()
    return PreprocessingResult(configuration, len(jobs), len(jobs) - len(todo))


def require_preprocessed(
    workspace: Workspace, plans: Plans, configuration: str, dataset: Dataset, identifiers: Sequence[str]
) -> Store:
    """The store of a configuration, where it holds all these cases, made with these plans from the present files.

    Raises:
        InputError: cases are missing, or were made with other plans or from other files.
    """
    cases = dataset.select(identifiers)
    store = Store(workspace.preprocessed(configuration))
    digest = plans_digest(plans, plans.configuration(configuration), dataset.description)
    origins = {case.identifier: store.origin(case.identifier) for case in cases}
    how = f"run `umamba preprocess {workspace.folder} -c {configuration}`"
    if missing := [name for name, origin in origins.items() if origin is None]:
        raise InputError(
            f"{workspace.folder} is not preprocessed for {configuration}: "
            f"{len(missing)} of {len(cases)} cases are missing",
            next_step=how,
        )
    if other := [case for case in cases if origins[case.identifier] != (digest, source_state(case))]:
        raise InputError(
            f"{len(other)} of {len(cases)} cases of {configuration} were preprocessed with other plans "
            "or from other files",
            next_step=how,
        )
    return store


def _voxels_a_case(plans: Plans, configuration: str) -> float:
    sizes = plans.configuration(configuration).median_image_size_in_voxels
    slices = plans.original_median_shape_after_transp[: 3 - len(sizes)]
    return math.prod((*slices, *sizes))


def _is_current(job: _Job) -> bool:
    digest = plans_digest(job.plans, job.plans.configuration(job.configuration), job.description)
    return job.store.origin(job.case.identifier) == (digest, source_state(job.case))


def _preprocess_and_store(job: _Job) -> tuple[str, ...]:
    """Preprocess one case into the store; returns what is wrong with it where it cannot be used, otherwise nothing."""
    name = job.case.identifier
    checked = load_and_check(job.case, job.description)
    if checked.problems or checked.image is None or checked.label_map is None:
        return checked.problems
    configuration = job.plans.configuration(job.configuration)
    case = preprocess(checked.image, checked.label_map.labels, job.plans, configuration)
    assert case.labels is not None
    properties = {
        "identifier": name,
        "digest": plans_digest(job.plans, configuration, job.description),
        "source": source_state(job.case),
        "shape": case.labels.shape,
        "class_counts": np.bincount(np.maximum(case.labels, 0).ravel(), minlength=job.description.num_classes),
        "geometry": case.geometry.to_json(),
    }
    job.store.write(
        name,
        case.image,
        case.labels[None],
        sample_class_voxels(case.labels, tuple(job.description.foreground), name),
        properties,
        patch_size=configuration.patch_size,
    )
    return ()
