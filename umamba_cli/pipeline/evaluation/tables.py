"""The files that an evaluation is written to: `summary.json`, a CSV file of all cases, and nnU-Net's own summary."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from umamba_cli.pipeline.data.dataset import Label
from umamba_cli.pipeline.data.files import beginning_of, write_json, write_text
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.evaluation.case import CaseMetrics
from umamba_cli.pipeline.evaluation.metrics import SCORES, Scores
from umamba_cli.pipeline.evaluation.results import Evaluation

_BEGINNINGS = {
    "summary": re.compile(rb'\{\s*"foreground_mean":\s*\{\s*"dice"'),
    "table": re.compile(rb"case,predicted,label,"),
    "nnU-Net's summary": re.compile(rb'\{\s*"foreground_mean":\s*\{\s*"Dice"'),
}
_LONGEST_BEGINNING = 200


def cases_path(summary: Path) -> Path:
    """The CSV file beside a summary."""
    return summary.with_suffix(".csv")


def require_own_files(summary: Path, nnunet_summary: Path | None, *, with_table: bool) -> None:
    """Make sure, before an evaluation is made, that it can be written without a loss.

    Args:
        summary: the JSON file.
        nnunet_summary: the file for `write_nnunet_summary`; None: none will be written.
        with_table: whether the CSV file will be written.

    Raises:
        InputError: one is a folder or has no name, two are the same, or what is there is no earlier one of its kind.
    """
    table = cases_path(summary) if with_table and summary.name else None
    paths = {kind: path for kind, path in zip(_BEGINNINGS, (summary, table, nnunet_summary), strict=True) if path}
    for kind, path in paths.items():
        if not path.name or path.is_dir():
            raise InputError(f"{path} is a folder", next_step="give the name of a file, such as summary.json")
        beginning = beginning_of(path, _LONGEST_BEGINNING)
        if beginning and not _BEGINNINGS[kind].match(beginning):
            raise InputError(
                f"{path} is there and no {kind} that may be replaced",
                next_step="give another file with -o or --nnunet, or remove that one",
            )
    if len({path.absolute() for path in paths.values()}) < len(paths):
        raise InputError(
            f"{', '.join(map(str, paths.values()))}: two files of one name would be written",
            next_step="give a .json file with -o, and another one with --nnunet",
        )


def write_summary(path: Path, evaluation: Evaluation) -> None:
    """Write `summary.json`.

    Raises:
        WorkError: the file cannot be written.
    """
    write_json(path, evaluation.to_json())


def write_cases(path: Path, evaluation: Evaluation) -> None:
    """Write a CSV file with a row for each case and label, the worst cases first; empty where there is no number.

    Raises:
        WorkError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    distances = {name: f"{name}_{evaluation.unit}" for name in ("hd95", "hd", "asd")}
    table.writerow(["case", "predicted", "label", "name", *(distances.get(name, name) for name in SCORES)])
    for case in evaluation.worst_first:
        for label, name in evaluation.label_names.items():
            table.writerow(case_cells(case, label, name))
    write_text(path, text.getvalue())


def case_cells(case: CaseMetrics, label: Label, name: str) -> list[object]:
    """A row of a CSV file: case, whether it was predicted, label, its name, and all figures; empty for no number."""
    numbers = (getattr(case.labels[label], figure) for figure in SCORES)
    cells = ["" if math.isnan(number) else number for number in numbers]
    return [case.case, "yes" if case.predicted else "no", str(label), name, *cells]


def write_nnunet_summary(path: Path, evaluation: Evaluation) -> None:
    """Write what `nnUNetv2_evaluate_simple` writes, for programs that read it. It knows no missing predictions.

    Raises:
        WorkError: the file cannot be written.

    Source: nnU-Net 2's `compute_metrics_on_folder`: means leave out what is not a number, and the foreground's is the
    mean of the labels' means. Numbers that are none are written NaN, as there.
    """
    write_text(path, json.dumps(nnunet_summary(evaluation), indent=4, sort_keys=True) + "\n")


def nnunet_summary(evaluation: Evaluation) -> dict[str, Any]:
    """The content of nnU-Net's summary.json."""
    cases = [case for case in evaluation.cases if case.predicted]
    labels = list(evaluation.label_names)
    by_case = [{str(label): _nnunet_figures(case.labels[label], case.voxels) for label in labels} for case in cases]
    means = {str(label): _means([metrics[str(label)] for metrics in by_case]) for label in labels}
    return {
        "foreground_mean": _means(list(means.values())),
        "mean": means,
        "metric_per_case": [
            {"metrics": metrics, "case": case.case, **_files(case)}
            for case, metrics in zip(cases, by_case, strict=True)
        ],
    }


def _nnunet_figures(scores: Scores, voxels: int) -> dict[str, float]:
    return {
        "Dice": scores.dice,
        "FN": scores.fn,
        "FP": scores.fp,
        "IoU": scores.iou,
        "TN": voxels - scores.tp - scores.fp - scores.fn,
        "TP": scores.tp,
        "n_pred": scores.tp + scores.fp,
        "n_ref": scores.tp + scores.fn,
    }


def _means(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    means = {}
    for name in figures[0] if figures else ():
        numbers = [each[name] for each in figures if not math.isnan(each[name])]
        means[name] = math.fsum(numbers) / len(numbers) if numbers else math.nan
    return means


def _files(case: CaseMetrics) -> dict[str, str]:
    files = {"prediction_file": case.prediction, "reference_file": case.reference}
    return {key: str(path) for key, path in files.items() if path is not None}
