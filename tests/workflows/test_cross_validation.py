from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from umamba_cli.commands._console import Console, show_cross_validation
from umamba_cli.pipeline.data.splits import Fold, write_folds
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.evaluation.case import CaseMetrics
from umamba_cli.pipeline.evaluation.metrics import LabelMetrics, in_neither
from umamba_cli.pipeline.evaluation.results import Evaluation
from umamba_cli.pipeline.evaluation.tables import write_summary
from umamba_cli.pipeline.workflows.cross_validation import (
    cross_validate,
    cross_validation_file,
    write_cross_validation,
)

NAMES = {1: "front", 2: "back"}
NaN = math.nan
# Two folds of different size, so that the mean over folds is not the mean over cases. Worked out by hand below.
FOLDS = {0: {"a": (0.9, 0.5), "b": (0.7, NaN), "c": (0.8, 0.7)}, 1: {"d": (0.4, 0.2)}}


def overlap(dice: float) -> LabelMetrics:
    return replace(in_neither(of_pictures=False), dice=dice, iou=dice / (2 - dice), tp=1, fp=1, fn=1)


def make_fold(model: Path, fold: int, cases: dict[str, tuple[float, ...]], names: Any = NAMES) -> Path:
    folder = model / f"fold_{fold}"
    folder.mkdir(parents=True)
    metrics = [CaseMetrics(case, dict(zip(names, map(overlap, dice), strict=True))) for case, dice in cases.items()]
    summary = folder / "validation" / "summary.json"
    write_summary(summary, Evaluation(tuple(metrics), names))
    (folder / "checkpoint_final.safetensors").write_bytes(b"")
    return summary


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "unet__3d_fullres"


def test_means_over_folds_and_over_cases(model: Path) -> None:
    for fold, cases in FOLDS.items():
        make_fold(model, fold, cases)
    result = cross_validate(model)
    assert result
    assert result.model == "unet__3d_fullres"
    assert result.of_fold(0, "1").dice == pytest.approx(0.8)
    assert result.of_fold(0, "2").dice == pytest.approx(0.6)  # of a and c
    assert result.of_fold(0, None).dice == pytest.approx(0.7)
    front = result.dice_over_folds("1")
    assert (front.mean, front.lowest, front.highest) == pytest.approx((0.6, 0.4, 0.8))
    assert front.sd == pytest.approx(statistics.stdev([0.8, 0.4]))
    assert result.dice_over_folds(None).mean == pytest.approx((0.7 + 0.3) / 2)
    # Every case once: (0.9 + 0.7 + 0.8 + 0.4) / 4, and (0.5 + 0.7 + 0.2) / 3 where one case holds none of it.
    assert result.of_all_cases("1").dice == pytest.approx(0.7)
    assert result.of_all_cases("2").dice == pytest.approx(1.4 / 3)
    assert result.of_all_cases(None).dice == pytest.approx((0.7 + 1.4 / 3) / 2)
    assert result.of_all_cases("1").iou == pytest.approx(sum(d / (2 - d) for d in (0.9, 0.7, 0.8, 0.4)) / 4)
    assert result.iou_over_folds("1").highest == result.of_fold(0, "1").iou


def test_a_fold_says_what_its_summary_says(model: Path) -> None:
    summary = json.loads(make_fold(model, 0, FOLDS[0]).read_text())
    result = cross_validate(model)
    assert result
    assert result.of_fold(0, None).dice == pytest.approx(summary["foreground_mean"]["dice"])
    assert result.of_fold(0, None).iou == pytest.approx(summary["foreground_mean"]["iou"])
    assert result.of_fold(0, "2").dice == pytest.approx(summary["mean"]["2"]["dice"])


def test_missing_folds_are_those_of_the_splits(model: Path) -> None:
    make_fold(model, 1, FOLDS[1])
    (model / "fold_all").mkdir()
    assert cross_validate(model).missing == (0, 2, 3, 4)  # type: ignore[union-attr]
    write_folds(model.parent.parent / "splits.json", [Fold(("a",), ("b",))] * 3)
    assert cross_validate(model).missing == (0, 2)  # type: ignore[union-attr]
    not_trained = make_fold(model, 2, FOLDS[0]).parent.parent / "checkpoint_final.safetensors"
    assert cross_validate(model).missing == (0,)  # type: ignore[union-attr]
    not_trained.unlink()
    assert cross_validate(model).missing == (0, 2)  # type: ignore[union-attr]
    (model.parent.parent / "splits.json").write_text("{")
    assert cross_validate(model).missing == (0, 2, 3, 4)  # type: ignore[union-attr]


def test_no_finished_fold_is_no_result(model: Path) -> None:
    assert cross_validate(model) is None
    (model / "fold_0").mkdir(parents=True)
    assert cross_validate(model) is None


def test_one_fold_has_no_spread(model: Path) -> None:
    make_fold(model, 0, FOLDS[0])
    result = cross_validate(model)
    assert result
    assert math.isnan(result.dice_over_folds("1").sd)
    write_cross_validation(model, result)
    written = json.loads(cross_validation_file(model).read_text())
    assert written["mean"]["1"]["over_folds"]["dice"]["sd"] is None


def test_the_file(model: Path) -> None:
    for fold, cases in FOLDS.items():
        make_fold(model, fold, cases)
    result = cross_validate(model)
    assert result
    write_cross_validation(model, result)
    written = json.loads((model / "cross_validation.json").read_text())
    assert written["model"] == "unet__3d_fullres"
    assert written["foreground_mean"]["all_cases"]["dice"] == pytest.approx((0.7 + 1.4 / 3) / 2)
    assert written["mean"]["2"]["folds"]["1"]["dice"] == pytest.approx(0.2)
    assert written["cases"] == {"0": 3, "1": 1}
    assert written["missing_folds"] == [2, 3, 4]
    assert written["label_names"] == {"1": "front", "2": "back"}


def test_regions_go_by_their_texts(model: Path) -> None:
    names: Any = {(1, 2): "whole", (2,): "core"}
    make_fold(model, 0, FOLDS[0], names)
    result = cross_validate(model)
    assert result
    assert result.label_names == {"(1, 2)": "whole", "(2,)": "core"}
    assert result.of_all_cases("(1, 2)").dice == pytest.approx(0.8)


def test_a_case_held_back_twice_is_not_pooled(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_fold(model, 0, FOLDS[0])
    make_fold(model, 1, {"a": (0.1, 0.1)})
    result = cross_validate(model)
    assert result
    assert result.repeated == ("a",)
    assert result.pooled is None
    assert result.to_json()["repeated_cases"] == ["a"]
    assert result.dice_over_folds("1").mean == pytest.approx(0.45)
    show_cross_validation(Console(), result)
    assert "held back by several folds, so that there is no result over all cases: a" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"label_names": {"1": "a"}, "cases": [{"case": "x"}]}', '{"label_names": 3, "cases": []}'],
)
def test_a_damaged_summary_is_named(model: Path, content: str) -> None:
    summary = make_fold(model, 0, FOLDS[0])
    summary.write_text(content)
    with pytest.raises(InputError, match=r"summary\.json") as raised:
        cross_validate(model)
    assert "umamba train" in raised.value.next_step or "correct" in raised.value.next_step


def test_the_table(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for fold, cases in FOLDS.items():
        make_fold(model, fold, cases)
    result = cross_validate(model)
    assert result
    show_cross_validation(Console(), result)
    out = capsys.readouterr().out
    assert "cross-validation of unet__3d_fullres, held-back cases (4)" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["front"] == [
        "front",
        "0.800",
        "0.400",
        "0.600",
        "0.283",
        "0.700",
        "0.568",
    ]  # 0.9 / 1.1 + 0.7 / 1.3 + ...
    assert rows["mean"][-6:-1] == ["0.700", "0.300", "0.500", "0.283", "0.583"]
    assert "not finished and not in the table: 2, 3, 4" in out
