"""Finding out on the cross-validation which postprocessing helps, and applying it to predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from umamba_cli.pipeline.data.checks import label_problems
from umamba_cli.pipeline.data.dataset import DatasetDescription, Label, values_of
from umamba_cli.pipeline.data.files import remove_leftovers
from umamba_cli.pipeline.data.images import (
    IMAGE_ENDINGS,
    file_ending,
    label_ending,
    read_label_map,
    write_label_map,
)
from umamba_cli.pipeline.data.label_names import read_label_names
from umamba_cli.pipeline.data.workspace import Run, open_workspace
from umamba_cli.pipeline.errors import InputError, UmambaError
from umamba_cli.pipeline.evaluation.evaluate import Pair, find_label_maps
from umamba_cli.pipeline.evaluation.metrics import overlap
from umamba_cli.pipeline.inference.postprocessing import (
    Postprocessing,
    Step,
    postprocess,
    postprocessing_file,
    read_postprocessing,
    write_postprocessing,
)
from umamba_cli.pipeline.parallel import for_each_case
from umamba_cli.pipeline.progress import OnProgress, ignore_progress
from umamba_cli.pipeline.runs.record import read_record

_LEAST_GAIN = 1e-6
"""Of a Dice that counts as higher: less is how numbers are rounded."""

Dices = Mapping[Label, float]

Job = tuple[str, Path, Path]
"""A label map's identifier, its file and that of the new one."""


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

    Beside them `postprocessing.json` tells the steps. Names of labels in the files stay in them. A file that is no
    label map does not stop the others.

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
        InputError: there is none, the output holds some that other steps were applied to, or none of them can be used;
            each is listed.
        UmambaError: some cannot be used; the others are done.
        WorkError: the output cannot be written.
    """
    if output.resolve() == predictions.resolve() and not overwrite:
        raise InputError(f"{output} holds the predictions themselves", next_step="choose another folder with -o")
    found = find_label_maps(predictions, None)
    highest = max((max(step.labels) for step in steps), default=0)
    jobs = [(name, path, output / _written_name(path, highest)) for name, path in sorted(found.items())]
    remove_leftovers(output)
    outdated = _outdated(steps, output, overwrite=overwrite)
    todo = [job for job in jobs if overwrite or job[2].name in outdated or not job[2].is_file()]
    if todo:
        write_postprocessing(postprocessing_file(output), Postprocessing(steps=tuple(steps), outdated=tuple(outdated)))
    outcomes = for_each_case(
        partial(_apply, steps=tuple(steps)),
        todo,
        task="postprocess",
        name=lambda job: job[0],
        workers=workers,
        on_progress=on_progress,
    )
    problems = {job[2].name: f"{job[0]}: {outcome}" for job, outcome in zip(todo, outcomes, strict=True) if outcome}
    if outdated:
        done = {job[2].name for job in todo} - problems.keys()
        left = tuple(name for name in outdated if name not in done)
        write_postprocessing(postprocessing_file(output), Postprocessing(steps=tuple(steps), outdated=left))
    if problems:
        some_done = len(problems) < len(todo)
        kind = UmambaError if some_done else InputError
        raise kind(
            f"{len(problems)} of {len(todo)} label maps cannot be used",
            details=list(problems.values()),
            next_step="correct or remove them" + ("; the others are done" if some_done else ""),
        )
    return len(todo)


def _written_name(path: Path, highest: int) -> str:
    """The name of a label map after steps that write labels up to `highest`: of a format that holds them."""
    ending = file_ending(path)
    written = label_ending(ending, highest)
    return path.name if written == ending else path.name[: -len(ending)] + written


def _outdated(steps: Sequence[Step], output: Path, *, overwrite: bool) -> list[str]:
    """The label maps in the output that other steps made.

    Raises:
        InputError: there are some, and they are not to be replaced.
    """
    record = postprocessing_file(output)
    files = sorted(output.iterdir()) if record.is_file() else []
    there = [path.name for path in files if file_ending(path) in IMAGE_ENDINGS and not path.name.startswith(".")]
    if not there:
        return []
    noted = read_postprocessing(record, next_step="choose another output folder with -o")
    if noted.tried:
        raise InputError(f"{output} is the folder of a model", next_step="choose another output folder with -o")
    if noted.steps == tuple(steps):
        return [name for name in there if name in noted.outdated]
    if not overwrite:
        raise InputError(
            f"{output} holds label maps that other steps were applied to",
            details=[f"there: {_described(noted.steps)}", f"now: {_described(steps)}"],
            next_step="choose another output folder with -o, or replace them with --overwrite",
        )
    return there


def _described(steps: Sequence[Step]) -> str:
    return ", ".join(f"{step.operation} {step.labels}" for step in steps) or "none"


def _apply(job: Job, steps: tuple[Step, ...]) -> str:
    """What is wrong with a label map; empty where it was postprocessed."""
    _, source, target = job
    if target.name != source.name and target.parent.resolve() == source.parent.resolve():
        return f"{source.name} cannot be replaced, its format is not written"
    try:
        label_map = read_label_map(source)
        if problems := label_problems("label map", label_map.labels, None):
            return "; ".join(problems)
        labels = postprocess(label_map.labels, steps)
        write_label_map(target, labels, label_map.grid, names=read_label_names(source))
    except InputError as error:
        return error.problem
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
