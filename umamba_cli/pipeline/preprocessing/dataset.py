"""Preprocessing all cases of a workspace for one configuration, in worker processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data.checks import CheckReport, load_and_check
from umamba_cli.pipeline.data.dataset import Case, Dataset, DatasetDescription, composed
from umamba_cli.pipeline.data.files import remove_leftovers
from umamba_cli.pipeline.data.sizes import describe_case, workers_that_fit
from umamba_cli.pipeline.data.store import Store
from umamba_cli.pipeline.data.workspace import Workspace
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.parallel import OnCluster, for_each_case
from umamba_cli.pipeline.planning.plans import Configuration, Plans, read_plans
from umamba_cli.pipeline.preprocessing.case import (
    CaseGeometry,
    crop_case,
    normalise_and_resample,
    plans_digest,
    sample_annotated_voxels,
    sample_class_voxels,
    source_state,
)
from umamba_cli.pipeline.progress import OnProgress, ignore_progress
from umamba_cli.pipeline.resources import require_disk
from umamba_cli.pipeline.shards import Shard


@dataclass(frozen=True)
class PreprocessingResult:
    """What `preprocess_workspace` did for one configuration."""

    configuration: str
    cases: int
    kept: int
    """Cases that were there already, made from the same files with the same plans."""


@dataclass(frozen=True)
class PreprocessingJob:
    """One case's work, as a worker process gets it."""

    case: Case
    description: DatasetDescription
    plans: Plans
    configuration: str
    store: Store
    digest: str
    """Of the plans; see `plans_digest`."""


def preprocess_workspace(
    workspace: Workspace,
    configuration: str,
    *,
    workers: int | None = None,
    shard: Shard | None = None,
    cluster: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> PreprocessingResult:
    """Preprocess every case of a workspace's dataset; complete ones are kept, so it can be run again after a kill.

    Args:
        workspace: planned.
        configuration: of its plans.
        workers: processes; None means as many as the machine allows.
        shard: the part of the cases to preprocess; None: all.
        cluster: the address of a Dask scheduler whose workers do it; None: this machine does.
        on_progress: told after each case.

    Raises:
        InputError: no such configuration or cluster, a case cannot be used, or the disk is too small.
        WorkError: a worker died or a file could not be written.
    """
    workspace = Workspace(workspace.folder.absolute())  # so that other machines find it
    plans = read_plans(workspace.plans_file)
    dataset = workspace.dataset()
    store = preprocessed_store(workspace, plans, configuration, dataset.description)
    digest = plans_digest(plans, plans.configuration(configuration), dataset.description)
    cases = shard.of(dataset.cases, lambda case: composed(case.identifier)) if shard else dataset.cases
    jobs = [PreprocessingJob(case, dataset.description, plans, configuration, store, digest) for case in cases]
    todo = [job for job in jobs if not _is_current(job)]
    _require_images(workspace, dataset, configuration, [job.case for job in todo])
    remove_leftovers(store.folder)
    voxels = _voxels_a_case(plans, configuration)
    require_disk(store.folder, len(todo) * voxels * (4 * dataset.description.num_channels + 1))
    if not cluster:
        workers = workers or workers_for(plans, configuration, [job.case for job in todo])
    problems: list[tuple[str, ...]] = for_each_case(
        preprocess_and_store,
        todo,
        task=f"preprocess {configuration}",
        name=lambda job: job.case.identifier,
        describe=lambda job: describe_case(job.case),
        workers=workers,
        cluster=OnCluster(cluster, (dataset.folder,), written=workspace.folder) if cluster else None,
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
    store = preprocessed_store(workspace, plans, configuration, dataset.description)
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


def preprocessed_store(
    workspace: Workspace, plans: Plans, configuration: str, description: DatasetDescription
) -> Store:
    """Where the preprocessed cases of a configuration lie, or will."""
    return Store(workspace.preprocessed(stored_as(plans, configuration, description)))


def stored_as(plans: Plans, configuration: str, description: DatasetDescription) -> str:
    """The configuration under whose name the preprocessed cases of another one are stored: mostly its own.

    One that inherits all that preprocessing asks for shares its parent's cases (3d_cascade_fullres those of
    3d_fullres), so that nothing is made and stored twice. It may ask for its own with a `data_identifier`, by which
    nnU-Net tells them apart.
    """
    own = plans.configuration(configuration)
    parent = plans.configurations[configuration].get("inherits_from")
    if parent is None or own.data_identifier != plans.configuration(parent).data_identifier:
        return configuration
    needs, parents = (plans_digest(plans, each, description) for each in (own, plans.configuration(parent)))
    return stored_as(plans, parent, description) if needs == parents else configuration


def workers_for(plans: Plans, configuration: str, cases: Sequence[Case] = ()) -> int:
    """Worker processes that fit the cores and, with the largest case each, the free memory."""
    growth = _voxels_a_case(plans, configuration) / math.prod(plans.original_median_shape_after_transp)
    return workers_that_fit(cases, growth=growth)


def _require_images(workspace: Workspace, dataset: Dataset, configuration: str, todo: Sequence[Case]) -> None:
    """Refuse to preprocess what was imported without images."""
    if todo and dataset.folder.is_relative_to(workspace.imported.resolve()):
        raise InputError(
            f"{len(todo)} of {len(dataset.cases)} cases are not preprocessed for {configuration}, and their images are "
            f"not there: {workspace.folder} was made of what nnU-Net preprocessed",
            next_step=f"run `umamba plan DATASET --from-nnunet FOLDER -w {workspace.folder}` with the raw dataset and "
            "nnU-Net's preprocessed folder, or preprocess it in nnU-Net first",
        )


def _voxels_a_case(plans: Plans, configuration: str) -> float:
    """Voxels of a typical case after resampling, by the spacing alone: an inherited median size is another's."""
    spacing = plans.original_median_spacing_after_transp
    new_spacing = plans.configuration(configuration).data_spacing(spacing)
    sizes = zip(plans.original_median_shape_after_transp, spacing, new_spacing, strict=True)
    return math.prod(n * (old / new) for n, old, new in sizes)


def _is_current(job: PreprocessingJob) -> bool:
    return job.store.origin(job.case.identifier) == (job.digest, source_state(job.case))


def preprocess_and_store(job: PreprocessingJob) -> tuple[str, ...]:
    """Preprocess one case into the store; returns what is wrong with it where it cannot be used, otherwise nothing."""
    checked = load_and_check(job.case, job.description)
    if checked.problems or checked.image is None or checked.label_map is None:
        return checked.problems
    configuration = job.plans.configuration(job.configuration)
    cropped = crop_case(checked.image, checked.label_map.labels, job.plans)
    del checked  # before the next copy is made
    case = normalise_and_resample(cropped, job.plans, configuration)
    del cropped
    assert case.labels is not None
    store_case(
        job.store,
        job.case,
        case.image,
        case.labels,
        case.geometry,
        digest=job.digest,
        configuration=configuration,
        description=job.description,
    )
    return ()


def store_case(
    store: Store,
    case: Case,
    image: NDArray[np.float32] | Path,
    labels: NDArray[np.integer[Any]],
    geometry: CaseGeometry,
    *,
    digest: str,
    configuration: Configuration,
    description: DatasetDescription,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write a preprocessed case into a store, with all that is noted about it.

    Args:
        store: of the configuration.
        case: with the files that a later run shall find unchanged.
        image: float32 (channels, z, y, x), or a `.b2nd` file that holds it; see `Store.write`.
        labels: (z, y, x), -1 outside the nonzero mask.
        geometry: how the case came from its image.
        digest: of the plans; see `plans_digest`.
        configuration: one of the plans' configurations.
        description: of the dataset.
        more: further properties.

    Raises:
        WorkError: the disk is full or the folder cannot be written to.
    """
    # Plane by plane, because bincount makes 8 bytes of every label.
    values = max(description.known_values) + 1
    counts = np.sum([np.bincount(np.maximum(plane, 0).ravel(), minlength=values) for plane in labels], axis=0)
    properties = {
        "identifier": case.identifier,
        "digest": digest,
        "source": source_state(case),
        "shape": labels.shape,
        "class_counts": counts[: description.num_classes],  # without `ignore`
        "geometry": geometry.to_json(),
        **(more or {}),
    }
    ignored = description.ignore_label
    store.write(
        case.identifier,
        image,
        labels[None],
        sample_class_voxels(labels, tuple(description.foreground), case.identifier),
        properties,
        patch_size=configuration.patch_size,
        annotated_voxels=None if ignored is None else sample_annotated_voxels(labels, ignored, case.identifier),
    )
