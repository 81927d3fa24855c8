"""The cross-validation's result, from the `validation/summary.json` of a model's finished folds."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import umamba_cli
from umamba_cli.pipeline.data.files import read_json, write_json
from umamba_cli.pipeline.data.splits import FOLDS, read_folds
from umamba_cli.pipeline.data.workspace import Run, Workspace
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.workflows.variants import variant_of


@dataclass(frozen=True)
class Overlap:
    """Dice and IoU, each from 0 to 1; NaN where there is no number."""

    dice: float
    iou: float


@dataclass(frozen=True)
class Spread:
    """How numbers spread; those that are NaN are left out, and all is NaN without any."""

    mean: float
    sd: float
    """Sample standard deviation (n - 1); NaN of a single number."""

    lowest: float
    highest: float


@dataclass(frozen=True)
class Result:
    """What some cases gave. Labels go by their keys in summary.json: `1`, or `(1, 2)` of a region."""

    cases: Mapping[str, Mapping[str, Overlap]]
    """Every label of every case."""

    labels: Mapping[str, Overlap]
    """The mean of every label over the cases where it is a number."""

    foreground_mean: Overlap
    """The mean over the labels of each label's mean, as nnU-Net has it."""


@dataclass(frozen=True)
class CrossValidation:
    """The results of a model's folds, and of all their cases together."""

    model: str
    """The name of the model's folder."""

    label_names: Mapping[str, str]
    folds: Mapping[int, Result]
    """Of the folds that are trained and evaluated, by number."""

    missing: tuple[int, ...]
    """Folds of splits.json that are not."""

    @cached_property
    def repeated(self) -> tuple[str, ...]:
        """Cases that several folds hold back."""
        count = Counter(case for result in self.folds.values() for case in result.cases)
        return tuple(sorted(case for case, times in count.items() if times > 1))

    @cached_property
    def pooled(self) -> Result | None:
        """All held-back cases together; None where a case was held back several times, as it has several results.

        Source: nnU-Net's accumulation of cross-validation results: every case once, whatever its fold; a label's mean
        is over all cases, not over the folds' means, which differ where folds differ in size.
        """
        if self.repeated:
            return None
        cases = {case: labels for result in self.folds.values() for case, labels in result.cases.items()}
        return _result(cases, self.label_names)

    def dice_over_folds(self, label: str | None) -> Spread:
        """How a label's mean Dice spreads over the folds; of the foreground mean where `label` is None."""
        return _spread(overlap.dice for overlap in self._over_folds(label))

    def iou_over_folds(self, label: str | None) -> Spread:
        """The same of the IoU."""
        return _spread(overlap.iou for overlap in self._over_folds(label))

    def of_fold(self, fold: int, label: str | None) -> Overlap:
        """A label's mean in a fold, or the foreground mean where `label` is None."""
        return _of(self.folds[fold], label)

    def of_all_cases(self, label: str | None) -> Overlap:
        """The same over all cases; NaN where they cannot be pooled."""
        return _of(self.pooled, label) if self.pooled else Overlap(math.nan, math.nan)

    def to_json(self) -> dict[str, Any]:
        """The content of `cross_validation.json`; NaN becomes null when it is written."""
        return {
            "model": self.model,
            "foreground_mean": self._row(None),
            "mean": {label: self._row(label) for label in self.label_names},
            "cases": {fold: len(result.cases) for fold, result in self.folds.items()},
            "missing_folds": list(self.missing),
            "repeated_cases": list(self.repeated),
            "label_names": dict(self.label_names),
            "version": umamba_cli.__version__,
        }

    def _over_folds(self, label: str | None) -> list[Overlap]:
        return [self.of_fold(fold, label) for fold in self.folds]

    def _row(self, label: str | None) -> dict[str, Any]:
        return {
            "folds": {fold: asdict(self.of_fold(fold, label)) for fold in self.folds},
            "over_folds": {"dice": asdict(self.dice_over_folds(label)), "iou": asdict(self.iou_over_folds(label))},
            "all_cases": asdict(self.of_all_cases(label)),
        }


def cross_validation_file(model_folder: Path) -> Path:
    """Where the result lies: beside the folds."""
    return model_folder / "cross_validation.json"


def cross_validate(model_folder: Path) -> CrossValidation | None:
    """Put together what the numbered folds of a model left; None where none is trained and evaluated.

    Args:
        model_folder: WORKSPACE/runs/NAME, the folder above the folds.

    Raises:
        InputError: a fold's summary.json is damaged, or the folds are of different models.
    """
    runs = {number: Run(model_folder / f"fold_{number}") for number in _numbers(model_folder)}
    finished = {fold: run for fold, run in runs.items() if run.is_finished and _summary(run).is_file()}
    if not finished:
        return None
    _require_one_variant(finished)
    contents = {fold: _read(_summary(run)) for fold, run in finished.items()}
    names = {key: name for _, label_names in contents.values() for key, name in label_names.items()}
    return CrossValidation(
        model=model_folder.name,
        label_names=names,
        folds={fold: _result(cases, names) for fold, (cases, _) in contents.items()},
        missing=tuple(fold for fold in _expected(model_folder, runs) if fold not in finished),
    )


def write_cross_validation(model_folder: Path, result: CrossValidation) -> None:
    """Write `cross_validation.json` beside the folds.

    Raises:
        WorkError: the file cannot be written.
    """
    write_json(cross_validation_file(model_folder), result.to_json())


def _require_one_variant(runs: Mapping[int, Run]) -> None:
    variants = {fold: variant for fold, run in runs.items() if (variant := variant_of(run))}
    if len(set(variants.values())) > 1:
        raise InputError(
            f"the folds of {next(iter(runs.values())).folder.parent} are of different models",
            details=[f"fold {fold}: {variant.title}" for fold, variant in variants.items()],
            next_step="train those that are not wanted again with --restart",
        )


def _summary(run: Run) -> Path:
    return run.validation / "summary.json"


def _numbers(model_folder: Path) -> list[int]:
    names = [path.name.removeprefix("fold_") for path in model_folder.glob("fold_*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def _expected(model_folder: Path, found: Iterable[int]) -> list[int]:
    """The folds that there should be: those of splits.json, otherwise five; and those that there are."""
    splits = Workspace(model_folder.parent.parent).splits_file
    try:
        count = len(read_folds(splits)) if splits.is_file() else FOLDS
    except InputError:  # what was trained can be told without it
        count = FOLDS
    return sorted({*range(count), *found})


def _read(path: Path) -> tuple[dict[str, dict[str, Overlap]], dict[str, str]]:
    """The cases and the labels' names of a summary.json."""
    again = "remove it and run `umamba train` for this fold again, which evaluates it"
    content = read_json(path, next_step=again)
    try:
        names = {str(key): str(name) for key, name in content["label_names"].items()}
        cases = {
            str(case["case"]): {str(key): _overlap(metrics) for key, metrics in case["labels"].items()}
            for case in content["cases"]
        }
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not hold the cases and labels of an evaluation", next_step=again) from error
    return cases, names


def _overlap(metrics: Mapping[str, Any]) -> Overlap:
    dice, iou = (math.nan if metrics[key] is None else float(metrics[key]) for key in ("dice", "iou"))
    if math.isinf(dice) or math.isinf(iou):
        raise ValueError("a share cannot be infinite")
    return Overlap(dice, iou)


def _result(cases: Mapping[str, Mapping[str, Overlap]], labels: Iterable[str]) -> Result:
    means = {key: _mean([case[key] for case in cases.values() if key in case]) for key in labels}
    return Result(cases, means, _mean(list(means.values())))


def _mean(overlaps: Sequence[Overlap]) -> Overlap:
    return Overlap(
        _spread(overlap.dice for overlap in overlaps).mean, _spread(overlap.iou for overlap in overlaps).mean
    )


def _of(result: Result, label: str | None) -> Overlap:
    return result.foreground_mean if label is None else result.labels[label]


def _spread(values: Iterable[float]) -> Spread:
    numbers = [value for value in values if not math.isnan(value)]
    if not numbers:
        return Spread(math.nan, math.nan, math.nan, math.nan)
    sd = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
    return Spread(math.fsum(numbers) / len(numbers), sd, min(numbers), max(numbers))
