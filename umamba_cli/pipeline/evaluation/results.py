"""What comparing predictions with references gave: every case and label, and their means, medians and intervals."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

import umamba_cli
from umamba_cli.pipeline.data.dataset import Label, values_of
from umamba_cli.pipeline.evaluation.case import CaseMetrics
from umamba_cli.pipeline.evaluation.instances import InstanceMetrics
from umamba_cli.pipeline.evaluation.lesions import LesionCounts, LesionMetrics
from umamba_cli.pipeline.evaluation.metrics import SCORES, Measures, Scores, in_neither
from umamba_cli.pipeline.evaluation.statistics import bootstrap_means, mean_of_numbers, percentile_intervals

TableRow = tuple[str, ...]


@dataclass(frozen=True)
class LabelMean(Scores):
    """The means of one label, or region, over the cases where the figure is a number; NaN without any."""

    label: Label
    name: str

    cases: int
    """Cases whose Dice is a number: the label is in the prediction, the reference, or both."""

    median: Scores
    low: Scores
    """The lower end of the mean's 95 % bootstrap interval over the cases."""

    high: Scores


@dataclass(frozen=True)
class ForegroundMean(Scores):
    """The means over the labels of each label's mean over the cases, as nnU-Net has it."""

    low: Scores
    """The lower end of its 95 % bootstrap interval over the cases."""

    high: Scores


@dataclass(frozen=True)
class Evaluation:
    """What the comparison of some predictions with their references gave."""

    cases: tuple[CaseMetrics, ...]
    """Sorted by identifier."""

    label_names: Mapping[Label, str]
    """The labels, or regions, that were looked at, without the background."""

    missing: tuple[str, ...] = ()
    """References without a prediction; they are among the cases, with nothing found, unless they were to be left out.
    """

    dataset: str = ""
    """The dataset's name, where it is known."""

    measures: Measures = field(default_factory=Measures)

    @property
    def unit(self) -> str:
        """Of distances: `mm`, or `px` where a case is a picture."""
        return "px" if any(case.is_picture for case in self.cases) else "mm"

    @cached_property
    def label_means(self) -> tuple[LabelMean, ...]:
        """The mean over the cases, for every label."""
        return tuple(
            LabelMean(
                **_named(self._means[index]),
                label=label,
                name=name,
                cases=int(np.count_nonzero(~np.isnan(self._scores[:, index, 0]))),
                median=Scores(**_named(_nan_median(self._scores[:, index]))),
                low=Scores(**_named(self._intervals[0][0, index])),
                high=Scores(**_named(self._intervals[0][1, index])),
            )
            for index, (label, name) in enumerate(self.label_names.items())
        )

    @cached_property
    def foreground_mean(self) -> ForegroundMean:
        """The mean over the labels of each label's mean over the cases."""
        low, high = (Scores(**_named(end)) for end in self._intervals[1])
        return ForegroundMean(**_named(mean_of_numbers(self._means, axis=0)), low=low, high=high)

    @cached_property
    def mean_of_predicted(self) -> Scores:
        """The foreground's mean over the cases that have a prediction."""
        there = [case.predicted for case in self.cases]
        return Scores(**_named(mean_of_numbers(mean_of_numbers(self._scores[there], axis=0), axis=0)))

    @cached_property
    def worst_first(self) -> tuple[CaseMetrics, ...]:
        """The cases by their mean Dice, those without one last."""
        dices = mean_of_numbers(self._scores[:, :, 0], axis=1)
        ordered = sorted(zip(dices, self.cases, strict=True), key=lambda pair: np.nan_to_num(pair[0], nan=2.0))
        return tuple(case for _, case in ordered)

    @cached_property
    def instances(self) -> InstanceMetrics | None:
        """Of all cases together."""
        found = [case.instances for case in self.cases if case.instances is not None]
        return reduce(operator.add, found) if found else None

    def sizes(self, label: Label) -> Mapping[str, LesionCounts]:
        """A label's connected components of all cases by class of size."""
        found = [case.labels[label].sizes for case in self.cases]
        return reduce(operator.add, map(LesionMetrics, filter(None, found))).by_size if any(found) else {}

    def case_rows(self) -> list[TableRow]:
        """A table's rows, the worst cases first, see `CASE_COLUMNS`; "-" where there is no number."""
        return [
            (
                case.case if case.predicted else f"{case.case} (missing)",
                name,
                *(_cell(getattr(case.labels[label], figure), digits) for figure, digits in _SHOWN),
                f"{case.labels[label].lesions_found:g} of {case.labels[label].lesions:g}",
            )
            for case in self.worst_first
            for label, name in self.label_names.items()
        ]

    @property
    def case_columns(self) -> TableRow:
        """The titles of `case_rows`."""
        return ("case", "label", "Dice", "surface Dice", f"HD95 {self.unit}", "ml", "reference ml", "components found")

    def to_json(self) -> dict[str, Any]:
        """The content of `summary.json`; NaN becomes null when it is written.

        Regions are called as nnU-Net calls them: "(1, 2, 3)".
        """
        means = {str(mean.label): mean for mean in self.label_means}
        overall = self.foreground_mean
        return {
            "foreground_mean": _scores_of(overall),
            "foreground_interval": _interval(overall.low, overall.high),
            "foreground_mean_of_predicted": _scores_of(self.mean_of_predicted),
            "mean": {key: {**_scores_of(mean), "cases": mean.cases} for key, mean in means.items()},
            "median": {key: _scores_of(mean.median) for key, mean in means.items()},
            "interval": {key: _interval(mean.low, mean.high) for key, mean in means.items()},
            "sizes": {
                str(label): {size: vars(counts) for size, counts in self.sizes(label).items()}
                for label in self.label_names
            },
            "instances": instances_to_json(self.instances) if self.instances else None,
            "cases": [case_to_json(case, self.label_names) for case in self.cases],
            "worst_first": [case.case for case in self.worst_first],
            "label_names": {str(label): name for label, name in self.label_names.items()},
            "missing": list(self.missing),
            "unit": self.unit,
            "tolerance": {str(label): self.measures.tolerance_of(label) for label in self.label_names},
            "dataset": self.dataset,
            "version": umamba_cli.__version__,
        }

    @cached_property
    def _scores(self) -> NDArray[np.float64]:
        """(cases, labels, figures)."""
        values = [
            [[getattr(case.labels[label], name) for name in SCORES] for label in self.label_names]
            for case in self.cases
        ]
        return np.array(values, dtype=np.float64).reshape(len(self.cases), len(self.label_names), len(SCORES))

    @cached_property
    def _means(self) -> NDArray[np.float64]:
        """(labels, figures)."""
        return mean_of_numbers(self._scores, axis=0)

    @cached_property
    def _intervals(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Both ends of the labels' intervals (2, labels, figures) and of the foreground's (2, figures)."""
        shape = self._scores.shape
        if not len(self.cases) or not len(self.label_names):
            return np.full((2, *shape[1:]), math.nan), np.full((2, shape[2]), math.nan)
        draws = bootstrap_means(self._scores.reshape(len(self.cases), -1)).reshape(-1, *shape[1:])
        overall = mean_of_numbers(draws, axis=1)
        return percentile_intervals(draws.reshape(len(draws), -1)).reshape(2, *shape[1:]), percentile_intervals(overall)


def case_to_json(case: CaseMetrics, labels: Iterable[Label]) -> dict[str, Any]:
    """A case in `summary.json`."""
    return {
        "case": case.case,
        "predicted": case.predicted,
        "voxels": case.voxels,
        "is_picture": case.is_picture,
        "labels": {
            str(label): {
                **_scores_of(case.labels[label]),
                "sizes": {size: asdict(counts) for size, counts in case.labels[label].sizes.items()},
            }
            for label in labels
        },
        "instances": instances_to_json(case.instances) if case.instances else None,
    }


def instances_to_json(metrics: InstanceMetrics) -> dict[str, Any]:
    """Instances in `summary.json`: counts, from which the rest follows, and the rest."""
    return {
        "f1": {f"{threshold:g}": value for threshold, value in metrics.f1.items()},
        "pq": metrics.pq,
        "sq": metrics.sq,
        "rq": metrics.rq,
        "matches": {f"{threshold:g}": asdict(matches) for threshold, matches in metrics.by_threshold.items()},
    }


def names_of(cases: Iterable[CaseMetrics]) -> dict[Label, str]:
    """Names for labels that no dataset.json names: their values."""
    labels = {value for case in cases for label in case.labels for value in values_of(label)}
    return {label: str(label) for label in sorted(labels)}


def completed(cases: Sequence[CaseMetrics], labels: Iterable[Label]) -> tuple[CaseMetrics, ...]:
    """The cases with an entry for every label, also those that were found in other cases only."""
    labels = list(labels)
    of_pictures = any(case.is_picture for case in cases)
    neither = in_neither(of_pictures=of_pictures)
    return tuple(
        CaseMetrics(**{**vars(case), "labels": {label: case.labels.get(label, neither) for label in labels}})
        for case in cases
    )


_SHOWN = (("dice", 3), ("surface_dice", 3), ("hd95", 2), ("prediction_ml", 2), ("reference_ml", 2))


def _scores_of(scores: Scores) -> dict[str, float]:
    return {name: getattr(scores, name) for name in SCORES}


def _interval(low: Scores, high: Scores) -> dict[str, tuple[float, float]]:
    return {name: (getattr(low, name), getattr(high, name)) for name in SCORES}


def _named(values: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(SCORES, map(float, values), strict=True))


def _nan_median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median over the first axis of what is a number; NaN where nothing is."""
    columns = [column[~np.isnan(column)] for column in values.T]
    return np.array([np.median(column) if len(column) else math.nan for column in columns])


def _cell(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
