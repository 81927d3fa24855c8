"""Which model does better, from the scores of their trainings: means, differences, and what is shown of them.

A difference of two models is shown where it is larger than chance explains in both ways in which chance comes in: with
other cases (Wilcoxon's signed-rank test over the cases), and with other trainings of the same models (a t-test over
what trainings differ by that differ in their seed alone, `statistics.training_test`). The cases alone would not do:
all cases of a training share its luck, so that two trainings of one and the same model are often "significantly"
different. The p-value of a pair is the larger of the two, an intersection-union test (Berger, Multiparameter Hypothesis
Testing and Acceptance Sampling, Technometrics 24, 1982), and 1 where the two point to different sides; it is adjusted
for the number of comparisons by Holm's procedure. Without repeated trainings, but with three folds or more, the second
test is a t-test over the folds' differences, each of which has trainings of its own; with fewer there is no second
p-value, and a difference must reach a margin instead.

Cases are taken as independent of one another.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.evaluation.comparison_results import (
    METRICS,
    ComparedScores,
    Comparison,
    FoundDifference,
    FoundShare,
    LabelComparison,
    MetricComparison,
    ModelMean,
    PairDifference,
    SizeComparison,
    Training,
)
from umamba_cli.pipeline.evaluation.score_tables import (
    LesionTable,
    ScoreTable,
    lesion_tables,
    paired_differences,
    require_comparable,
    score_tables,
    with_mean,
)
from umamba_cli.pipeline.evaluation.statistics import (
    DRAWS,
    Interval,
    TrainingSpread,
    bootstrap_intervals,
    bootstrap_means,
    holm,
    mean_of_numbers,
    percentile_intervals,
    pooled_spread,
    rank_biserial,
    training_error,
    training_test,
    wilcoxon,
)
from umamba_cli.pipeline.evaluation.verdict import LEVEL, Repetitions, labels_verdict, metric_verdict

__all__ = ["MARGIN", "METRICS", "ComparedScores", "Comparison", "Training", "compare_trainings"]


MARGIN = 0.02
"""The difference to reach where no training was repeated: users report Dice from 85.5 to 86.9 for one model, and two
trainings of one may well be that far apart."""

FEWEST_FOLDS = 3
"""Without repeated trainings, so many folds tell how far a difference depends on the training."""


def compare_trainings(
    trainings: Sequence[Training], label_names: Mapping[str, str], *, margin: float = MARGIN, draws: int = DRAWS
) -> Comparison:
    """Compare models by the results of their trainings.

    Not every model needs all seeds and folds: a pair is compared on the cases that both have. Models are told in the
    order in which they come first; apart from that (and the sign of a difference) the order of trainings is of no
    matter.

    Args:
        trainings: of two models or more, in any number of folds and seeds.
        label_names: the labels to look at, with their names; the scores of others are left out.
        margin: what a difference must reach to be shown where no training was repeated.
        draws: of the bootstrap.

    Raises:
        InputError: see `require_comparable`.
    """
    require_comparable(trainings)
    labels = list(label_names)
    counts = Counter((training.model, str(training.fold)) for training in trainings)
    repetitions = Repetitions(min(counts.values()), max(counts.values()), any(fold for _, fold in counts))
    metrics = {}
    for metric, name in METRICS.items():
        tables = score_tables(trainings, labels, metric)
        metrics[metric] = _compare_metric(name, tables, label_names, repetitions, margin, draws)
    sizes, lesions = lesion_tables(trainings, labels)
    return Comparison(
        models=tuple(table.model for table in lesions),
        label_names=dict(label_names),
        metrics=metrics,
        sizes=_compare_sizes(sizes, lesions, draws),
        margin=margin,
    )


def _compare_metric(
    name: str,
    tables: Sequence[ScoreTable],
    label_names: Mapping[str, str],
    repetitions: Repetitions,
    margin: float,
    draws: int,
) -> MetricComparison:
    """Columns are counted from the mean over labels, 0, on; the labels follow."""
    means = [_model_means(table, draws) for table in tables]
    groups = [group for table in tables for group in table.fold_means()]
    spreads = [pooled_spread([group[:, column] for group in groups]) for column in range(1 + len(label_names))]
    pairs = [_pair_differences(one, other, spreads, draws) for one, other in combinations(tables, 2)]
    of_all = _judged([pair[0] for pair in pairs], margin)
    by_label = _judged([pair for columns in pairs for pair in columns[1:]], margin)
    labels = [
        LabelComparison(
            key, label, tuple(mean[index + 1] for mean in means), tuple(by_label[index :: len(label_names)])
        )
        for index, (key, label) in enumerate(label_names.items())
    ]
    return MetricComparison(
        name=name,
        models=tuple(mean[0] for mean in means),
        pairs=tuple(of_all),
        labels=tuple(labels),
        training_sd=math.sqrt(spreads[0].variance),
        degrees_of_freedom=spreads[0].degrees,
        verdict=metric_verdict(name, [table.model for table in tables], of_all, repetitions, margin),
        labels_verdict=labels_verdict(name, {each.name: each.pairs for each in labels}) if len(labels) > 1 else None,
    )


def _model_means(table: ScoreTable, draws: int) -> list[ModelMean]:
    """A model's means in every column."""
    scores = table.case_scores[table.cases]
    means = with_mean(mean_of_numbers(scores, axis=0))
    intervals = percentile_intervals(with_mean(bootstrap_means(scores, draws=draws)))
    counts = (~np.isnan(with_mean(scores))).sum(axis=0)
    repeated = table.repetition_means()
    found = []
    for column, mean in enumerate(means):
        values = repeated[:, column][~np.isnan(repeated[:, column])]
        found.append(
            ModelMean(
                model=table.model,
                mean=float(mean),
                interval=_interval(intervals, column),
                sd=float(values.std(ddof=1)) if values.size > 1 else math.nan,
                lowest=float(values.min()) if values.size else math.nan,
                highest=float(values.max()) if values.size else math.nan,
                cases=int(counts[column]),
                repetitions=len(repeated),
            )
        )
    return found


def _pair_differences(
    first: ScoreTable, second: ScoreTable, spreads: Sequence[TrainingSpread], draws: int
) -> list[PairDifference]:
    """Two models' differences in every column, not yet judged."""
    differences = paired_differences(first, second)
    means, intervals = mean_of_numbers(differences, axis=0), bootstrap_intervals(differences, draws=draws)
    counted = np.zeros((len(first.cases), differences.shape[1]), dtype=bool)
    counted[first.cases & second.cases] = ~np.isnan(differences)
    shares = [table.training_shares(counted) for table in (first, second)]
    found = []
    for column, mean in enumerate(means.tolist()):
        values = differences[:, column][~np.isnan(differences[:, column])]
        effect, p_cases = rank_biserial(values), wilcoxon(values)
        error = training_error(spreads[column], shares[0][column], shares[1][column])
        p_trainings = training_test(mean, error, spreads[column].degrees)
        if math.isnan(p_trainings) and (by_fold := _fold_differences(first, second, column)).size >= FEWEST_FOLDS:
            error = float(by_fold.std(ddof=1)) / math.sqrt(by_fold.size)
            p_trainings = training_test(float(by_fold.mean()), error, by_fold.size - 1)
        p = p_cases if math.isnan(p_trainings) else max(p_cases, p_trainings)
        found.append(
            PairDifference(
                first=first.model,
                second=second.model,
                cases=values.size,
                difference=mean,
                interval=_interval(intervals, column),
                median=float(np.median(values)) if values.size else math.nan,
                effect=effect if values.size else math.nan,
                p_cases=p_cases if values.size else math.nan,
                training_error=error,
                p_trainings=p_trainings,
                p=(p if mean * effect > 0 else 1.0) if values.size else math.nan,
                p_adjusted=math.nan,
                shown=False,
            )
        )
    return found


def _fold_differences(first: ScoreTable, second: ScoreTable, column: int) -> NDArray[np.float64]:
    """(folds,): in each fold that both models have, the second's mean score less the first's."""
    means = [
        dict(zip(dict.fromkeys(table.folds), (group[:, column].mean() for group in table.fold_means()), strict=True))
        for table in (first, second)
    ]
    differences = np.array([means[1][fold] - means[0][fold] for fold in means[0] if fold in means[1]])
    return np.asarray(differences[~np.isnan(differences)])


def _judged(pairs: Sequence[PairDifference], margin: float) -> list[PairDifference]:
    """The pairs with their p-values adjusted to each other, and whether their difference is shown."""
    judged = []
    for pair, p in zip(pairs, holm([pair.p for pair in pairs]), strict=True):
        large = not math.isnan(pair.p_trainings) or abs(pair.difference) >= margin
        judged.append(replace(pair, p_adjusted=p, shown=p < LEVEL and large))
    return judged


def _compare_sizes(names: Sequence[str], tables: Sequence[LesionTable], draws: int) -> tuple[SizeComparison, ...]:
    """All models on the lesions of each size; a share is that of all cases' lesions together, in every draw too."""
    models: list[list[FoundShare]] = [[] for _ in names]
    pairs: list[list[FoundDifference]] = [[] for _ in names]
    for table in tables:
        lesions, shares, drawn = _found_shares(table, table.cases, draws)
        ends = percentile_intervals(drawn)
        for column, found in enumerate(models):
            found.append(FoundShare(table.model, lesions[column], float(shares[column]), _interval(ends, column)))
    for one, other in combinations(tables, 2):
        common = one.cases & other.cases
        (lesions, first, first_drawn), (_, second, second_drawn) = (
            _found_shares(table, common, draws) for table in (one, other)
        )
        ends = percentile_intervals(second_drawn - first_drawn)
        for column, differences in enumerate(pairs):
            difference = float(second[column] - first[column])
            differences.append(
                FoundDifference(one.model, other.model, lesions[column], difference, _interval(ends, column))
            )
    return tuple(
        SizeComparison(name, tuple(found), tuple(differences))
        for name, found, differences in zip(names, models, pairs, strict=True)
    )


def _found_shares(
    table: LesionTable, cases: NDArray[np.bool_], draws: int
) -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]]:
    """Over the given cases, for every size: the reference's lesions, the share found, and each draw's (draws, sizes).

    Draws over the same cases are the same for all models, so that their shares can be subtracted.
    """
    reference, found = table.reference[cases], table.found[cases]
    totals = reference.sum(axis=0)
    drawn = bootstrap_means(reference, draws=draws), bootstrap_means(found, draws=draws)
    return (
        [round(total) for total in totals.tolist()],
        _divided(found.sum(axis=0), totals),
        _divided(drawn[1], drawn[0]),
    )


def _divided(found: NDArray[np.float64], lesions: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN where there is nothing to find."""
    return np.asarray(np.divide(found, lesions, out=np.full(found.shape, math.nan), where=lesions > 0))


def _interval(ends: NDArray[np.float64], column: int) -> Interval:
    return Interval(float(ends[0, column]), float(ends[1, column]))
