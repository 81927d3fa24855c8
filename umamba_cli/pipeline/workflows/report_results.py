"""What a report says of the results: tables by fold and label, boxes of the cases, the worst cases, and slices."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from umamba_cli.pipeline.data.files import read_json
from umamba_cli.pipeline.data.workspace import Run, Workspace
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.reporting.html_report import Figure, Table
from umamba_cli.pipeline.reporting.svg_plots import Box, box_figures, box_plot
from umamba_cli.pipeline.runs.log import number_of
from umamba_cli.pipeline.workflows.cross_validation import CrossValidation, cross_validate
from umamba_cli.pipeline.workflows.report_models import ShownModel
from umamba_cli.pipeline.workflows.report_trainings import Models, cell

_RATIO = (0.0, 1.0)
_LENGTH = (0.0, math.inf)
_PLOTTED: Mapping[str, tuple[str, tuple[float, float]]] = {
    "dice": ("Dice", _RATIO),
    "surface_dice": ("Surface Dice", _RATIO),
    "hd95": ("95 % Hausdorff distance", _LENGTH),
    "asd": ("Average surface distance", _LENGTH),
    "lesion_f1": ("Lesion F1", _RATIO),
    "sensitivity": ("Sensitivity", _RATIO),
    "precision": ("Precision", _RATIO),
}
"""Metrics of a summary.json that have boxes, with their names and the range they lie in."""

_DISTANCES = ("hd95", "asd")
_MOST_LABELS = 24  # with boxes: a plot of more cannot be read
_MOST_WORST = 20

CaseScores = Mapping[str, Mapping[str, float]]
"""Label (its key in summary.json) to metric to value, in one case."""


@dataclass(frozen=True)
class ModelResult:
    """What a model's finished folds gave on their held-back cases."""

    folder: Path
    shown: ShownModel
    result: CrossValidation
    scores: Mapping[str, CaseScores]
    """By case; of one that several folds held back the first fold's."""

    folds: Mapping[str, int]
    """The fold of each of these."""

    unit: str
    """Of distances: `mm` or `px`."""

    @property
    def title(self) -> str:
        """For people."""
        return self.shown.title

    @cached_property
    def case_dice(self) -> Mapping[str, float]:
        """Every case's mean Dice over the labels that it has; NaN where it has none."""
        return {
            case: _mean(one.get("dice", math.nan) for one in labels.values()) for case, labels in self.scores.items()
        }


@dataclass(frozen=True)
class Results:
    """The results of all models of a workspace, the models in the order of their names."""

    models: tuple[ModelResult, ...]
    """Trainings repeated with other seeds among them, which tables have and nothing else."""

    problems: tuple[str, ...] = ()
    """Of models whose results cannot be read."""

    @cached_property
    def label_names(self) -> Mapping[str, str]:
        """Label to name, of all models."""
        return {key: name for model in self.models for key, name in model.result.label_names.items()}

    @cached_property
    def shown(self) -> tuple[ModelResult, ...]:
        """The models without their repetitions: what is drawn, and what cases are ranked by."""
        return tuple(model for model in self.models if not model.shown.is_repetition)

    @cached_property
    def common_cases(self) -> tuple[str, ...]:
        """The cases that all models have; of models that share none, those of any."""
        held = [set(model.scores) for model in self.shown]
        if not held:
            return ()
        return tuple(sorted(set.intersection(*held) or set.union(*held)))

    @cached_property
    def ranked(self) -> tuple[tuple[str, float], ...]:
        """These cases with their mean Dice over the models, worst first, those without a number left out."""
        means = {case: _mean(model.case_dice.get(case, math.nan) for model in self.shown) for case in self.common_cases}
        known = [(case, value) for case, value in means.items() if not math.isnan(value)]
        return tuple(sorted(known, key=lambda pair: (pair[1], pair[0])))

    def chosen_cases(self) -> list[tuple[str, str]]:
        """Best, median and worst case, each once: what it is, and its identifier."""
        if not self.ranked:
            return []
        names = [case for case, _ in self.ranked]
        if len(names) == 1:
            return [("Only case", names[0])]
        median = names[(len(names) - 1) // 2]
        wanted = [("Best case", names[-1]), ("Median case", median), ("Worst case", names[0])]
        return [pair for pair in wanted if len(names) > 2 or pair[0] != "Median case"]


def read_results(workspace: Workspace, models: Models) -> Results:
    """The results of every model with a fold that is trained and evaluated; damaged ones are told of."""
    found, problems = [], []
    for name, shown in models.items():
        try:
            result = _model_result(workspace.runs / name, shown)
        except InputError as error:
            problems.append(f"The results of {shown.title} are left out: {error.problem}.")
            continue
        if result:
            found.append(result)
    return Results(tuple(found), tuple(problems))


def result_tables(results: Results) -> tuple[Table, ...]:
    """A table over all models, and one for each: Dice of every label in every fold, over folds, and over all cases."""
    if not results.models:
        return ()
    return (_overview(results), *(_by_fold(model) for model in results.models))


def result_figures(results: Results) -> tuple[Figure, ...]:
    """Boxes of the cases by label and model, for each metric that the summaries hold."""
    found = []
    for metric in _PLOTTED:
        boxes = _boxes(results, metric)
        if any(box.values for box in boxes):
            found.append(_box_figure(results, metric, boxes))
    return tuple(found)


def worst_table(results: Results) -> Table | None:
    """The cases with the lowest mean Dice over the models; None without any."""
    if not results.ranked:
        return None
    several = len(results.shown) > 1
    rows = []
    for case, mean in results.ranked[:_MOST_WORST]:
        dices = [model.case_dice.get(case, math.nan) for model in results.shown]
        label, dice = _worst_label(results, case)
        means = [cell(mean)] if several else []
        rows.append((case, *means, *(cell(value) for value in dices), f"{label} ({cell(dice)})"))
    columns = ("case", *(["mean of the models"] if several else []), *(model.title for model in results.shown))
    shown, total = len(rows), len(results.ranked)
    which = (
        f"The {shown} worst of {total} held-back cases"
        if shown < total
        else f"All {total} held-back cases, worst first"
    )
    caption = f"{which}{', of those that all models predicted' if several else ''}; mean Dice over the labels"
    return Table("Worst cases", (*columns, "worst label (its mean Dice)"), tuple(rows), caption)


def case_table(results: Results, case: str) -> Table:
    """One case's Dice, of each label and model."""
    rows = [
        (name, *(cell(model.scores.get(case, {}).get(label, {}).get("dice")) for model in results.shown))
        for label, name in results.label_names.items()
    ]
    means = (cell(model.case_dice.get(case)) for model in results.shown)
    rows.append(("mean of the labels", *means))
    columns = ("label", *(model.title for model in results.shown))
    return Table(f"Dice of {case}", columns, tuple(rows), "A hyphen: neither reference nor prediction holds the label")


def _model_result(folder: Path, shown: ShownModel) -> ModelResult | None:
    result = cross_validate(folder)
    if result is None:
        return None
    scores: dict[str, CaseScores] = {}
    folds: dict[str, int] = {}
    unit = "mm"
    for fold in result.folds:
        content = read_json(Run(folder / f"fold_{fold}").validation / "summary.json")
        unit = str(content.get("unit", unit))
        for case in content["cases"]:
            if folds.setdefault(str(case["case"]), fold) == fold:
                scores[str(case["case"])] = {str(key): _numbers(values) for key, values in case["labels"].items()}
    return ModelResult(folder, shown, result, scores, folds, unit)


def _numbers(values: Mapping[str, object]) -> dict[str, float]:
    found = {name: number_of(values, name) for name in values}
    return {name: number for name, number in found.items() if not math.isnan(number)}


def _overview(results: Results) -> Table:
    metrics = [name for name in _PLOTTED if any(_all(model, None, name) for model in results.models)]
    rows = []
    for model in results.models:
        folds = ", ".join(map(str, model.result.folds))
        means = [cell(_mean_of_labels(model, metric), 2 if metric in _DISTANCES else 3) for metric in metrics]
        rows.append((model.title, folds, str(len(model.scores)), *means))
    names = (_named(metric, results) for metric in metrics)
    columns = ("model", "folds", "cases", *names)
    caption = (
        "Mean over the labels of each label's mean over all held-back cases. Models with other folds have other cases: "
        "their rows cannot be set side by side"
    )
    return Table("Results of all models", columns, tuple(rows), caption)


def _by_fold(model: ModelResult) -> Table:
    result = model.result
    rows = []
    for label, name in (*result.label_names.items(), (None, "mean of the labels")):
        over_folds, over_cases = result.dice_over_folds(label), result.of_all_cases(label)
        by_fold = [cell(result.of_fold(fold, label).dice) for fold in result.folds]
        ends = (over_folds.mean, over_folds.sd, over_cases.dice, over_cases.iou)
        rows.append((name, *by_fold, *map(cell, ends)))
    folds = tuple(f"fold {fold} ({len(found.cases)} cases)" for fold, found in result.folds.items())
    lacking = f". Folds not finished: {', '.join(map(str, result.missing))}" if result.missing else ""
    if result.repeated:
        lacking += (
            f". {len(result.repeated)} cases were held back by several folds, so that there is no result over all"
        )
    columns = ("label", *folds, "mean of folds", "sd of folds", "all cases", "IoU, all cases")
    return Table(f"{model.title}: Dice", columns, tuple(rows), f"Dice of whole held-back cases{lacking}")


def _boxes(results: Results, metric: str) -> list[Box]:
    boxes = []
    for label, name in results.label_names.items():
        for model in results.shown:
            found = {
                case: labels[label][metric] for case, labels in model.scores.items() if metric in labels.get(label, {})
            }
            boxes.append(Box(name, model.title, model.shown.style, tuple(found.values()), tuple(found)))
    return boxes


def _box_figure(results: Results, metric: str, boxes: Sequence[Box]) -> Figure:
    name, (low, high) = _PLOTTED[metric]
    limits = (low, high)
    labels = list(results.label_names.values())
    shown = list(boxes)
    more = ""
    if len(labels) > _MOST_LABELS:
        ordered = sorted(labels, key=lambda label: _worth([box for box in boxes if box.label == label], metric))
        shown = [box for label in ordered[:_MOST_LABELS] for box in boxes if box.label == label]
        more = f" The {_MOST_LABELS} labels that did worst of {len(labels)}; the table has all."
    title = f"{name} of every held-back case, by label and model"
    plot = box_plot(f"box-{metric}", title, shown, value_name=_named(metric, results), value_range=limits)
    better = "Higher is better" if high == 1 else "Lower is better"
    return Figure(title, (plot,), f"{better}.{more}", _box_table(title, boxes, 2 if metric in _DISTANCES else 3))


def _worth(boxes: Iterable[Box], metric: str) -> float:
    mean = _mean(box_figures(box.values).mean for box in boxes)
    return math.inf if math.isnan(mean) else -mean if metric in _DISTANCES else mean


def _box_table(title: str, boxes: Sequence[Box], digits: int) -> Table:
    columns = ("label", "model", "cases", "mean", "sd", "lowest", "quartile 1", "median", "quartile 3", "highest")
    rows = []
    for box in boxes:
        of = box_figures(box.values)
        numbers = (of.mean, of.sd, of.lowest, of.quartile_1, of.median, of.quartile_3, of.highest)
        rows.append((box.label, box.model, str(of.count), *(cell(value, digits) for value in numbers)))
    return Table(title, columns, tuple(rows))


def _named(metric: str, results: Results) -> str:
    name, _ = _PLOTTED[metric]
    return f"{name} ({results.models[0].unit})" if metric in _DISTANCES else name


def _worst_label(results: Results, case: str) -> tuple[str, float]:
    """The label with the lowest mean Dice over the models."""
    means = {
        name: _mean(model.scores.get(case, {}).get(label, {}).get("dice", math.nan) for model in results.shown)
        for label, name in results.label_names.items()
    }
    known = {name: value for name, value in means.items() if not math.isnan(value)}
    return min(known.items(), key=lambda pair: pair[1], default=("-", math.nan))


def _all(model: ModelResult, label: str | None, metric: str) -> list[float]:
    """A metric's numbers over the cases, of one label or of all."""
    return [
        values[metric]
        for labels in model.scores.values()
        for key, values in labels.items()
        if metric in values and label in (None, key)
    ]


def _mean_of_labels(model: ModelResult, metric: str) -> float:
    return _mean(_mean(_all(model, label, metric)) for label in model.result.label_names)


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan
