"""A comparison as tables of text, for a screen and for a report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from umamba_cli.pipeline.evaluation.comparison import Comparison
from umamba_cli.pipeline.evaluation.comparison_results import ModelMean, PairDifference
from umamba_cli.pipeline.evaluation.statistics import Interval
from umamba_cli.pipeline.reporting.html_report import Table
from umamba_cli.pipeline.workflows.costs import ModelCost

_MIB = 2**20

_OF_DIFFERENCES = (
    "Paired by case; the interval is over cases alone, so that leaving out 0 is not enough. Effect: rank-biserial, "
    "from -1 to 1. p over cases: Wilcoxon's signed-rank test. p over trainings: t-test against what trainings of one "
    "model differ by. p in all: the larger of the two, corrected after Holm for the number of pairs"
)


def comparison_tables(comparison: Comparison | None, costs: Sequence[ModelCost]) -> tuple[Table, ...]:
    """All tables of a comparison: scores, differences of each metric, labels, sizes, costs."""
    tables = [] if comparison is None else _tables(comparison)
    return (*tables, _costs(costs)) if costs else tuple(tables)


def _tables(comparison: Comparison) -> list[Table]:
    tables = [_scores(comparison)]
    for found in comparison.metrics.values():
        if any(not math.isnan(pair.difference) for pair in found.pairs):
            is_first = len(tables) == 1
            tables.append(_differences(found.name, found.pairs, _OF_DIFFERENCES if is_first else "As for Dice"))
    tables += [_labels(comparison)] if len(comparison.label_names) > 1 else []
    return [*tables, _sizes(comparison)] if any(size.models for size in comparison.sizes) else tables


def _scores(comparison: Comparison) -> Table:
    metrics = list(comparison.metrics.values())
    rows = []
    for index, model in enumerate(comparison.models):
        means = [metric.models[index] for metric in metrics]
        cells = [cell for mean in means for cell in (_with_interval(mean), _number(mean.sd))]
        rows.append((model, *cells, str(means[0].cases), str(means[0].repetitions)))
    columns = [cell for metric in metrics for cell in (f"{metric.name} (95 %)", "sd")]
    return Table(
        "Scores",
        ("model", *columns, "cases", "repetitions"),
        tuple(rows),
        "Means over cases and labels, with 95 % bootstrap intervals over cases; sd: of the means of whole repetitions, "
        "that is over seeds",
    )


def _differences(metric: str, pairs: Sequence[PairDifference], caption: str) -> Table:
    rows = [
        (
            f"{pair.second} less {pair.first}",
            f"{_signed(pair.difference)} {_interval(pair.interval, signed=True)}",
            _signed(pair.effect, 2),
            _p(pair.p_cases),
            _p(pair.p_trainings),
            _p(pair.p_adjusted),
            "yes" if pair.shown else "no",
            str(pair.cases),
        )
        for pair in pairs
    ]
    return Table(
        f"Differences in {metric}",
        ("pair", "difference (95 %)", "effect", "p over cases", "p over trainings", "p in all", "shown", "cases"),
        tuple(rows),
        caption,
    )


def _labels(comparison: Comparison) -> Table:
    rows = []
    for metric in comparison.metrics.values():
        for label in metric.labels:
            rows.append((label.name, metric.name, *(_with_interval(mean) for mean in label.models)))
    return Table(
        "By label",
        ("label", "metric", *comparison.models),
        tuple(sorted(rows, key=lambda row: list(comparison.label_names.values()).index(row[0]))),
        "Means over cases, with 95 % bootstrap intervals",
    )


def _sizes(comparison: Comparison) -> Table:
    rows = []
    for size in comparison.sizes:
        shares = {found.model: found for found in size.models}
        lesions = max((found.lesions for found in size.models), default=0)
        cells = [
            "-" if model not in shares else f"{_number(shares[model].share)} {_interval(shares[model].interval)}"
            for model in comparison.models
        ]
        rows.append((size.size, str(lesions), *cells))
    return Table(
        "Found objects by size",
        ("diameter", "objects", *comparison.models),
        tuple(rows),
        "Share of the reference's connected components that were found, by equivalent diameter (mm, of pictures "
        "pixels), with 95 % bootstrap intervals over cases",
    )


def _costs(costs: Sequence[ModelCost]) -> Table:
    rows = [
        (
            cost.model,
            f"{cost.parameters:,}",
            _number(cost.multiply_adds / 1e9, 2),
            _number(cost.memory_bytes / _MIB, 0),
            _number(cost.seconds_a_step),
            _number(cost.seconds_a_case),
            f"{_number(cost.epochs_to_learn, 0)} of {cost.epochs}",
        )
        for cost in costs
    ]
    return Table(
        "Cost",
        (
            *("model", "parameters", "G multiply-adds", "training memory MiB"),
            *("seconds a step", "seconds a case", "epochs to 95 %"),
        ),
        tuple(rows),
        "Medians over the trainings. Multiply-adds: of predicting one patch. Memory: of a training step, counted as "
        "`umamba models` does. A step: with its share of the validation. A case: prediction with mirroring, without "
        "reading. Epochs: until the validation Dice reaches 95 % of the final one",
    )


def _with_interval(mean: ModelMean) -> str:
    return f"{_number(mean.mean)} {_interval(mean.interval)}"


def _interval(interval: Interval, *, signed: bool = False) -> str:
    ends = [_signed(end) if signed else _number(end) for end in (interval.low, interval.high)]
    return "" if math.isnan(interval.low) else f"({ends[0]} to {ends[1]})"


def _number(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


def _signed(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:+.{digits}f}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
