"""Two stages of a cascade: where the first one's training is, and what it hands on to the second.

That is its label map on the second one's grid, which the second takes as further channels of the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.inference.export import labels_of_logits, resample_logits
from umamba_cli.pipeline.planning.plans import Configuration
from umamba_cli.pipeline.preprocessing.case import CaseGeometry
from umamba_cli.pipeline.runs.record import RunRecord


def labels_for_next_stage(
    logits: NDArray[np.float32],
    geometry: CaseGeometry,
    configuration: Configuration,
    dataset: DatasetDescription,
    next_geometry: CaseGeometry,
) -> NDArray[np.uint16]:
    """The label map that a stage predicts, on the preprocessed grid of the next one.

    Both grids span the same crop of the image, so that resampling to the other's shape is all it takes.

    Args:
        logits: float32 (outputs, z, y, x) as this stage's network sees the case.
        geometry: how the case was preprocessed for this stage.
        configuration: of this stage; says how probabilities are resampled.
        dataset: says what the outputs are.
        next_geometry: how the case was preprocessed for the next stage.

    Returns:
        (z, y, x) of `next_geometry.new_shape`.
    """
    resampled = resample_logits(
        logits, configuration, geometry.new_spacing_mm, next_geometry.new_shape, next_geometry.new_spacing_mm
    )
    return labels_of_logits(resampled, dataset)


def with_label_channels(
    image: NDArray[np.float32], labels: NDArray[np.integer[Any]], values: Sequence[int]
) -> NDArray[np.float32]:
    """An image (channels, z, y, x) followed by a channel for each of `values`: 1 where `labels` (z, y, x) has it."""
    extra = np.stack([labels == value for value in values]).astype(np.float32)
    return np.concatenate([image, extra])


def find_previous_runs(run: Run, records: Iterable[RunRecord]) -> list[Run]:
    """The runs of the previous stage that the records of a cascade's folds name.

    Args:
        run: any fold of the cascade; the others' runs lie in the same folder of all runs.
        records: of the folds.

    Raises:
        InputError: one of the runs is gone or not finished.
    """
    records = list(records)
    first = records[0]
    stage = str(first.network_configuration.previous_stage)
    runs_folder = run.folder.resolve().parent.parent
    names = dict.fromkeys(name for record in records for name in record.previous_runs)
    runs = [Run(runs_folder / name) for name in names]
    gone = [before for before in runs if not before.is_finished]
    if gone or not runs:
        folds = [before.folder.name.removeprefix("fold_") for before in gone]
        raise InputError(
            f"{run.folder} needs what {stage} finds, and "
            + (
                f"{len(gone)} of {len(runs)} trainings of that are gone"
                if runs
                else "its run.json names no run of that"
            ),
            details=[str(before.folder) for before in gone],
            next_step=f"put them back, or train them again: {train_command(runs_folder.parent, first, folds or [0])}",
        )
    return runs


def require_same_images(record: RunRecord, previous: RunRecord, source: str) -> None:
    """Two stages must see images in the same axis order, with the same channels and the same labels.

    Raises:
        InputError: they do not; `source` names the previous stage's run.
    """

    def seen(of: RunRecord) -> tuple[object, ...]:
        return of.dataset.labels, of.dataset.regions_class_order, of.dataset.num_channels, of.plans.transpose_forward

    if seen(record) != seen(previous):
        raise InputError(
            f"{source} was trained with other labels, other channels or another axis order than "
            f"{record.configuration} of {record.variant.title}",
            next_step=f"train both on the same dataset and plans, {previous.configuration} first, with --restart",
        )


def train_command(workspace: Path, record: RunRecord, folds: Sequence[int | str]) -> str:
    """The command that trains folds of the previous stage of a cascade, for a message; finished ones are kept."""
    numbers = sorted(int(fold) for fold in folds if fold != "all")
    which = "all" if not numbers else str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
    tag = f" --tag {record.tag}" if record.tag != record.variant.tag else ""
    stage = record.network_configuration.previous_stage
    return f"`umamba train {workspace} -c {stage} -m {record.variant.title} -f {which}{tag}`"
