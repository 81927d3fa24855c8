"""Finding out on the cross-validation which postprocessing helps, and applying it to predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from umamba_cli.pipeline.data.dataset import DatasetDescription, Label, values_of
from umamba_cli.pipeline.data.images import read_label_map, write_label_map
from umamba_cli.pipeline.data.workspace import Run, open_workspace
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.evaluation.evaluate import Pair, find_label_maps
from umamba_cli.pipeline.evaluation.metrics import overlap
from umamba_cli.pipeline.inference.postprocessing import (
    Postprocessing,
    Step,
    postprocess,
    postprocessing_file,
    write_postprocessing,
)
from umamba_cli.pipeline.parallel import for_each_case
from umamba_cli.pipeline.progress import OnProgress, ignore_progress
from umamba_cli.pipeline.runs.record import read_record

_LEAST_GAIN = 1e-6
"""Of a Dice that counts as higher: less is how numbers are rounded."""

Dices = Mapping[Label, float]


@dataclass(frozen=True)
class Tried:
    """A step that was looked at."""

    step: Step
    before: Dices
    """The mean Dice of each label over the held-back cases."""

    after: Dices
    kept: bool

    def to_json(self) -> dict[str, Any]:
        """A dictionary for a JSON file."""
        return {
            "step": self.step.model_dump(),
            "before": {str(label): dice for label, dice in self.before.items()},
            "after": {str(label): dice for label, dice in self.after.items()},
            "kept": self.kept,
        }


@dataclass(frozen=True)
class FoundPostprocessing:
    """What `find_postprocessing` found."""

    file: Path
    tried: tuple[Tried, ...]
    cases: int
    names: Mapping[Label, str]

    @property
    def steps(self) -> tuple[Step, ...]:
        """What helped, in the order to be done."""
        return tuple(each.step for each in self.tried if each.kept)


def find_postprocessing(
    model_folder: Path, *, workers: int | None = None, on_progress: OnProgress = ignore_progress
) -> FoundPostprocessing:
    """Try each step on the held-back cases of all finished folds, and write down those that raise their Dice.

    Looked at are, one after the other and each on top of what was kept before: only the largest piece of everything
    found; the largest piece of each label; holes of each label filled. A step is kept where the mean Dice over the
    labels rises, and that of no label falls.

    Args:
        model_folder: WORKSPACE/runs/NAME, the folder above the folds.
        workers: processes; None means as many as the machine allows.
        on_progress: told after each case.

    Raises:
        InputError: no numbered fold is trained and evaluated, or a label map cannot be read.
    """
    pairs, description = _held_out(model_folder)
    steps: list[Step] = []
    tried: list[Tried] = []
    dice = partial(_dices, pairs, description, workers=workers, on_progress=on_progress)
    before = dice(steps)
    for step in _candidates(description):
        after = dice([*steps, step])
        kept = _rises(before, after)
        tried.append(Tried(step, before, after, kept))
        if kept:
            steps.append(step)
            before = after
    file = postprocessing_file(model_folder)
    write_postprocessing(
        file,
        Postprocessing(
            steps=tuple(steps),
            tried=tuple(each.to_json() for each in tried),
        ),
    )
    return FoundPostprocessing(file, tuple(tried), len(pairs), description.targets)


def apply_postprocessing(
    steps: Sequence[Step],
    predictions: Path,
    output: Path,
    *,
    overwrite: bool = False,
    workers: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> int:
    """Postprocess all label maps of a folder into another one; finished ones are kept.

    Args:
        steps: what to do.
        predictions: folder of label maps.
        output: folder for the new ones; may be the same only with `overwrite`.
        overwrite: make finished ones again.
        workers: processes; None means as many as the machine allows.
        on_progress: told after each case.

    Returns:
        How many label maps were written.

    Raises:
        InputError: there is none, or one cannot be read; every such one is listed.
        WorkError: the output cannot be written.
    """
    if output.resolve() == predictions.resolve() and not overwrite:
        raise InputError(f"{output} holds the predictions themselves", next_step="choose another folder with -o")
    found = find_label_maps(predictions, None)
    jobs = [(name, path, output / path.name) for name, path in sorted(found.items())]
    todo = [job for job in jobs if overwrite or not job[2].is_file()]
    outcomes = for_each_case(
        partial(_apply, steps=tuple(steps)),
        todo,
        task="postprocess",
        name=lambda job: job[0],
        workers=workers,
        on_progress=on_progress,
    )
    problems = [f"{job[0]}: {outcome}" for job, outcome in zip(todo, outcomes, strict=True) if outcome]
    if problems:
        raise InputError(
            f"{len(problems)} of {len(todo)} label maps cannot be used",
            details=problems,
            next_step="correct or remove them; the others are done",
        )
    return len(todo)


def _apply(job: tuple[str, Path, Path], steps: tuple[Step, ...]) -> str:
    try:
        label_map = read_label_map(job[1])
    except InputError as error:
        return error.problem
    write_label_map(job[2], postprocess(label_map.labels, steps), label_map.grid)
    return ""


def _held_out(model_folder: Path) -> tuple[list[Pair], DatasetDescription]:
    """Predictions and references of all held-back cases of the finished folds."""
    runs = [Run(path) for path in sorted(model_folder.glob("fold_[0-9]*"))]
    done = [run for run in runs if run.is_finished and (run.validation / "summary.json").is_file()]
    if not done:
        raise InputError(
            f"{model_folder} holds no fold that is trained and evaluated",
            next_step="train with `umamba train WORKSPACE -f 0-4` first, and give the folder above the folds",
        )
    records = [read_record(run) for run in done]
    dataset = open_workspace(model_folder.resolve().parent.parent).dataset()
    pairs: list[Pair] = []
    for run, record in zip(done, records, strict=True):
        for case in dataset.select(record.val_cases):
            if case.label:
                file = run.validation / f"{case.identifier}{record.dataset.file_ending}"
                pairs.append((f"{run.folder.name}/{case.identifier}", file, case.label))
    return pairs, records[0].dataset


def _candidates(description: DatasetDescription) -> list[Step]:
    foreground = tuple(description.foreground) if not description.has_regions else description.regions_class_order or ()
    targets = [tuple(values_of(label)) for label in description.targets]
    together = [Step(operation="keep_largest", labels=foreground)] if len(targets) > 1 else []
    return [
        *together,
        *(Step(operation="keep_largest", labels=values) for values in targets),
        *(Step(operation="fill_holes", labels=values) for values in targets),
    ]


def _dices(
    pairs: Sequence[Pair],
    description: DatasetDescription,
    steps: Sequence[Step],
    *,
    workers: int | None,
    on_progress: OnProgress,
) -> Dices:
    """The mean Dice of each label after some steps; cases where it is no number are left out."""
    outcomes = for_each_case(
        partial(_dice_of_case, description=description, steps=tuple(steps)),
        pairs,
        task="postprocess",
        name=lambda pair: pair[0],
        workers=workers,
        on_progress=on_progress,
    )
    means = {}
    for label in description.targets:
        numbers = [case[label] for case in outcomes if not math.isnan(case[label])]
        means[label] = math.fsum(numbers) / len(numbers) if numbers else math.nan
    return means


def _dice_of_case(pair: Pair, description: DatasetDescription, steps: tuple[Step, ...]) -> dict[Label, float]:
    _, prediction, reference = pair
    assert prediction is not None
    found, wanted = read_label_map(prediction), read_label_map(reference)
    labels = postprocess(found.labels, steps)
    counted = wanted.labels != description.ignore_label if description.ignore_label is not None else slice(None)
    return {label: overlap(labels[counted], wanted.labels[counted], label, None).dice for label in description.targets}


def _rises(before: Dices, after: Dices) -> bool:
    known = [label for label in before if not math.isnan(before[label])]
    gains = [after[label] - before[label] for label in known]
    return bool(gains) and math.fsum(gains) / len(gains) > _LEAST_GAIN and min(gains) >= -_LEAST_GAIN
