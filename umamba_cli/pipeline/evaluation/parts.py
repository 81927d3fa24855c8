"""An evaluation in parts, each made by a machine that knows nothing of the others, and the whole put together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pydantic

import umamba_cli
from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.data.files import read_model, write_json
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.evaluation.case import CaseMetrics, Task
from umamba_cli.pipeline.evaluation.evaluate import find_label_maps
from umamba_cli.pipeline.evaluation.metrics import Measures
from umamba_cli.pipeline.evaluation.reading import LabelKey, SavedCase, label_of
from umamba_cli.pipeline.evaluation.results import Evaluation, completed, names_of
from umamba_cli.pipeline.shards import Shard

_MOST_NAMED = 10


class _Shard(pydantic.BaseModel):
    number: int = pydantic.Field(ge=1)
    count: int = pydantic.Field(ge=1)


class _Measures(pydantic.BaseModel):
    """See `metrics.Measures`."""

    tolerance: float
    tolerances: dict[LabelKey, float]
    diameters: tuple[float, ...]

    def measures(self) -> Measures:
        by_label = {label_of(key): tolerance for key, tolerance in self.tolerances.items()}
        return Measures(self.tolerance, by_label, self.diameters)


class _Part(pydantic.BaseModel):
    """What is used of a part's file; the means in it are for people."""

    shard: _Shard
    described: bool
    """Whether a dataset.json names the labels; otherwise they are those found in the part's cases."""

    file_ending: str | None
    """Of the references, where a dataset.json tells it."""

    cases: list[SavedCase]
    measures: _Measures
    cells: tuple[int, int] | None
    """Labels of interiors and boundaries, where instances were looked at."""

    only_predicted: bool
    """Whether references without a prediction were left out."""

    missing: list[str]
    label_names: dict[LabelKey, str]
    dataset: str
    version: str


def part_path(predictions: Path, shard: Shard) -> Path:
    """Where a part of an evaluation is written: `summary.3-of-16.json` beside the predictions."""
    return predictions / f"summary.{shard.number}-of-{shard.count}.json"


def write_part(path: Path, evaluation: Evaluation, shard: Shard, task: Task, *, only_predicted: bool) -> None:
    """Write the evaluation of a part: what `summary.json` holds, and what is needed to put it together with others.

    Args:
        path: see `part_path`.
        evaluation: of the part.
        shard: which part it is.
        task: that it was evaluated with.
        only_predicted: see `evaluate_folders`.

    Raises:
        WorkError: the file cannot be written.
    """
    measures, description, cells = task.measures, task.description, task.cells
    more = {
        "shard": {"number": shard.number, "count": shard.count},
        "described": description is not None,
        "file_ending": description.file_ending if description else None,
        "measures": {
            "tolerance": measures.tolerance,
            "tolerances": {str(label): tolerance for label, tolerance in measures.tolerances.items()},
            "diameters": measures.diameters,
        },
        "cells": (cells.interior, cells.boundary) if cells else None,
        "only_predicted": only_predicted,
    }
    write_json(path, {**evaluation.to_json(), **more})


def merge_parts(predictions: Path, references: Path, *, description: DatasetDescription | None = None) -> Evaluation:
    """The evaluation of all cases, put together from its parts; it equals one made of all at once.

    Args:
        predictions: the folder that holds the parts, `summary.1-of-3.json` and so on.
        references: the folder of references; the parts must hold each of its cases once.
        description: as for `evaluate_folders`; None: whatever the parts were made with.

    Raises:
        InputError: a part is missing or damaged, was made with other labels or by another version, or the references
            are others by now.
    """
    parts = _read_parts(predictions)
    first = next(iter(parts.values()))
    _require_same(parts, "the number of parts there are", lambda part: part.shard.count)
    _require_same(parts, "the version that made them", lambda part: part.version)
    _require_same(parts, "the dataset", lambda part: (part.described, part.file_ending, part.dataset))
    _require_same(parts, "tolerances or classes of size", lambda part: part.measures)
    _require_same(parts, "the labels of --instances", lambda part: part.cells)
    _require_same(parts, "--only-predicted", lambda part: part.only_predicted)
    if first.described:
        _require_same(parts, "the labels", lambda part: part.label_names)
    if first.version != umamba_cli.__version__:
        raise _cannot_merge(
            predictions, f"they were made by umamba {first.version}, this is {umamba_cli.__version__}", ()
        )
    _require_description(predictions, first, description)
    _require_all(predictions, references, list(parts.values()))
    cases = [_metrics(case, part) for part in parts.values() for case in part.cases]
    missing = [name for part in parts.values() for name in part.missing]
    cases.sort(key=lambda case: case.case)
    described = {label_of(key): name for key, name in first.label_names.items()}
    names = described if first.described else names_of(cases)
    measures = first.measures.measures()
    return Evaluation(completed(cases, names), names, tuple(sorted(missing)), first.dataset, measures)


def _read_parts(folder: Path) -> dict[str, _Part]:
    """The parts by the names of their files, in the order of their numbers."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder", next_step="give the folder of predictions")
    again = "evaluate that shard again: `umamba evaluate PREDICTIONS REFERENCES --shard K/N`"
    paths = [path for path in folder.iterdir() if re.fullmatch(r"summary\.[0-9]+-of-[0-9]+\.json", path.name)]
    found = {path.name: read_model(path, _Part, next_step=again) for path in paths}
    parts = dict(sorted(found.items(), key=lambda item: (item[1].shard.count, item[1].shard.number)))
    if not parts:
        raise InputError(
            f"{folder} holds no part of an evaluation, such as summary.1-of-3.json",
            next_step="evaluate each shard first: `umamba evaluate PREDICTIONS REFERENCES --shard K/N`",
        )
    return parts


def _require_same(parts: dict[str, _Part], what: str, look: Callable[[_Part], object]) -> None:
    values = {name: look(part) for name, part in parts.items()}
    if any(value != next(iter(values.values())) for value in values.values()):
        raise InputError(
            f"the parts of the evaluation differ in {what}",
            details=[f"{name}: {value}" for name, value in values.items()][:_MOST_NAMED],
            next_step="evaluate the shards again with the same options and version, and remove the files of old ones",
        )


def _require_description(folder: Path, part: _Part, description: DatasetDescription | None) -> None:
    """Refuse a dataset.json that is not the one that the parts were made with."""
    if description is None:
        return
    wanted = {str(label): name for label, name in description.targets.items()}
    made = part.label_names if part.described else {}
    if (made, part.file_ending, part.dataset) != (wanted, description.file_ending, description.name):
        shown = ", ".join(f"{label} {name}" for label, name in made.items()) or "those found in the label maps"
        raise _cannot_merge(folder, f"their labels are other than the dataset's: {shown}", ())


def _require_all(predictions: Path, references: Path, parts: Sequence[_Part]) -> None:
    """All parts are there, and together they hold every reference once."""
    count = parts[0].shard.count
    there = {part.shard.number for part in parts}
    if lacking := [number for number in range(1, count + 1) if number not in there]:
        some = ", ".join(f"{number}/{count}" for number in lacking[:_MOST_NAMED])
        raise InputError(
            f"{len(lacking)} of {count} parts of the evaluation are not in {predictions}: {some}",
            next_step=f"evaluate them: `umamba evaluate {predictions} {references} --shard {lacking[0]}/{count}`",
        )
    held = Counter(name for part in parts for name in {*(case.case for case in part.cases), *part.missing})
    wanted = find_label_maps(references, parts[0].file_ending).keys()
    if wrong := sorted({name for name, times in held.items() if times > 1} | (held.keys() ^ wanted)):
        raise _cannot_merge(predictions, f"the references were others when {len(wrong)} cases were evaluated", wrong)


def _cannot_merge(folder: Path, why: str, details: Sequence[str]) -> InputError:
    return InputError(
        f"the parts of the evaluation in {folder} cannot be put together, {why}",
        details=details[:_MOST_NAMED],
        next_step="evaluate all shards again",
    )


def _metrics(case: SavedCase, part: _Part) -> CaseMetrics:
    """A case as it was before labels of other cases were added to it, which are not counted in any of its voxels."""
    metrics = case.metrics()
    if part.described:
        return metrics
    labels = {label: each for label, each in metrics.labels.items() if each.tp + each.fp + each.fn}
    return replace(metrics, labels=labels)
