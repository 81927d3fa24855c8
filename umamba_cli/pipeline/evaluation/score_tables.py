"""The scores of trainings as arrays: what is averaged over what, and which trainings cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.evaluation.comparison_results import Training
from umamba_cli.pipeline.evaluation.statistics import mean_of_numbers

NOTHING_IN_NOTHING = 1.0
"""The score of a training that rightly found nothing, where another found something that is not there."""


def with_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns (..., labels) with the mean over the labels in front: (..., 1 + labels)."""
    return np.concatenate([mean_of_numbers(values, axis=-1)[..., np.newaxis], values], axis=-1)


@dataclass(frozen=True)
class ScoreTable:
    """One model's scores in one metric. The tables of all models have the same cases and labels, in the same order."""

    model: str

    seeds: tuple[int, ...]
    """Of every training."""

    folds: tuple[str, ...]
    """Of every training."""

    held: NDArray[np.bool_]
    """(trainings, cases): the training has a result of the case."""

    scores: NDArray[np.float64]
    """(trainings, cases, labels). NaN: no result, or a label that neither the reference nor any of the model's
    trainings has; where only some of them have it, it is `NOTHING_IN_NOTHING` for the others."""

    @cached_property
    def cases(self) -> NDArray[np.bool_]:
        """(cases,): the model has a result of the case."""
        return np.asarray(self.held.any(axis=0))

    @cached_property
    def case_scores(self) -> NDArray[np.float64]:
        """(cases, labels): means over the trainings."""
        return mean_of_numbers(self.scores, axis=0)

    def repetition_means(self) -> NDArray[np.float64]:
        """(repetitions, 1 + labels): means over the cases, for every seed that has all of the model's cases."""
        means = []
        for seed in sorted(set(self.seeds)):
            mine = np.array([other == seed for other in self.seeds])
            if np.array_equal(self.held[mine].any(axis=0), self.cases):
                means.append(with_mean(mean_of_numbers(mean_of_numbers(self.scores[mine], axis=0), axis=0)))
        return np.array(means).reshape(len(means), 1 + self.scores.shape[2])

    def fold_means(self) -> Iterator[NDArray[np.float64]]:
        """For each fold (trainings, 1 + labels): the means over cases of each of its trainings."""
        means = mean_of_numbers(with_mean(self.scores), axis=1)
        for fold in dict.fromkeys(self.folds):
            yield means[[other == fold for other in self.folds]]

    def training_shares(self, counted: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(columns,): the sum over trainings of their squared weight in the mean over the counted cases.

        A training's weight is the part of that mean that its scores make up. All weights are one by the number of
        trainings where folds are equally large and equally often repeated, and the sum is the same.

        Args:
            counted: (cases, columns); the model has all of them.
        """
        parts = self.held / np.maximum(self.held.sum(axis=0), 1)
        weights = parts @ counted / np.maximum(counted.sum(axis=0), 1)
        return np.asarray(np.sum(weights**2, axis=0))


def score_tables(trainings: Sequence[Training], labels: Sequence[str], metric: str) -> list[ScoreTable]:
    """The tables of all models, in the order in which `trainings` names them first.

    Args:
        trainings: see `require_comparable`.
        labels: the labels to look at; one that a case does not list is in neither of its maps.
        metric: name of a field of `ComparedScores`.
    """
    names = sorted({case for training in trainings for case in training.cases})
    tables = []
    for model, mine in by_model(trainings).items():
        scores = np.full((len(mine), len(names), len(labels)), math.nan)
        for row, training in enumerate(mine):
            for column, case in enumerate(names):
                found = training.cases.get(case, {})
                scores[row, column] = [getattr(found[key], metric) if key in found else math.nan for key in labels]
        held = np.array([[case in training.cases for case in names] for training in mine])
        nothing = np.isnan(scores) & held[:, :, np.newaxis] & ~np.isnan(scores).all(axis=0)
        scores[nothing] = NOTHING_IN_NOTHING
        seeds, folds = (training.seed for training in mine), (str(training.fold) for training in mine)
        tables.append(ScoreTable(model, tuple(seeds), tuple(folds), held, scores))
    return tables


def paired_differences(first: ScoreTable, second: ScoreTable) -> NDArray[np.float64]:
    """(common cases, 1 + labels): the second model's scores less the first's, the mean over the labels in front.

    Where one model has no score (it rightly found nothing) and the other has one (it found something that is not
    there), the one without counts as `NOTHING_IN_NOTHING`; a label that both leave out is NaN.
    """
    common = first.cases & second.cases
    scores = [table.case_scores[common] for table in (first, second)]
    neither = np.isnan(scores[0]) & np.isnan(scores[1])
    filled = [np.where(np.isnan(one) & ~neither, NOTHING_IN_NOTHING, one) for one in scores]
    return with_mean(filled[1] - filled[0])


@dataclass(frozen=True)
class LesionTable:
    """One model's lesions by size, means over its trainings and sums over labels."""

    model: str

    cases: NDArray[np.bool_]
    """(cases,): the model has a result of the case."""

    reference: NDArray[np.float64]
    """(cases, size classes): lesions of the reference."""

    found: NDArray[np.float64]
    """(cases, size classes): those of them that were found."""


def lesion_tables(trainings: Sequence[Training], labels: Sequence[str]) -> tuple[list[str], list[LesionTable]]:
    """The names of the size classes, as the scores list them, and every model's lesions; see `score_tables`."""
    names = sorted({case for training in trainings for case in training.cases})
    models = by_model(trainings)
    in_order = sorted((training for mine in models.values() for training in mine), key=lambda one: one.model)
    classes: dict[str, int] = {}
    for training in in_order:
        for _, scores in sorted(training.cases.items()):
            for key in labels:
                for name in scores[key].sizes if key in scores else ():
                    classes.setdefault(name, len(classes))
    tables = []
    for model, mine in models.items():
        held = np.array([[case in training.cases for case in names] for training in mine])
        counts = np.zeros((2, len(names), len(classes)))
        for training in mine:
            for row, case in enumerate(names):
                counts[:, row] += _counts(training, case, labels, classes)
        counts /= np.maximum(held.sum(axis=0), 1)[:, np.newaxis]
        tables.append(LesionTable(model, np.asarray(held.any(axis=0)), counts[0], counts[1]))
    return list(classes), tables


def _counts(training: Training, case: str, labels: Sequence[str], classes: Mapping[str, int]) -> NDArray[np.float64]:
    """(2, size classes): reference and found lesions of one case."""
    counts = np.zeros((2, len(classes)))
    scores = training.cases.get(case, {})
    for key in labels:
        for name, both in scores[key].sizes.items() if key in scores else ():
            counts[:, classes[name]] += both
    return counts


def by_model(trainings: Sequence[Training]) -> dict[str, list[Training]]:
    """Every model's trainings by seed and fold; the models stay in the order in which they are named first."""
    models = dict.fromkeys(training.model for training in trainings)
    ordered = sorted(trainings, key=lambda training: (training.seed, str(training.fold)))
    return {model: [training for training in ordered if training.model == model] for model in models}


def require_comparable(trainings: Sequence[Training]) -> None:
    """Check what a comparison needs.

    Raises:
        InputError: there are fewer than two models, a training is given twice, trainings of one model and fold have
            different cases, or two models have no case in common; all that are wrong in the same way are listed.
    """
    models = by_model(trainings)
    if len(models) < 2:
        raise InputError(
            f"there are results of {', '.join(models) or 'no model'} alone, which leaves nothing to compare",
            next_step="train at least two models, or give two folders of predictions",
        )
    _require_same_cases(models)
    cases = {model: {case for training in mine for case in training.cases} for model, mine in models.items()}
    if apart := [f"{one} and {other}" for one, other in combinations(cases, 2) if not cases[one] & cases[other]]:
        raise InputError(
            "these models have no case in common and cannot be compared",
            details=apart,
            next_step="finish the same folds of both, or give folders with predictions of the same cases",
        )


def _require_same_cases(models: Mapping[str, Sequence[Training]]) -> None:
    """Refuse trainings that are given twice, or whose cases are not those of the fold's other trainings."""
    first: dict[tuple[str, str], Training] = {}
    twice, different = [], []
    seen: set[tuple[str, int, str]] = set()
    for model, mine in models.items():
        for training in mine:
            name = _name(training)
            key = (model, training.seed, str(training.fold))
            if key in seen:
                twice.append(name)
            seen.add(key)
            other = first.setdefault((model, str(training.fold)), training)
            if apart := sorted(other.cases.keys() ^ training.cases.keys()):
                named = ", ".join(apart[:3]) + (", ..." if len(apart) > 3 else "")
                different.append(f"{name} and {_name(other)}: only one of them has {named}")
    if twice:
        raise InputError("these trainings are given more than once", details=twice, next_step="give each of them once")
    if different:
        raise InputError(
            "trainings of the same model and fold have different cases",
            details=different,
            next_step="evaluate them on the same cases, then run the same command again",
        )


def _name(training: Training) -> str:
    fold = f", fold {training.fold}" if str(training.fold) else ""
    return f"{training.model}{fold}, seed {training.seed}"
