"""One predicted label map held against its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data.checks import grid_problems, label_problems, label_values
from umamba_cli.pipeline.data.dataset import DatasetDescription, Label, values_of
from umamba_cli.pipeline.data.images import LabelMap, UnreadableImage, read_label_map
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.evaluation.instances import InstanceMetrics, instance_metrics, instances_of
from umamba_cli.pipeline.evaluation.metrics import LabelMetrics, Measures, in_neither, label_metrics, voxels_of
from umamba_cli.pipeline.geometry import Grid

Box = tuple[slice, ...]

_MOST_BOXES = 2**16
"""The highest label whose place is looked up in one pass over a label map."""


@dataclass(frozen=True)
class CellLabels:
    """The labels by which touching objects, such as cells, are told apart."""

    interior: int
    boundary: int


@dataclass(frozen=True)
class CaseMetrics:
    """The figures of every label, or region, in one case."""

    case: str
    """Its identifier."""

    labels: Mapping[Label, LabelMetrics]
    """By label value, or values of a region."""

    voxels: int = 0
    """That were counted: all but the ignored ones."""

    predicted: bool = True
    """Whether there is a prediction; without one nothing was found."""

    is_picture: bool = False
    """Whether distances are in pixels."""

    instances: InstanceMetrics | None = None
    """Of cells, where they are asked for."""

    prediction: Path | None = None
    """Where the label maps lie, as far as that is known."""

    reference: Path | None = None


@dataclass(frozen=True)
class Task:
    """What to look for in every case, and how to measure it."""

    description: DatasetDescription | None = None
    """Names the labels and regions, and tells which are allowed, and which to ignore; None: all that are found."""

    measures: Measures = field(default_factory=Measures)
    cells: CellLabels | None = None
    """Labels to be looked at as instances too."""


def evaluate_case(identifier: str, prediction: Path | None, reference: Path, task: Task) -> CaseMetrics:
    """Hold one prediction against its reference. Voxels that the reference marks as ignored count nowhere.

    Args:
        identifier: the case.
        prediction: the predicted label map; None counts as one without any label.
        reference: the reference label map.
        task: what to look for.

    Raises:
        InputError: the two cannot be compared; the problem says all that is wrong, without naming the case.
    """
    known = task.description.known_values if task.description else None
    problems: list[str] = []
    predicted = _read("prediction", prediction, known, problems) if prediction is not None else None
    wanted = _read("reference", reference, known, problems, predicted.grid if predicted else None)
    if predicted is not None and wanted is not None:
        problems += grid_problems("prediction", predicted.grid, "reference", wanted.grid)
    if problems or wanted is None:
        raise InputError("; ".join(problems), next_step="correct or remove it, then run the same command again")
    found = _whole_numbers(wanted.labels)
    covered = np.zeros_like(found) if predicted is None else _whole_numbers(predicted.labels)
    metrics = _case_metrics(identifier, covered, found, wanted.grid, task)
    return replace(metrics, predicted=prediction is not None, prediction=prediction, reference=reference)


def _case_metrics(identifier: str, covered: NDArray[Any], found: NDArray[Any], grid: Grid, task: Task) -> CaseMetrics:
    description, spacing_mm = task.description, None if grid.is_2d_file else grid.spacing_mm
    ignored = None
    if description is not None and description.ignore_label is not None:
        ignored = found == description.ignore_label
        covered, found = (np.where(ignored, 0, labels) for labels in (covered, found))
    if description is not None:
        labels: list[Label] = list(description.targets)
    else:
        values = {int(value) for array in (covered, found) for value in label_values(array)}
        labels = [*sorted(values - {0})]
    boxes = _boxes(labels, covered, found)
    metrics: dict[Label, LabelMetrics] = {}
    for label in labels:
        if (box := boxes[label]) is None:
            metrics[label] = in_neither(of_pictures=grid.is_2d_file)
            continue
        here, there = voxels_of(label, covered[box]), voxels_of(label, found[box])
        if ignored is not None and 0 in values_of(label):
            here, there = here & ~ignored[box], there & ~ignored[box]
        metrics[label] = label_metrics(here, there, label, spacing_mm, task.measures, in_plane=len(found) == 1)
    return CaseMetrics(
        identifier,
        metrics,
        voxels=found.size if ignored is None else found.size - int(np.count_nonzero(ignored)),
        is_picture=grid.is_2d_file,
        instances=_instances(covered, found, task.cells) if task.cells else None,
    )


def _instances(covered: NDArray[Any], found: NDArray[Any], cells: CellLabels) -> InstanceMetrics:
    flat = (labels[0] if len(labels) == 1 else labels for labels in (covered, found))
    predicted, wanted = (instances_of(labels, cells.interior, cells.boundary) for labels in flat)
    return instance_metrics(predicted, wanted)


def _boxes(labels: Sequence[Label], *maps: NDArray[Any]) -> dict[Label, Box | None]:
    """Where each label, or region, lies in any of the maps: what is outside need not be looked at."""
    from scipy.ndimage import find_objects

    whole = tuple(slice(0, size) for size in maps[0].shape)
    small = [np.where(array < _MOST_BOXES, array, 0) if array.dtype.itemsize > 2 else array for array in maps]
    places = [find_objects(array) for array in small]
    boxes: dict[Label, Box | None] = {}
    for label in labels:
        values = values_of(label)
        if 0 in values or max(values) >= _MOST_BOXES:
            boxes[label] = whole
            continue
        found = [place[value - 1] for place in places for value in values if value <= len(place)]
        held = [box for box in found if box is not None]
        sides = [[box[axis] for box in held] for axis in range(len(whole))]
        boxes[label] = (
            tuple(slice(min(side.start for side in axis), max(side.stop for side in axis)) for axis in sides)
            if held
            else None
        )
    return boxes


def _whole_numbers(labels: NDArray[Any]) -> NDArray[Any]:
    """Labels in the smallest type that holds them; they were seen to be whole numbers from 0."""
    highest = int(labels.max()) if labels.size else 0
    return labels.astype(np.min_scalar_type(highest), copy=False)


def _read(
    name: str, path: Path, known: Sequence[int] | None, problems: list[str], grid: Grid | None = None
) -> LabelMap | None:
    """A label map, on `grid` where it has no spacing of its own; what is wrong with it is added to `problems`."""
    try:
        label_map = read_label_map(path, grid)
    except UnreadableImage as error:
        problems.append(f"{name} {error.problem}")
        return None
    problems += label_problems(name, label_map.labels, known)
    return label_map
