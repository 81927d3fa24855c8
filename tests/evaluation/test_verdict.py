from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from simulated_scores import ONE, simulated, training

from umamba_cli.pipeline.evaluation.comparison import compare_trainings
from umamba_cli.pipeline.evaluation.comparison_results import ComparedScores, Comparison, Training


def of_gains(gains: Mapping[str, float], seeds: int = 2, offset: float = 0.001) -> Comparison:
    trainings = simulated(np.random.default_rng(8), models=list(gains), seeds=seeds, offset=offset, gains=gains)
    return compare_trainings(trainings, ONE, draws=200)


def test_verdict_where_no_difference_is_shown() -> None:
    comparison = of_gains({"unet": 0, "umamba-none": 0, "umamba-bot": 0, "umamba-enc": 0}, offset=0.01)
    assert comparison.verdict == (
        "No difference shown in Dice between unet, umamba-none, umamba-bot and umamba-enc (40 cases, "
        "2 trainings a fold; what differs over the cases may be what trainings of one model differ by)."
    )
    assert comparison.verdicts["surface_dice"].startswith("No difference shown in surface Dice between unet")
    assert comparison.mamba_verdict == (
        "No difference shown in Dice between umamba-none, the same network without Mamba, and umamba-bot or "
        "umamba-enc: that Mamba helps is not shown on this data."
    )


def test_verdict_of_one_shown_pair() -> None:
    comparison = of_gains({"one": 0, "other": 0.03})
    (pair,) = comparison.metrics["dice"].pairs
    assert comparison.verdict == (
        f"other does better than one in Dice by {pair.difference:.3f} ({pair.interval.low:.3f} to "
        f"{pair.interval.high:.3f}; p < 0.001), over 40 cases, 2 trainings a fold."
    )
    turned = of_gains({"other": 0.03, "one": 0})
    assert turned.verdict.startswith("other does better than one in Dice by 0.0")
    assert "-" not in turned.verdict
    assert comparison.mamba_verdict is None


def test_verdict_names_the_shown_pairs_in_groups() -> None:
    worse = of_gains({"unet": 0, "umamba-none": 0, "umamba-bot": 0, "dilated": -0.1})
    assert worse.verdict.startswith("unet, umamba-none and umamba-bot do better than dilated in Dice by 0.0")
    assert "; no difference is shown for the other 3 pairs, over 40 cases" in worse.verdict
    chain = of_gains({"low": 0, "middle": 0.03, "high": 0.06})
    assert chain.verdict.startswith("middle does better than low in Dice by 0.0")
    assert " and high does better than low and middle by 0.0" in chain.verdict
    assert "no difference" not in chain.verdict
    two = of_gains({"low": 0, "alike": 0.03, "high": 0.03})
    assert two.verdict.startswith("alike and high do better than low in Dice by 0.0")
    assert "; no difference is shown between alike and high, over " in two.verdict


def test_verdict_says_what_it_rests_on() -> None:
    few = compare_trainings([training("one", [0.1, 0.2]), training("other", [0.9, 0.8])], ONE)
    assert few.verdict == (
        "No difference shown in Dice between one and other (2 cases, one training a model; too few cases to show any)."
    )
    assert "(0 cases, one training a model; too few" in few.verdicts["lesion_f1"]
    first = list(np.linspace(0.5, 0.6, 12))
    mixed = [
        training("one", first, 0, 0), training("one", first[::-1], 1, 0), training("other", first, 0, 0),
        training("third", [*first, 0.9], 0, 0), training("other", first, 0, 1), training("third", first, 0, 1),
    ]  # fmt: skip
    assert "(12 to 24 cases, 1 to 2 trainings a fold; " in compare_trainings(mixed, ONE).verdict


def test_many_differences_are_told_in_short() -> None:
    gains = {"a": 0.0, "b": 0.03, "c": 0.06, "d": 0.09, "e": 0.12}
    verdict = of_gains(gains).verdict
    assert verdict.startswith("10 pairs differ in Dice by 0.0")
    assert ": e does better than 4 others, a worse than 4, over 40 cases" in verdict


def test_what_one_training_of_each_shows_is_said_of_these_trainings() -> None:
    assert of_gains({"one": 0, "other": 0.05}, seeds=1).verdict.startswith("In these trainings, other does better")
    assert of_gains({"one": 0, "other": 0.05}).verdict.startswith("other does better than one")


def test_one_training_of_each_leaves_a_doubt_whether_mamba_helps() -> None:
    gains = {"umamba-none": 0, "umamba-bot": 0.05}
    once, twice = (of_gains(gains, seeds=seeds).mamba_verdict for seeds in (1, 2))
    assert once is not None
    assert once.startswith("Mamba helps on this data: ")
    assert once.endswith(" It rests on one training of each, which may differ as much by chance.")
    assert twice is not None
    assert twice.endswith("; umamba-none is the same network without Mamba.")


def test_the_margin_is_named_only_where_it_decides() -> None:
    generator = np.random.default_rng(0)
    first = list(np.linspace(0.5, 0.6, 20))
    alike = [training("one", first), training("other", list(first + generator.normal(0, 0.02, 20)))]
    assert compare_trainings(alike, ONE).verdict.endswith("; the spread between trainings is not known).")
    smaller = [training("one", first), training("other", [score - 0.005 for score in first])]
    assert "a difference below 0.02 counts as that" in compare_trainings(smaller, ONE).verdict


def test_a_range_of_one_number_is_one_number() -> None:
    first = np.linspace(0.5, 0.6, 20)
    trainings = [training(name, list(first + gain)) for name, gain in (("low", 0), ("a", 0.05), ("b", 0.0501))]
    assert "a and b do better than low in Dice by 0.050 (p < 0.001)" in compare_trainings(trainings, ONE).verdict


def test_single_labels_are_named_where_all_labels_together_show_nothing() -> None:
    generator = np.random.default_rng(0)
    names = {str(label): f"organ {label}" for label in range(1, 9)}
    good = {f"c{case}": {key: scored(0.8 + 0.02 * generator.random()) for key in names} for case in range(20)}
    worse = {case: {**labels, "3": scored(labels["3"].dice - 0.05)} for case, labels in good.items()}
    trainings = [Training("good", 0, "", good), Training("dilated", 0, "", worse)]
    comparison = compare_trainings(trainings, names, draws=200)
    assert comparison.verdict.startswith("No difference shown in Dice between good and dilated")
    assert comparison.metrics["dice"].labels_verdict is not None
    assert comparison.metrics["dice"].labels_verdict.startswith(
        "Of single labels, organ 3: good does better than dilated in Dice by 0.050 ("
    )
    assert comparison.verdicts["dice"].endswith(comparison.metrics["dice"].labels_verdict)
    assert comparison.metrics["surface_dice"].labels_verdict is None
    same = compare_trainings([trainings[0], Training("copy", 0, "", good)], names, draws=200)
    assert same.metrics["dice"].labels_verdict is None


def scored(dice: float) -> ComparedScores:
    return ComparedScores(dice, 0.9, 1.0, {})


def test_five_cases_are_too_few_and_six_are_not() -> None:
    for cases, few in ((5, True), (6, False)):
        first = np.linspace(0.2, 0.4, cases)
        comparison = compare_trainings([training("one", list(first)), training("other", list(2 * first))], ONE)
        assert ("too few cases" in comparison.verdict) is few
        assert comparison.metrics["dice"].pairs[0].shown is not few


@pytest.mark.parametrize(
    ("bot", "enc", "opening", "closing"),
    [
        (0.03, 0.03, "Mamba helps on this data: umamba-bot and umamba-enc do better than umamba-none in Dice by ", ""),
        (
            0.03, 0.0, "Mamba helps on this data: umamba-bot does better than umamba-none in Dice by ",
            "; no difference is shown between umamba-none and umamba-enc",
        ),
        (-0.03, 0.0, "That Mamba helps is not shown on this data, and one way of using it does harm: ", ""),
        (0.03, -0.03, "Whether Mamba helps on this data depends on how it is used: umamba-bot does better", ""),
    ],
)  # fmt: skip
def test_mamba_verdict(bot: float, enc: float, opening: str, closing: str) -> None:
    verdict = of_gains({"umamba-none": 0, "umamba-bot": bot, "umamba-enc": enc, "unet": 0.1}).mamba_verdict
    assert verdict is not None
    assert verdict.startswith(opening)
    assert verdict.endswith(f"{closing}; umamba-none is the same network without Mamba.")
    assert "unet" not in verdict


def test_s4d_is_no_mamba() -> None:
    """It selects nothing, so that what it does says nothing of Mamba; Mamba-2 and other directions are Mamba."""
    assert of_gains({"umamba-none": 0, "umamba-bot+s4d": -0.03, "umamba-enc+s4d-both": 0.03}).mamba_verdict is None
    verdict = of_gains({"umamba-none": 0, "umamba-bot+s4d": -0.03, "umamba-bot+mamba2-both": 0.03}).mamba_verdict
    assert verdict is not None
    assert verdict.startswith("Mamba helps on this data: umamba-bot+mamba2-both does better")
    assert "s4d" not in verdict
