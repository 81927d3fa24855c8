from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy import stats

from umamba_cli.pipeline.evaluation import statistics
from umamba_cli.pipeline.evaluation.statistics import (
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

NAN = math.nan


def scores(cases: int, columns: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).beta(8, 2, size=(cases, columns))


def test_mean_leaves_out_what_is_no_number() -> None:
    values = np.array([[1.0, NAN, 3.0], [NAN, NAN, 5.0]])
    np.testing.assert_array_equal(mean_of_numbers(values, axis=0), [1, NAN, 4])
    np.testing.assert_array_equal(mean_of_numbers(values, axis=1), [2, 5])


def test_bootstrap_is_that_of_a_slow_loop_with_the_same_draws() -> None:
    values = scores(9, 3)
    values[2:5, 1] = NAN
    generator = np.random.default_rng(7)
    drawn = generator.integers(9, size=(300, 9))
    expected = np.array([[np.nanmean(values[rows, column]) for column in range(3)] for rows in drawn])
    np.testing.assert_allclose(bootstrap_means(values, draws=300, seed=7), expected, rtol=1e-12)
    intervals = bootstrap_intervals(values, share=0.9, draws=300, seed=7)
    np.testing.assert_allclose(intervals, np.quantile(expected, [0.05, 0.95], axis=0), rtol=1e-12)


def test_bootstrap_interval_is_that_of_scipy() -> None:
    values = scores(40, 1)
    theirs = stats.bootstrap(
        (values[:, 0],), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    (low,), (high,) = bootstrap_intervals(values, draws=20000)
    width = theirs.high - theirs.low
    assert low == pytest.approx(theirs.low, abs=0.03 * width)
    assert high == pytest.approx(theirs.high, abs=0.03 * width)


def test_bootstrap_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    # 400 tables of 60 cases as columns; the percentile bootstrap is a little too narrow for few cases.
    values = np.random.default_rng(5).normal(0.8, 0.1, size=(60, 400))
    low, high = bootstrap_intervals(values)
    assert 0.91 <= np.mean((low <= 0.8) & (high >= 0.8)) <= 0.975


def test_columns_with_few_numbers() -> None:
    values = np.full((6, 3), NAN)
    values[4, 1] = 0.25
    values[:, 2] = 0.7
    low, high = bootstrap_intervals(values)
    np.testing.assert_allclose(low, [NAN, 0.25, 0.7], rtol=1e-12)  # draws without the one number are left out
    np.testing.assert_allclose(high, [NAN, 0.25, 0.7], rtol=1e-12)
    assert np.isnan(bootstrap_means(values, draws=50)[:, 1]).any()


def test_interval_of_one_case_is_its_value_and_of_none_no_number() -> None:
    np.testing.assert_array_equal(bootstrap_intervals(np.array([[0.3, NAN]])), [[0.3, NAN], [0.3, NAN]])
    assert np.isnan(bootstrap_intervals(np.empty((0, 2)))).all()


def test_result_is_the_same_each_time_and_for_each_column_alone() -> None:
    values = scores(12, 4)
    both = bootstrap_intervals(values, draws=200)
    np.testing.assert_array_equal(both, bootstrap_intervals(values, draws=200))
    np.testing.assert_allclose(both[:, 2:3], bootstrap_intervals(values[:, 2:3], draws=200), rtol=1e-12)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = scores(10, 30)
    values[3, ::4] = NAN
    expected = bootstrap_intervals(values, draws=100)
    monkeypatch.setattr(statistics, "_BLOCK", 400)  # 40 draws of 10 cases, 4 columns of 100 draws
    np.testing.assert_allclose(bootstrap_intervals(values, draws=100), expected, rtol=1e-12)


def test_many_cases_and_columns_take_seconds() -> None:
    values = scores(1000, 2000)
    start = time.perf_counter()
    bootstrap_intervals(values)
    assert time.perf_counter() - start < 10  # 1 to 2 s alone


def test_percentiles_leave_out_what_is_no_number() -> None:
    samples = np.array([[1.0, NAN], [2.0, NAN], [NAN, NAN], [3.0, NAN]])
    np.testing.assert_allclose(percentile_intervals(samples, share=0.5), [[1.5, NAN], [2.5, NAN]])


@pytest.mark.parametrize(
    "differences",
    [
        [0.01, 0.02, -0.015, 0.03, 0.04, 0.06, -0.005],
        list(np.random.default_rng(2).normal(0.004, 0.01, size=26)),
        list(np.random.default_rng(2).normal(0.004, 0.01, size=50)),
        list(np.random.default_rng(3).normal(0.002, 0.01, size=51)),
        list(np.random.default_rng(3).normal(0.002, 0.01, size=300)),
        list(np.random.default_rng(3).normal(0.2, 1, size=300).round(1)),
        [0.1, 0.1, -0.1, 0.2, 0.2, 0.3, -0.4, 0.5],
    ],
    ids=["few", "hippocampus", "most exact", "fewest approximate", "many", "many with ties", "few with ties"],
)
def test_wilcoxon_is_that_of_scipy(differences: list[float]) -> None:
    values = np.array(differences)
    assert wilcoxon(values) == pytest.approx(stats.wilcoxon(values[values != 0]).pvalue, rel=1e-9)


def test_wilcoxon_by_hand() -> None:
    # Ranks 1 to 5, all for the second model: one of 2 ** 5 signs to either side. With the first against it, ranks
    # of 14 or more (all; all but the first) come up in 2 of 32.
    assert wilcoxon(np.array([1.0, 2, 3, 4, 5])) == pytest.approx(2 / 32)
    assert wilcoxon(np.array([-1.0, 2, 3, 4, 5])) == pytest.approx(4 / 32)


def test_wilcoxon_is_exact_with_ties() -> None:
    # Ranks 2, 2, 2, 4, all positive; one of the first three negative gives 8 and 2 of 10: (1 + 3) of 16, both sides.
    assert wilcoxon(np.array([0.1, 0.1, 0.1, 0.2])) == pytest.approx(2 / 16)
    assert wilcoxon(np.array([0.1, 0.1, -0.1, 0.2])) == pytest.approx(8 / 16)
    many = np.append(np.full(20, 0.1), np.full(10, -0.1))  # all of one rank: the sign test
    assert wilcoxon(many) == pytest.approx(stats.binomtest(10, 30).pvalue)


def test_wilcoxon_drops_zeros_and_rounding_noise() -> None:
    alone = wilcoxon(np.array([1.0, 2, 3, 4, 5]))
    assert wilcoxon(np.array([1.0, 2, 3, 4, 5, 0, 0, 1e-12, -1e-12, NAN])) == alone
    noisy = 0.1 + np.array([0, 1, -1, 2]) * 1e-15  # four equal differences, not four ranks
    assert wilcoxon(np.append(noisy, -0.1)) == wilcoxon(np.array([0.1, 0.1, 0.1, 0.1, -0.1]))


@pytest.mark.parametrize("differences", [[], [0.0, 0.0], [1e-12, -1e-13], [NAN], [0.2]])
def test_wilcoxon_without_anything_to_rank(differences: list[float]) -> None:
    assert wilcoxon(np.array(differences)) == 1


def test_rank_biserial_by_hand() -> None:
    # Ranks 1, 2, 3, 4; against: rank 2. (8 - 2) / 10. Ties share their ranks: 1.5, 1.5, 3, of which 1.5 against.
    assert rank_biserial(np.array([0.1, -0.2, 0.3, 0.4])) == pytest.approx(0.6)
    assert rank_biserial(np.array([0.1, -0.1, 0.3])) == pytest.approx(0.5)
    assert rank_biserial(np.array([0.1, 0.2, 0.0, NAN, 1e-13])) == 1
    assert rank_biserial(np.array([-0.1, -0.2])) == -1
    assert rank_biserial(np.array([0.0, NAN])) == 0


def test_rank_biserial_agrees_with_the_statistic_of_wilcoxon() -> None:
    differences = np.random.default_rng(4).normal(0.3, 1, size=30)
    positive = stats.wilcoxon(differences, alternative="greater").statistic
    assert rank_biserial(differences) == pytest.approx(2 * positive / (30 * 31 / 2) - 1)


def test_holm_by_hand() -> None:
    # 4 * 0.01, 3 * 0.02 = 0.06, 2 * 0.03 = 0.06, 1 * 0.04, raised to the 0.06 before it.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6, 0.9]) == [1, 1, 1]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holm_leaves_out_what_is_no_number() -> None:
    np.testing.assert_allclose(holm([NAN, 0.02, NAN, 0.01]), [NAN, 0.02, NAN, 0.02])


def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni() -> None:
    p = np.random.default_rng(6).uniform(size=20) ** 3
    adjusted = np.array(holm(list(p)))
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, 20 * p)).all()


def test_pooled_spread_by_hand() -> None:
    # Around 2: 1 + 1, one degree; around 5: 4 + 4, two degrees; one training alone tells nothing.
    spread = pooled_spread([np.array([1.0, 3]), np.array([3.0, 5, 7]), np.array([9.0])])
    assert spread == TrainingSpread(pytest.approx(10 / 3), 3)


def test_copies_of_a_training_tell_nothing_of_the_spread() -> None:
    copies = np.array([0.8, 0.8, 0.8 + 1e-13])
    assert pooled_spread([copies, np.array([0.8, NAN])]).degrees == 0
    assert math.isnan(pooled_spread([copies]).variance)
    assert pooled_spread([copies, np.array([1.0, 3])]) == TrainingSpread(pytest.approx(2), 1)


def test_training_test_is_the_t_test_of_scipy() -> None:
    # One fold and three trainings of both models: Student's t-test with a pooled variance.
    first, second = np.array([0.80, 0.82, 0.81]), np.array([0.83, 0.84, 0.82])
    spread = pooled_spread([first, second])
    error = training_error(spread, 1 / 3, 1 / 3)
    p = training_test(float(second.mean() - first.mean()), error, spread.degrees)
    assert p == pytest.approx(stats.ttest_ind(first, second).pvalue, rel=1e-9)


def test_training_test_without_repetitions() -> None:
    spread = pooled_spread([np.array([0.8]), np.array([0.9])])
    assert math.isnan(training_test(0.1, training_error(spread, 1, 1), spread.degrees))
    assert math.isnan(training_test(NAN, 0.1, 3))
