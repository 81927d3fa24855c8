"""What a comparison is made from, and what it gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from umamba_cli.pipeline.evaluation.statistics import Interval
from umamba_cli.pipeline.evaluation.verdict import LEVEL, mamba_verdict

METRICS = {"dice": "Dice", "surface_dice": "surface Dice", "lesion_f1": "lesion F1"}
"""The metrics compared, fields of `ComparedScores`, and their names in a sentence."""


@dataclass(frozen=True)
class ComparedScores:
    """One label of one case; NaN where neither the reference nor the prediction has it."""

    dice: float
    surface_dice: float
    lesion_f1: float

    sizes: Mapping[str, tuple[int, int]]
    """By size class: lesions of the reference, and those of them that were found."""


@dataclass(frozen=True)
class Training:
    """What one training gave on its fold's cases, or what one folder of predictions holds."""

    model: str

    seed: int
    """Number of the repetition."""

    fold: int | str
    """"" for a folder of predictions."""

    cases: Mapping[str, Mapping[str, ComparedScores]]
    """Case, then label ("1", or "(1, 2)" for a region)."""


@dataclass(frozen=True)
class ModelMean:
    """One model's score in one metric, of one label or of all."""

    model: str

    mean: float
    """Over cases (each the mean over its trainings); of all labels: the mean over labels of their means."""

    interval: Interval
    """95 % bootstrap interval over cases."""

    sd: float
    """Of the repetitions' means; NaN with fewer than two."""

    lowest: float
    """Lowest of the repetitions' means."""

    highest: float

    cases: int
    """Those with a number."""

    repetitions: int
    """Seeds that have all of the model's cases; the others cannot be set beside them."""


@dataclass(frozen=True)
class PairDifference:
    """The difference of two models in one metric, of one label or of the mean over a case's labels."""

    first: str
    second: str

    cases: int
    """Those that both have, with a number."""

    difference: float
    """Mean over cases of the second model's score less the first's: positive where the second does better."""

    interval: Interval
    """95 % bootstrap interval of the difference over cases."""

    median: float

    effect: float
    """Rank-biserial effect size, from -1 to 1."""

    p_cases: float
    """Of Wilcoxon's signed-rank test over cases."""

    training_error: float
    """Standard error of the difference by the spread over trainings; NaN where that is not known."""

    p_trainings: float
    """Of the t-test over trainings; NaN where their spread is not known."""

    p: float
    """The larger of the two; 1 where mean and ranks point to different sides."""

    p_adjusted: float
    """After Holm's procedure over all pairs of the metric; for labels over all pairs and labels."""

    shown: bool
    """`p_adjusted` is below 0.05, and without a known spread over trainings the difference reaches the margin."""

    @property
    def better(self) -> str:
        """The model that does better."""
        return self.second if self.difference > 0 else self.first


@dataclass(frozen=True)
class LabelComparison:
    """One label's means and differences in one metric."""

    label: str
    name: str
    models: tuple[ModelMean, ...]
    pairs: tuple[PairDifference, ...]


@dataclass(frozen=True)
class MetricComparison:
    """All models in one metric."""

    name: str
    models: tuple[ModelMean, ...]
    pairs: tuple[PairDifference, ...]
    labels: tuple[LabelComparison, ...]

    training_sd: float
    """What a training's mean over its fold's cases differs by between seeds; NaN where none was repeated."""

    degrees_of_freedom: int
    """Behind `training_sd`."""

    verdict: str

    labels_verdict: str | None
    """On single labels; None where no difference is shown, or there is one label alone."""


@dataclass(frozen=True)
class FoundShare:
    """The part of the reference's lesions of one size that a model found, over all cases, labels and trainings."""

    model: str

    lesions: int
    """Of the reference, those of every case once; rounded where a case's trainings do not agree on them."""

    share: float
    """NaN without lesions."""

    interval: Interval
    """95 % bootstrap interval over cases."""


@dataclass(frozen=True)
class FoundDifference:
    """The second model's share less the first's, over the cases that both have."""

    first: str
    second: str
    lesions: int
    difference: float
    interval: Interval


@dataclass(frozen=True)
class SizeComparison:
    """All models on the objects of one size."""

    size: str
    models: tuple[FoundShare, ...]
    pairs: tuple[FoundDifference, ...]


@dataclass(frozen=True)
class Comparison:
    """What comparing some models gave."""

    models: tuple[str, ...]
    label_names: Mapping[str, str]
    metrics: Mapping[str, MetricComparison]
    sizes: tuple[SizeComparison, ...]
    margin: float

    @property
    def verdicts(self) -> dict[str, str]:
        """By metric, in one sentence: which models do better, or that no difference is shown; then single labels."""
        return {
            metric: " ".join(text for text in (found.verdict, found.labels_verdict) if text)
            for metric, found in self.metrics.items()
        }

    @property
    def verdict(self) -> str:
        """That on Dice."""
        return self.metrics["dice"].verdict

    @cached_property
    def mamba_verdict(self) -> str | None:
        """Whether Mamba helps in Dice; None without models with it and the same network without it."""
        return mamba_verdict(METRICS["dice"], self.metrics["dice"].pairs)

    def to_json(self) -> dict[str, Any]:
        """All of it; NaN is None, as JSON has no NaN."""
        content = {**asdict(self), "level": LEVEL, "verdict": self.verdict, "mamba_verdict": self.mamba_verdict}
        return {key: _without_nan(value) for key, value in content.items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
