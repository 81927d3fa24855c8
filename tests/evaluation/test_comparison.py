from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import stats
from simulated_scores import NAN, ONE, TWO, score, simulated, training

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.evaluation.comparison import METRICS, Training, compare_trainings
from umamba_cli.pipeline.evaluation.comparison_results import PairDifference
from umamba_cli.pipeline.evaluation.statistics import bootstrap_intervals, bootstrap_means


def dice_pair(trainings: Sequence[Training], labels: Mapping[str, str] = ONE, draws: int = 50) -> PairDifference:
    return compare_trainings(trainings, labels, draws=draws).metrics["dice"].pairs[0]


# Means.


def test_mean_over_labels_of_the_means_over_cases() -> None:
    # Label 1: 0.8, 0.6, 0.7; label 2 is in two cases: 0.4, 0.2. Over labels (0.7 + 0.3) / 2, not over cases.
    trainings = [training("one", [(0.8, 0.4), (0.6, NAN), (0.7, 0.2)]), training("other", [(0.5, 0.5)] * 3)]
    metric = compare_trainings(trainings, TWO).metrics["dice"]
    assert metric.models[0].mean == pytest.approx(0.5)
    assert metric.models[0].cases == 3
    assert [label.models[0].mean for label in metric.labels] == pytest.approx([0.7, 0.3])
    assert [label.models[0].cases for label in metric.labels] == [3, 2]
    assert [(label.label, label.name) for label in metric.labels] == [("1", "organ"), ("2", "tumour")]


def test_every_metric_is_compared() -> None:
    comparison = compare_trainings([training("one", [0.8]), training("other", [0.6])], ONE)
    assert list(comparison.metrics) == list(METRICS)
    assert comparison.metrics["surface_dice"].models[0].mean == pytest.approx(0.4)
    assert math.isnan(comparison.metrics["lesion_f1"].models[0].mean)
    assert comparison.metrics["lesion_f1"].models[0].cases == 0
    assert comparison.metrics["lesion_f1"].pairs[0].cases == 0
    assert not comparison.metrics["lesion_f1"].pairs[0].shown


def test_spread_over_repetitions() -> None:
    # Seed 0: (0.6 + 0.8) / 2, seed 1: (0.7 + 0.9) / 2, over two folds of a case each.
    trainings = [
        training("one", [0.6], 0, 0), training("one", [0.8], 0, 1),
        training("one", [0.7], 1, 0), training("one", [0.9], 1, 1),
        training("other", [0.5], 0, 0), training("other", [0.5], 0, 1),
    ]  # fmt: skip
    one, other = compare_trainings(trainings, ONE).metrics["dice"].models
    assert (one.mean, one.lowest, one.highest) == pytest.approx((0.75, 0.7, 0.8))
    assert one.sd == pytest.approx(np.std([0.7, 0.8], ddof=1))
    assert (one.cases, one.repetitions) == (2, 2)
    assert math.isnan(other.sd)
    assert other.repetitions == 1


def test_incomplete_repetition_is_left_out_of_the_spread() -> None:
    # Seed 1 has the easy fold alone; its mean is no repetition of seed 0's.
    trainings = [
        training("one", [0.2], 0, 0), training("one", [0.8], 0, 1), training("one", [0.9], 1, 1),
        training("other", [0.5], 0, 0), training("other", [0.5], 0, 1),
    ]  # fmt: skip
    one = compare_trainings(trainings, ONE).metrics["dice"].models[0]
    assert one.mean == pytest.approx((0.2 + 0.85) / 2)
    assert one.repetitions == 1
    assert math.isnan(one.sd)
    assert one.lowest == one.highest == pytest.approx(0.5)


def test_interval_of_a_mean_is_over_its_own_cases() -> None:
    values = np.random.default_rng(1).uniform(size=(12, 2))
    values[3, 1] = NAN
    trainings = [training("one", values.tolist()), training("other", [(0.5, 0.5)] * 15)]
    metric = compare_trainings(trainings, TWO).metrics["dice"]
    low, high = bootstrap_intervals(values)
    for column, label in enumerate(metric.labels):
        assert (label.models[0].interval.low, label.models[0].interval.high) == (low[column], high[column])
    ends = np.quantile(bootstrap_means(values).mean(axis=1), [0.025, 0.975])
    assert (metric.models[0].interval.low, metric.models[0].interval.high) == pytest.approx(tuple(ends))


# Pairs.


def test_pair_against_scipy() -> None:
    generator = np.random.default_rng(2)
    first, second = generator.uniform(0.6, 0.9, size=20), generator.uniform(0.65, 0.95, size=20)
    pair = dice_pair([training("one", list(first)), training("other", list(second))], draws=2000)
    gained = second - first
    assert (pair.first, pair.second, pair.cases) == ("one", "other", 20)
    assert pair.difference == pytest.approx(gained.mean())
    assert pair.median == pytest.approx(np.median(gained))
    assert pair.p_cases == pair.p == pair.p_adjusted == pytest.approx(stats.wilcoxon(gained).pvalue)
    positive = stats.wilcoxon(gained, alternative="greater").statistic
    assert pair.effect == pytest.approx(2 * positive / 210 - 1)
    low, high = bootstrap_intervals(gained[:, np.newaxis])
    assert (pair.interval.low, pair.interval.high) == pytest.approx((low[0], high[0]))
    assert math.isnan(pair.p_trainings)
    assert pair.better == "other"


def test_nothing_found_where_nothing_is_counts_as_right() -> None:
    # Case a: label 2 is in neither map of one, other found it where it is not. Case b: in no map at all.
    trainings = [training("one", [(0.8, NAN), (0.6, NAN)]), training("other", [(0.8, 0.0), (0.7, NAN)])]
    metric = compare_trainings(trainings, TWO).metrics["dice"]
    (pair,) = metric.pairs
    # a: (0 + (0 - 1)) / 2, b: 0.1 of label 1 alone.
    assert pair.difference == pytest.approx((-0.5 + 0.1) / 2)
    assert metric.labels[1].pairs[0].difference == -1
    assert metric.labels[1].pairs[0].cases == 1
    assert math.isnan(metric.labels[1].models[0].mean)
    assert metric.labels[1].models[1].mean == 0


def test_nothing_found_by_one_training_of_a_model_counts_as_right() -> None:
    trainings = [training("one", [NAN], 0), training("one", [0.0], 1), training("other", [NAN], 0)]
    metric = compare_trainings(trainings, ONE).metrics["dice"]
    assert metric.models[0].mean == 0.5
    assert metric.pairs[0].difference == 0.5  # 1 for the other, which was right each time


def test_label_in_no_map_of_either_is_left_out() -> None:
    trainings = [training("one", [(0.8, NAN)]), training("other", [(0.6, NAN)])]
    metric = compare_trainings(trainings, TWO).metrics["dice"]
    assert metric.pairs[0].difference == pytest.approx(-0.2)
    assert metric.labels[1].pairs[0].cases == 0
    assert math.isnan(metric.labels[1].pairs[0].difference)
    assert math.isnan(metric.labels[1].pairs[0].p_adjusted)


def test_label_that_a_case_does_not_list_is_in_neither_map() -> None:
    listed = [training("one", [(0.8, NAN)]), training("other", [(0.6, 0.0)])]
    unlisted = [training("one", [0.8]), listed[1]]
    assert compare_trainings(unlisted, TWO).to_json() == compare_trainings(listed, TWO).to_json()


def test_pair_is_over_the_cases_of_both() -> None:
    pair = dice_pair([training("one", [0.5, 0.6, 0.9]), training("other", [0.6, 0.8])])
    assert pair.cases == 2
    assert pair.difference == pytest.approx(0.15)


def test_mean_and_ranks_that_point_to_different_sides_show_nothing() -> None:
    # Nearly all cases gain 0.02, one loses everything.
    first = np.linspace(0.7, 0.9, 40)
    second = first + 0.02 + np.linspace(0, 0.001, 40)
    second[0] = 0.7 - 2
    pair = dice_pair([training("one", list(first)), training("other", list(second))])
    assert pair.difference < -0.01
    assert pair.effect > 0.9
    assert pair.p_cases < 0.001
    assert pair.p == pair.p_adjusted == 1
    assert not pair.shown


# Other trainings.


def test_p_over_trainings_is_the_t_test_of_scipy_for_one_fold() -> None:
    trainings = simulated(np.random.default_rng(3), seeds=3, folds=1)
    pair = dice_pair(trainings)
    means = {
        model: [np.mean([case["1"].dice for case in one.cases.values()]) for one in trainings if one.model == model]
        for model in ("one", "other")
    }
    assert pair.p_trainings == pytest.approx(stats.ttest_ind(means["other"], means["one"]).pvalue, rel=1e-6)
    assert pair.p == max(pair.p_cases, pair.p_trainings)


def test_spread_over_trainings_by_hand() -> None:
    # Fold means of one: 0.5, 0.7 and 0.6, 0.6 + 0.2; of other 0.9 and 0.9 once each. Within folds: 0.02 + 0.02 over
    # 2 degrees. Weights of one's trainings 1/4 each, of the other's 1/2: errors 0.02 / 4 and 0.02 / 2.
    trainings = [
        training("one", [0.5], 0, 0), training("one", [0.7], 1, 0),
        training("one", [0.6], 0, 1), training("one", [0.8], 1, 1),
        training("other", [0.9], 0, 0), training("other", [0.9], 0, 1),
    ]  # fmt: skip
    metric = compare_trainings(trainings, ONE).metrics["dice"]
    assert metric.degrees_of_freedom == 2
    assert metric.training_sd == pytest.approx(math.sqrt(0.02))
    (pair,) = metric.pairs
    assert pair.training_error == pytest.approx(math.sqrt(0.02 / 4 + 0.02 / 2))
    assert pair.p_trainings == pytest.approx(2 * stats.t.sf(0.25 / pair.training_error, 2))


def test_weights_of_trainings_follow_the_cases() -> None:
    # Fold 0 has three cases and two trainings, fold 1 one case and one training: 3/8, 3/8, 1/4 of one's mean.
    trainings = [
        training("one", [0.5, 0.5, 0.5], 0, 0), training("one", [0.7, 0.7, 0.7], 1, 0), training("one", [0.6], 0, 1),
        training("other", [0.9] * 3, 0, 0), training("other", [0.9], 0, 1),
    ]  # fmt: skip
    shares = 2 * (3 / 8) ** 2 + (1 / 4) ** 2 + (3 / 4) ** 2 + (1 / 4) ** 2
    assert dice_pair(trainings).training_error == pytest.approx(math.sqrt(0.02 * shares))


def test_label_has_its_own_spread_over_trainings() -> None:
    trainings = [
        training("one", [(0.5, 0.5)], 0), training("one", [(0.7, 0.6)], 1), training("other", [(0.9, 0.9)], 0)
    ]  # fmt: skip
    metric = compare_trainings(trainings, TWO).metrics["dice"]
    errors = [label.pairs[0].training_error for label in metric.labels]
    assert errors == pytest.approx([math.sqrt(0.02 * 1.5), math.sqrt(0.005 * 1.5)])
    assert metric.pairs[0].training_error == pytest.approx(math.sqrt(0.01125 * 1.5))  # means 0.5 and 0.65


def test_without_repetitions_a_small_difference_is_not_shown() -> None:
    first = np.linspace(0.7, 0.9, 30)
    for gain, shown in ((0.019, False), (0.021, True)):
        second = first + gain + np.linspace(-1e-4, 1e-4, 30)
        comparison = compare_trainings([training("one", list(first)), training("other", list(second))], ONE)
        (pair,) = comparison.metrics["dice"].pairs
        assert pair.p_adjusted < 0.001
        assert pair.shown is shown
        assert "difference below 0.02 counts as that" in comparison.verdict
    trainings = [training("one", list(first)), training("other", list(first + 0.021))]
    assert not compare_trainings(trainings, ONE, margin=0.03).metrics["dice"].pairs[0].shown


def test_copies_are_no_repetitions() -> None:
    first = np.linspace(0.7, 0.9, 30)
    trainings = [training(m, list(first + g), s) for m, g in (("one", 0), ("other", 0.005)) for s in (0, 1)]
    pair = dice_pair(trainings)
    assert math.isnan(pair.p_trainings)
    assert not pair.shown


def test_holm_is_over_the_pairs_and_by_label_over_pairs_and_labels() -> None:
    generator = np.random.default_rng(4)
    trainings = [training(model, generator.uniform(size=(12, 2)).tolist()) for model in ("one", "other", "third")]
    metric = compare_trainings(trainings, TWO, draws=10).metrics["dice"]
    smallest = min(metric.pairs, key=lambda pair: pair.p)
    assert smallest.p_adjusted == pytest.approx(min(1, 3 * smallest.p))
    by_label = [pair for label in metric.labels for pair in label.pairs]
    smallest = min(by_label, key=lambda pair: pair.p)
    assert smallest.p_adjusted == pytest.approx(min(1, 6 * smallest.p))
    for label, column in zip(metric.labels, (0, 1), strict=True):
        assert [(pair.first, pair.second) for pair in label.pairs] == [
            ("one", "other"), ("one", "third"), ("other", "third")
        ]  # fmt: skip
        scores = [np.array([list(case.values())[column].dice for case in one.cases.values()]) for one in trainings[:2]]
        assert label.pairs[0].difference == pytest.approx((scores[1] - scores[0]).mean())


# The same model against itself, and against a better one.


@pytest.mark.parametrize(
    ("seeds", "folds", "offset", "claimed_by_cases"),
    [(2, 2, 0.01, 0.4), (3, 1, 0.01, 0.4), (1, 2, 0.003, 0.1)],
    ids=["2 seeds, 2 folds", "3 seeds", "margin"],
)
def test_same_model_is_rarely_found_to_differ(seeds: int, folds: int, offset: float, claimed_by_cases: float) -> None:
    generator = np.random.default_rng(5)
    pairs = [dice_pair(simulated(generator, seeds=seeds, folds=folds, offset=offset), draws=2) for _ in range(300)]
    assert np.mean([pair.shown for pair in pairs]) <= 0.07  # 0.05, and 1.6 standard errors of 300 runs
    # Why the cases alone will not do: all of a training share its luck.
    assert np.mean([pair.p_cases < 0.05 for pair in pairs]) > claimed_by_cases


@pytest.mark.parametrize(("seeds", "folds"), [(2, 2), (3, 1), (1, 2)])
def test_real_difference_is_found(seeds: int, folds: int) -> None:
    generator = np.random.default_rng(6)
    pairs = [
        dice_pair(simulated(generator, seeds=seeds, folds=folds, offset=0.003, gains={"other": 0.03}), draws=2)
        for _ in range(60)
    ]
    assert np.mean([pair.shown and pair.better == "other" for pair in pairs]) >= 0.95


# Sizes.


def sized(model: str, counts: Sequence[tuple[int, int]], seed: int = 0) -> Training:
    """Cases a, b, ... with one size class each: reference and found lesions."""
    cases = {chr(97 + index): {"1": score(0.5, small=both)} for index, both in enumerate(counts)}
    return Training(model, seed, "", cases)


def test_found_share_is_of_all_lesions_together() -> None:
    # One: 1 of 4 and 1 of 1 and none of none, 2 of 5, not the mean of 1/4 and 1.
    trainings = [sized("one", [(4, 1), (1, 1), (0, 0)]), sized("other", [(4, 3), (1, 1), (0, 0)])]
    (size,) = compare_trainings(trainings, ONE).sizes
    assert size.size == "small"
    assert [(one.model, one.lesions, one.share) for one in size.models] == [("one", 5, 0.4), ("other", 5, 0.8)]
    assert size.pairs[0].difference == pytest.approx(0.4)
    assert size.pairs[0].lesions == 5


def test_found_share_over_seeds_and_labels() -> None:
    trainings = [sized("one", [(4, 1)], 0), sized("one", [(4, 2)], 1), sized("other", [(4, 4)])]
    more = replace(
        trainings[2], cases={"a": {"1": score(0.5, small=(4, 4)), "2": score(0.5, small=(6, 1), big=(1, 0))}}
    )
    sizes = compare_trainings([*trainings[:2], more], TWO).sizes
    assert [size.size for size in sizes] == ["small", "big"]
    one, other = sizes[0].models
    assert (one.lesions, one.share) == (4, 3 / 8)
    assert (other.lesions, other.share) == (10, 0.5)
    assert sizes[1].models[1].share == 0
    assert math.isnan(sizes[1].models[0].share)
    assert sizes[1].models[0].lesions == 0
    assert math.isnan(sizes[1].models[0].interval.low)


def test_intervals_of_shares() -> None:
    generator = np.random.default_rng(7)
    reference = generator.integers(0, 6, size=20)
    found = [generator.binomial(reference, share) for share in (0.5, 0.7)]
    trainings = [
        sized(model, [(int(n), int(k)) for n, k in zip(reference, mine, strict=True)])
        for model, mine in zip(("one", "other"), found, strict=True)
    ]
    (size,) = compare_trainings(trainings, ONE).sizes
    drawn = np.random.default_rng(0).integers(20, size=(2000, 20))  # the draws of the bootstrap
    shares = [[mine[rows].sum() / reference[rows].sum() for rows in drawn] for mine in found]
    for model, expected in zip(size.models, shares, strict=True):
        assert (model.interval.low, model.interval.high) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))
    ends = np.quantile(np.subtract(shares[1], shares[0]), [0.025, 0.975])
    assert (size.pairs[0].interval.low, size.pairs[0].interval.high) == pytest.approx(tuple(ends))


def test_difference_of_shares_is_over_the_cases_of_both() -> None:
    trainings = [sized("one", [(4, 1), (2, 2)]), sized("other", [(4, 3)])]
    (size,) = compare_trainings(trainings, ONE).sizes
    assert size.models[0].share == 0.5
    assert size.pairs[0].difference == pytest.approx(0.5)
    assert size.pairs[0].lesions == 4


# The whole.


def test_order_of_trainings_does_not_matter() -> None:
    trainings = simulated(np.random.default_rng(9), models=("one", "other", "third"), seeds=3)[:-1]
    expected = compare_trainings(trainings, ONE, draws=100).to_json()
    shuffled = [
        replace(one, cases=dict(random.Random(1).sample(list(one.cases.items()), len(one.cases)))) for one in trainings
    ]
    random.Random(2).shuffle(shuffled)
    shuffled.sort(key=lambda one: one.model)  # the order in which models are told is kept
    assert compare_trainings(shuffled, ONE, draws=100).to_json() == expected


def test_order_of_models_turns_the_sign_alone() -> None:
    trainings = simulated(np.random.default_rng(10))
    pair, turned = dice_pair(trainings), dice_pair(trainings[::-1])
    assert (turned.first, turned.second) == (pair.second, pair.first)
    assert turned.difference == pytest.approx(-pair.difference)
    assert (turned.interval.low, turned.interval.high) == pytest.approx((-pair.interval.high, -pair.interval.low))
    assert turned.p_adjusted == pytest.approx(pair.p_adjusted)
    assert turned.better == pair.better


def test_json_has_everything_and_no_nan() -> None:
    trainings = [sized("one", [(4, 1), (0, 0)]), sized("other", [(4, 3), (0, 0)])]
    comparison = compare_trainings(trainings, ONE, draws=20)
    content = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert content["verdict"] == content["metrics"]["dice"]["verdict"] == comparison.verdict
    assert content["mamba_verdict"] is None
    assert content["metrics"]["lesion_f1"]["models"][0]["mean"] is None
    assert content["metrics"]["dice"]["pairs"][0]["p_trainings"] is None
    assert content["metrics"]["dice"]["labels"][0]["pairs"][0]["first"] == "one"
    assert content["sizes"][0]["models"][0] == asdict(comparison.sizes[0].models[0])
    assert (content["margin"], content["level"]) == (0.02, 0.05)


def test_model_alone_is_refused() -> None:
    with pytest.raises(InputError, match=r"results of unet alone.* nothing to compare") as error:
        compare_trainings([training("unet", [0.5], seed) for seed in (0, 1)], ONE)
    assert "train at least two models" in error.value.next_step
    with pytest.raises(InputError, match="results of no model"):
        compare_trainings([], ONE)


def test_models_without_a_common_case_are_refused() -> None:
    trainings = [training("one", [0.5], fold=0), training("other", [0.5], fold=1), training("third", [0.5], fold=0)]
    with pytest.raises(InputError, match="no case in common") as error:
        compare_trainings(trainings, ONE)
    assert error.value.details == ("one and other", "other and third")


def test_trainings_of_a_fold_with_different_cases_are_refused() -> None:
    trainings = [training("one", [0.5, 0.6], 0, 3), training("one", [0.5], 1, 3), training("other", [0.5], 0, 3)]
    with pytest.raises(InputError, match="different cases") as error:
        compare_trainings(trainings, ONE)
    assert error.value.details == ("one, fold 3, seed 1 and one, fold 3, seed 0: only one of them has 3b",)


def test_training_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match="more than once") as error:
        compare_trainings([training("one", [0.5]), training("one", [0.6]), training("other", [0.5])], ONE)
    assert error.value.details == ("one, seed 0",)
