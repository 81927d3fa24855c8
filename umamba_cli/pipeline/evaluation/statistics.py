"""Intervals and tests for comparing models on the same cases.

Scores come as arrays of shape (cases,) or (cases, columns); NaN stands for "no number" and is left out everywhere.
scipy.stats is imported where it is used: it takes longer to load than most commands to run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHARE = 0.95
"""Part of the draws that an interval covers."""

DRAWS = 2000
"""Draws of a bootstrap."""

DECIMALS = 10
"""Differences are rounded to this many decimals before they are ranked: what is smaller is rounding noise."""

EXACT = 50
"""Most differences whose signed ranks are counted exactly."""

_BLOCK = 2**21
"""Numbers of the largest array made at once by the bootstrap: 16 MiB."""


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`; both NaN where there were no numbers."""

    low: float
    high: float


@dataclass(frozen=True)
class TrainingSpread:
    """What trainings that differ in nothing but their seed differ by."""

    variance: float
    """Of a training's mean score; NaN where no training was repeated."""

    degrees: int
    """Degrees of freedom behind the variance; 0 where no training was repeated."""


def mean_of_numbers(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """The mean along an axis without the NaN values; NaN where there is no number."""
    numbers = ~np.isnan(values)
    counts = numbers.sum(axis=axis)
    sums = np.where(numbers, values, 0.0).sum(axis=axis)
    return np.asarray(np.divide(sums, counts, out=np.full(np.shape(sums), math.nan), where=counts > 0))


def bootstrap_intervals(
    values: NDArray[np.float64], *, share: float = SHARE, draws: int = DRAWS, seed: int = 0
) -> NDArray[np.float64]:
    """Percentile bootstrap intervals of each column's mean over cases.

    Cases are drawn with replacement, as many as there are, and all columns see the same draws. The interval tells how
    far the mean would move with other cases of the same kind; it knows nothing of other trainings.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Args:
        values: (cases, columns); a draw's mean is over the numbers it has.
        share: part of the draws that the interval covers.
        draws: number of draws.
        seed: of the draws; the same seed and number of cases give the same draws.

    Returns:
        (2, columns): lower and upper ends. NaN for a column without numbers; of a single case, both ends are its
        value, which says nothing about other cases.
    """
    columns = values.shape[1]
    width = max(1, _BLOCK // draws)
    ends = np.full((2, columns), math.nan)
    for start in range(0, columns, width):
        part = slice(start, start + width)
        ends[:, part] = percentile_intervals(bootstrap_means(values[:, part], draws=draws, seed=seed), share=share)
    return ends


def bootstrap_means(values: NDArray[np.float64], *, draws: int = DRAWS, seed: int = 0) -> NDArray[np.float64]:
    """The columns' means over cases drawn with replacement.

    Args:
        values: (cases, columns).
        draws: number of draws.
        seed: as for `bootstrap_intervals`.

    Returns:
        (draws, columns): NaN where a draw has no number of a column.
    """
    cases, columns = values.shape
    means = np.full((draws, columns), math.nan)
    if not cases:
        return means
    generator = np.random.default_rng(seed)
    numbers = ~np.isnan(values)
    filled, counted = np.where(numbers, values, 0.0), numbers.astype(np.float64)
    rows = max(1, _BLOCK // cases)
    for start in range(0, draws, rows):
        times = _times_drawn(generator, min(rows, draws - start), cases)
        sums, counts = times @ filled, times @ counted
        np.divide(sums, counts, out=means[start : start + rows], where=counts > 0)
    return means


def _times_drawn(generator: np.random.Generator, draws: int, cases: int) -> NDArray[np.float64]:
    """How often every draw has each case: (draws, cases), rows that sum up to the number of cases."""
    drawn = generator.integers(cases, size=(draws, cases)) + cases * np.arange(draws)[:, np.newaxis]
    return np.bincount(drawn.ravel(), minlength=draws * cases).reshape(draws, cases).astype(np.float64)


def percentile_intervals(samples: NDArray[np.float64], *, share: float = SHARE) -> NDArray[np.float64]:
    """The ends (2, columns) between which the middle `share` of each column's numbers (draws, columns) lies."""
    ends = np.full((2, samples.shape[1]), math.nan)
    quantiles = [(1 - share) / 2, (1 + share) / 2]
    numbers = ~np.isnan(samples)
    every, some = numbers.all(axis=0), numbers.any(axis=0)
    if every.any():
        ends[:, every] = np.quantile(samples[:, every], quantiles, axis=0)
    for column in np.flatnonzero(some & ~every):
        ends[:, column] = np.quantile(samples[numbers[:, column], column], quantiles)
    return ends


def wilcoxon(differences: NDArray[np.float64]) -> float:
    """The two-sided p-value of Wilcoxon's signed-rank test, 1 where no difference is left to rank.

    Zero differences (and rounding noise, see `DECIMALS`) are dropped, as Wilcoxon did. The p-value is exact for up to
    `EXACT` differences, with ties too, and scipy's normal approximation beyond. Source: Wilcoxon, Individual
    Comparisons by Ranking Methods, Biometrics Bulletin 1, 1945.

    Args:
        differences: (cases,), taken as independent; NaN is left out.
    """
    from scipy import stats

    ranked = _ranked(differences)
    if ranked.size > EXACT:
        return float(stats.wilcoxon(ranked, method="approx").pvalue)
    # scipy takes a second for 13 differences with ties and approximates for more: here every sum of ranks is counted,
    # doubled, as ties have halves. All 2**50 signs are still whole numbers in float64.
    ranks = np.round(2 * stats.rankdata(np.abs(ranked))).astype(int)
    ways = np.ones(1)
    for rank in ranks:
        ways = np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))
    positive = int(ranks[ranked > 0].sum())
    tail = min(ways[: positive + 1].sum(), ways[positive:].sum())
    return min(1.0, float(2 * tail / ways.sum()))


def rank_biserial(differences: NDArray[np.float64]) -> float:
    """The size of an effect: the share of ranks that speak for it less the share that speak against it.

    From -1 (every difference is negative) to 1 (every one is positive); zero differences are dropped as for
    `wilcoxon`, and 0 is returned where none is left. Source: Kerby, The Simple Difference Formula, Comprehensive
    Psychology 3, 2014.

    Args:
        differences: (cases,); NaN is left out.
    """
    from scipy import stats

    ranked = _ranked(differences)
    if not ranked.size:
        return 0.0
    ranks = stats.rankdata(np.abs(ranked))
    return float(np.sum(ranks * np.sign(ranked)) / np.sum(ranks))


def _ranked(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """The differences that have a rank: numbers, not zero, equal where they differ by rounding noise alone."""
    rounded = np.round(differences[~np.isnan(differences)], DECIMALS)
    return np.asarray(rounded[rounded != 0])


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for there being several: none of them below 0.05 by chance in 95 of 100 tables.

    NaN stays NaN and does not count as a test. Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure,
    Scandinavian Journal of Statistics 6, 1979.
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = largest
    return adjusted


def pooled_spread(groups: Sequence[NDArray[np.float64]]) -> TrainingSpread:
    """The variance of trainings around the mean of their group, over all groups together.

    A group whose trainings all agree is left out: they are copies of one another, or every score is 0 or 1, and
    neither tells how far trainings differ. This can only make the variance larger.

    Args:
        groups: for every model and fold, the mean scores of the trainings that differ in their seed alone; NaN is
            left out.
    """
    squares, degrees = 0.0, 0
    for group in groups:
        means = np.asarray(group)[~np.isnan(group)]
        if means.size > 1 and np.ptp(means) > 10.0**-DECIMALS:
            squares += float(np.sum((means - means.mean()) ** 2))
            degrees += means.size - 1
    return TrainingSpread(squares / degrees if degrees else math.nan, degrees)


def training_error(spread: TrainingSpread, first_share: float, second_share: float) -> float:
    """The standard error that the spread over trainings gives to the difference of two models' means.

    Args:
        spread: see `pooled_spread`.
        first_share: the sum of the squared weights of the first model's trainings in its mean: one by their number
            where all weigh the same.
        second_share: that of the second model.
    """
    return math.sqrt(spread.variance * (first_share + second_share))


def training_test(difference: float, error: float, degrees: int) -> float:
    """The two-sided p-value of a difference of two models' means, measured by what trainings differ by.

    A t-test with a pooled variance. It takes for granted that trainings are independent of one another, that the mean
    scores of a fold's trainings are roughly normal, and that they scatter alike in all models and folds: with two or
    three trainings a fold nothing finer can be estimated, and a model that scatters more than the others hides
    differences between them rather than showing some that are not there.

    Args:
        difference: of the two models' means.
        error: its standard error, see `training_error`.
        degrees: degrees of freedom, see `TrainingSpread`.

    Returns:
        NaN where no training was repeated.
    """
    from scipy import stats

    if not degrees or math.isnan(difference):
        return math.nan
    if not error:  # every difference is the same
        return 0.0 if difference else 1.0
    return float(2 * stats.t.sf(abs(difference) / error, degrees))
