from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

import umamba_cli
from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.data.images import write_label_map
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.evaluation.case import CellLabels, Task
from umamba_cli.pipeline.evaluation.evaluate import evaluate_folders, evaluate_pairs, find_label_maps
from umamba_cli.pipeline.evaluation.metrics import Measures
from umamba_cli.pipeline.evaluation.results import Evaluation
from umamba_cli.pipeline.evaluation.surfaces import surface_metrics
from umamba_cli.pipeline.evaluation.tables import nnunet_summary, write_cases, write_nnunet_summary, write_summary
from umamba_cli.pipeline.geometry import Grid

DESCRIPTION = DatasetDescription(
    channel_names={"0": "MRI"},
    labels={"background": 0, "front": 1, "back": 2},
    file_ending=".nii.gz",
    name="Test",
)

REGIONS = DatasetDescription(
    channel_names={"0": "MRI"},
    labels={"background": 0, "whole": (1, 2, 3), "core": (2, 3), "rim": (3,), "edge": 1, "ignore": 4},
    regions_class_order=(1, 2, 3, 1),
    file_ending=".nii.gz",
)


def write(path: Path, rows: Sequence[Sequence[float]], *, spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
    """Write a label map of one slice."""
    labels = np.array([rows])
    direction = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    write_label_map(path, labels, Grid(labels.shape, spacing_mm, (0.0, 0.0, 0.0), direction))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two cases; `b` has no label 2, and `c` was not predicted."""
    predictions, references = tmp_path / "predictions", tmp_path / "labelsTr"
    write(predictions / "a.nii.gz", [[1, 1], [0, 2]])
    write(references / "a.nii.gz", [[0, 1], [1, 2]])
    write(predictions / "b.nii.gz", [[1, 0], [0, 0]])
    write(references / "b.nii.gz", [[1, 0], [0, 0]])
    write(references / "c.nii.gz", [[1, 1], [1, 0]])
    return predictions, references


def evaluate(folders: tuple[Path, Path], *, only_predicted: bool = True, with_names: bool = True) -> Evaluation:
    task = Task(DESCRIPTION if with_names else None)
    return evaluate_folders(*folders, task, only_predicted=only_predicted, workers=1)


def test_cases_labels_and_means(folders: tuple[Path, Path]) -> None:
    evaluation = evaluate(folders)
    assert [case.case for case in evaluation.cases] == ["a", "b"]
    a, b = evaluation.cases
    assert a.labels[1].dice == pytest.approx(1 / 2)
    assert a.labels[2].dice == 1
    assert b.labels[1].dice == 1
    assert math.isnan(b.labels[2].dice)
    front, back = evaluation.label_means
    assert (front.name, front.cases, back.name, back.cases) == ("front", 2, "back", 1)
    assert front.dice == pytest.approx(3 / 4)
    assert front.iou == pytest.approx((1 / 3 + 1) / 2)
    assert front.fp == pytest.approx(1 / 2)
    assert back.dice == 1  # of case a alone: b has nothing that could have been found
    assert evaluation.foreground_mean.dice == pytest.approx((3 / 4 + 1) / 2)


def test_references_without_prediction_can_be_left_out(folders: tuple[Path, Path]) -> None:
    evaluation = evaluate(folders, only_predicted=True)
    assert evaluation.missing == ("c",)
    assert evaluation.dataset == "Test"
    assert [case.case for case in evaluation.cases] == ["a", "b"]


def test_references_without_prediction_are_named_and_count_as_0(folders: tuple[Path, Path]) -> None:
    evaluation = evaluate_folders(*folders, Task(DESCRIPTION), workers=1)
    assert evaluation.missing == ("c",)
    c = evaluation.cases[2]
    assert [case.predicted for case in evaluation.cases] == [True, True, False]
    assert c.labels[1].surface_dice == c.labels[1].lesion_f1 == 0
    assert all(math.isnan(getattr(c.labels[1], name)) for name in ("hd95", "hd", "asd", "precision"))
    assert evaluation.mean_of_predicted.dice == pytest.approx(0.875)
    assert (c.labels[1].dice, c.labels[1].fn, c.labels[1].tp) == (0, 3, 0)
    assert c.labels[1].reference_ml == pytest.approx(0.003)
    assert math.isnan(c.labels[2].dice)
    assert evaluation.label_means[0].dice == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert evaluation.label_means[1].dice == 1


def test_without_a_description_labels_are_those_found_in_any_label_map(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "b.nii.gz", [[1, 0], [0, 9]])
    evaluation = evaluate(folders, with_names=False)
    assert evaluation.label_names == {1: "1", 2: "2", 9: "9"}
    a, b = evaluation.cases
    assert math.isnan(a.labels[9].dice)
    assert a.labels[9].prediction_ml == 0
    assert b.labels[9].dice == 0
    assert evaluation.dataset == ""


def test_labels_of_the_description_that_no_case_holds_have_no_mean(tmp_path: Path) -> None:
    write(tmp_path / "p" / "a.nii.gz", [[1, 0]])
    write(tmp_path / "r" / "a.nii.gz", [[1, 0]])
    evaluation = evaluate((tmp_path / "p", tmp_path / "r"))
    assert math.isnan(evaluation.label_means[1].dice)
    assert evaluation.label_means[1].cases == 0
    assert evaluation.foreground_mean.dice == 1


def test_volumes_come_from_the_spacing(tmp_path: Path) -> None:
    for folder, rows in (("p", [[1, 1], [1, 0]]), ("r", [[1, 1], [0, 0]])):
        write(tmp_path / folder / "a.nii.gz", rows, spacing_mm=(10.0, 5.0, 4.0))
    metrics = evaluate((tmp_path / "p", tmp_path / "r")).cases[0].labels[1]
    assert metrics.prediction_ml == pytest.approx(0.6)
    assert metrics.reference_ml == pytest.approx(0.4)


def test_the_summary_file(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "out" / "summary.json"
    write_summary(path, evaluate(folders))
    summary = json.loads(path.read_text())
    assert summary["foreground_mean"]["dice"] == pytest.approx(0.875)
    assert summary["mean"]["1"]["dice"] == pytest.approx(0.75)
    assert summary["mean"]["2"]["cases"] == 1
    assert [case["case"] for case in summary["cases"]] == ["a", "b"]
    assert summary["cases"][0]["labels"]["1"]["iou"] == pytest.approx(1 / 3)
    assert summary["cases"][1]["labels"]["2"]["dice"] is None
    assert summary["label_names"] == {"1": "front", "2": "back"}
    assert summary["missing"] == ["c"]
    assert summary["dataset"] == "Test"
    assert summary["version"] == umamba_cli.__version__


def test_a_table_of_all_cases(folders: tuple[Path, Path]) -> None:
    evaluation = evaluate(folders)
    rows = evaluation.case_rows()
    assert evaluation.case_columns[2:5] == ("Dice", "surface Dice", "HD95 mm")
    assert rows[0] == ("a", "front", "0.500", "1.000", "1.00", "0.00", "0.00", "1 of 1")
    assert rows[3] == ("b", "back", "-", "-", "-", "0.00", "0.00", "0 of 0")


def test_the_worst_case_comes_first(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "a.nii.gz", [[0, 1], [1, 2]])
    write(folders[0] / "b.nii.gz", [[1, 1], [0, 0]])
    assert [case.case for case in evaluate(folders).worst_first] == ["b", "a"]
    whole = evaluate_folders(*folders, Task(DESCRIPTION), workers=1)
    assert [case.case for case in whole.worst_first] == ["c", "b", "a"]
    assert whole.case_rows()[0][0] == "c (missing)"


def test_all_bad_cases_are_listed(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    write(predictions / "a.nii.gz", [[1, 1], [0, 3]], spacing_mm=(2.0, 1.0, 1.0))
    (predictions / "b.nii.gz").write_text("no image")
    write(predictions / "c.nii.gz", [[1, 1]])
    write(predictions / "d.nii.gz", [[1, 1]])
    write(references / "d.nii.gz", [[1, 1]])
    with pytest.raises(InputError) as caught:
        evaluate(folders)
    assert caught.value.problem == "3 of 4 cases cannot be evaluated"
    a, b, c = caught.value.details
    assert a == (
        "a: prediction holds 3, dataset.json knows 0, 1, 2; "
        "prediction and reference differ: spacing is 2 1 1 and 1 1 1 mm (z, y, x)"
    )
    assert b.startswith("b: prediction b.nii.gz cannot be read as an image: Not a gzipped file")
    assert c == "c: prediction is 1x1x2, reference is 1x2x2"


def test_predictions_without_reference_are_refused(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "x.nii.gz", [[1, 1], [0, 0]])
    write(folders[0] / "y.nii.gz", [[1, 1], [0, 0]])
    with pytest.raises(InputError, match="2 of 4 predictions have no reference") as caught:
        evaluate(folders)
    assert caught.value.details == ("x", "y")


def test_folders_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        write(tmp_path / "p" / f"{name}.nii.gz", [[1]])
        write(tmp_path / "r" / f"{name}_0000.nii.gz", [[1]])
    with pytest.raises(InputError, match=r"no prediction in .* has a reference in") as caught:
        evaluate((tmp_path / "p", tmp_path / "r"))
    assert caught.value.details == ("predictions: a, b, c, ...", "references: a_0000, b_0000, c_0000, ...")


def test_folders_without_label_maps_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no label map"):
        evaluate((tmp_path / "empty", folders[1]))
    with pytest.raises(InputError, match="nowhere is no folder"):
        evaluate((folders[0], tmp_path / "nowhere"))
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate_pairs([])


def test_files_beside_the_label_maps_are_left_alone(folders: tuple[Path, Path]) -> None:
    predictions, _ = folders
    (predictions / "summary.json").write_text("{}")
    (predictions / "a.npz").write_bytes(b"")
    (predictions / ".hidden.nii.gz").write_bytes(b"")
    imageio.imwrite(predictions / "overview.png", np.zeros((2, 2), dtype=np.uint8))
    for with_names in (True, False):
        assert [case.case for case in evaluate(folders, with_names=with_names).cases] == ["a", "b"]


def test_label_maps_may_be_stored_in_different_formats(folders: tuple[Path, Path]) -> None:
    predictions, _ = folders
    for name, ending in (("a", ".mha"), ("b", ".nrrd")):
        (predictions / f"{name}.nii.gz").unlink()
        write(predictions / f"{name}{ending}", [[1, 0], [0, 0]])
    evaluation = evaluate(folders)
    assert [case.case for case in evaluation.cases] == ["a", "b"]
    assert evaluation.cases[1].labels[1].dice == 1


def test_two_label_maps_of_one_case_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.mha", [[1]])
    write(tmp_path / "a.nii.gz", [[1]])
    with pytest.raises(InputError, match=r"two label maps of a: a\.mha and a\.nii\.gz"):
        find_label_maps(tmp_path)


def test_pictures_have_no_volume(tmp_path: Path) -> None:
    for name, first, second in (("a", 1, 1), ("b", 2, 1)):
        for folder, value in (("p", first), ("r", second)):
            (tmp_path / folder).mkdir(exist_ok=True)
            imageio.imwrite(tmp_path / folder / f"{name}.png", np.array([[value, 0], [0, 0]], dtype=np.uint8))
    evaluation = evaluate((tmp_path / "p", tmp_path / "r"), with_names=False)
    a, b = evaluation.cases
    assert a.labels[1].dice == 1
    assert b.labels[1].dice == 0
    assert all(math.isnan(metrics.reference_ml) for case in (a, b) for metrics in case.labels.values())
    assert math.isnan(evaluation.foreground_mean.prediction_ml)
    assert evaluation.unit == "px"
    assert evaluation.case_columns[4] == "HD95 px"


def test_pairs_need_no_common_folder_and_come_back_sorted(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    pairs = [(name, predictions / f"{name}.nii.gz", references / f"{name}.nii.gz") for name in ("b", "a")]
    evaluation = evaluate_pairs(pairs, Task(DESCRIPTION), workers=2)
    assert [case.case for case in evaluation.cases] == ["a", "b"]
    assert evaluation.foreground_mean.dice == pytest.approx(0.875)
    assert evaluation.missing == ()


def test_nnunet_gave_the_same_numbers(shared: Path) -> None:
    golden = shared / "goldens" / "nnunet_model" / "predictions"
    expected = json.loads((golden / "evaluation.json").read_text())
    references = shared / "data" / "Dataset004_Hippocampus" / "labelsTr"
    evaluation = evaluate_folders(golden / "mirroring", references, only_predicted=True, workers=1)
    assert len(evaluation.cases) == len(expected["metric_per_case"]) == 26
    assert len(evaluation.missing) == 104
    names = {"dice": "Dice", "iou": "IoU", "tp": "TP", "fp": "FP", "fn": "FN"}
    for ours, theirs in names.items():
        assert getattr(evaluation.foreground_mean, ours) == pytest.approx(expected["foreground_mean"][theirs], abs=1e-9)
        for mean in evaluation.label_means:
            assert getattr(mean, ours) == pytest.approx(expected["mean"][str(mean.label)][theirs], abs=1e-9)
    by_case = {case["case"]: case["metrics"] for case in expected["metric_per_case"]}
    for case in evaluation.cases:
        for label, metrics in case.labels.items():
            assert metrics.dice == pytest.approx(by_case[case.case][str(label)]["Dice"], abs=1e-9)


def evaluate_one(
    folder: Path, prediction: list[list[float]], reference: list[list[float]], description: DatasetDescription
) -> Evaluation:
    for name, rows in (("p", prediction), ("r", reference)):
        write(folder / name / "a.nii.gz", rows)
    return evaluate_folders(folder / "p", folder / "r", Task(description), workers=1)


def test_regions_are_evaluated_each_as_the_union_of_its_labels(tmp_path: Path) -> None:
    evaluation = evaluate_one(tmp_path, [[1, 2, 3, 0]], [[2, 2, 1, 3]], description=REGIONS)
    counts = {m.label: (m.name, m.tp, m.fp, m.fn) for m in evaluation.label_means}
    assert counts == {
        (1, 2, 3): ("whole", 3, 0, 1),
        (2, 3): ("core", 1, 1, 2),
        (3,): ("rim", 0, 1, 1),
        1: ("edge", 0, 1, 1),
    }
    assert evaluation.foreground_mean.dice == pytest.approx((6 / 7 + 2 / 5 + 0 + 0) / 4)
    assert evaluation.case_rows()[0][:3] == ("a", "whole", "0.857")


def test_the_summary_calls_regions_as_nnunet_does(tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.json", evaluate_one(tmp_path, [[1, 2]], [[1, 2]], description=REGIONS))
    summary = json.loads((tmp_path / "summary.json").read_text())
    keys = ["(1, 2, 3)", "(2, 3)", "(3,)", "1"]
    assert list(summary["mean"]) == list(summary["cases"][0]["labels"]) == list(summary["label_names"]) == keys


def test_voxels_that_the_reference_ignores_count_nowhere(tmp_path: Path) -> None:
    ignoring = DESCRIPTION.model_copy(update={"labels": {**DESCRIPTION.labels, "ignore": 3}})
    evaluation = evaluate_one(tmp_path, [[1, 1, 2, 0, 1]], [[1, 3, 3, 3, 0]], description=ignoring)
    front, back = evaluation.label_means
    assert (front.tp, front.fp, front.fn) == (1, 1, 0)
    assert front.prediction_ml == pytest.approx(0.002)
    assert math.isnan(back.dice)  # it was predicted in an ignored voxel alone
    assert list(evaluation.label_names.values()) == ["front", "back"]


def test_what_is_ignored_by_a_prediction_is_not_found(tmp_path: Path) -> None:
    evaluation = evaluate_one(tmp_path, [[4, 2, 1]], [[1, 2, 4]], description=REGIONS)
    whole = evaluation.label_means[0]
    assert (whole.tp, whole.fp, whole.fn) == (1, 0, 1)


def test_a_region_may_hold_the_background(tmp_path: Path) -> None:
    description = DatasetDescription(
        channel_names={"0": "MRI"},
        labels={"background": 0, "not_b": (0, 1), "b": 2},
        regions_class_order=(1, 2),
        file_ending=".nii.gz",
    )
    evaluation = evaluate_one(tmp_path, [[0, 0, 1, 2]], [[0, 1, 2, 2]], description=description)
    assert (evaluation.label_means[0].tp, evaluation.label_means[0].fp) == (2, 1)


def test_a_table_of_all_figures_as_csv(folders: tuple[Path, Path], tmp_path: Path) -> None:
    evaluation = evaluate_folders(*folders, Task(DESCRIPTION), workers=1)
    write_cases(tmp_path / "out" / "cases.csv", evaluation)
    with (tmp_path / "out" / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["predicted"], row["label"], row["name"]) for row in rows] == [
        ("c", "no", "1", "front"),
        ("c", "no", "2", "back"),
        ("a", "yes", "1", "front"),
        ("a", "yes", "2", "back"),
        ("b", "yes", "1", "front"),
        ("b", "yes", "2", "back"),
    ]
    assert float(rows[2]["dice"]) == pytest.approx(1 / 2)
    assert rows[0]["hd95_mm"] == rows[1]["dice"] == ""
    assert float(rows[3]["hd95_mm"]) == 0


def test_means_medians_and_intervals(tmp_path: Path) -> None:
    for number, found in enumerate((0, 1, 2, 3, 3)):
        write(tmp_path / "p" / f"{number}.nii.gz", [[1] * found + [0] * (4 - found)])
        write(tmp_path / "r" / f"{number}.nii.gz", [[1, 1, 1, 0]])
    evaluation = evaluate((tmp_path / "p", tmp_path / "r"))
    dices = [2 * found / (found + 3) for found in (0, 1, 2, 3, 3)]
    front = evaluation.label_means[0]
    assert front.dice == pytest.approx(sum(dices) / 5)
    assert front.median.dice == pytest.approx(0.8)
    assert 0.2 < front.low.dice < 0.6 < front.high.dice < 1
    assert evaluation.foreground_mean.low.dice == front.low.dice  # the other label is in no case
    write_summary(tmp_path / "summary.json", evaluation)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["median"]["1"]["dice"] == pytest.approx(0.8)
    assert summary["interval"]["1"]["dice"] == [front.low.dice, front.high.dice]
    assert summary["worst_first"][0] == "0"


def test_the_foreground_s_interval_is_that_of_the_labels_mean(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "p" / f"{number}.nii.gz", [[1, 1, 2, 0, 0, 0]])
        write(tmp_path / "r" / f"{number}.nii.gz", [[1, 1, 2, 2, 2, 0]])
    mean = evaluate((tmp_path / "p", tmp_path / "r")).foreground_mean
    assert mean.low.dice == mean.high.dice == pytest.approx(mean.dice) == pytest.approx(3 / 4)


def test_a_tolerance_of_one_label(tmp_path: Path) -> None:
    write(tmp_path / "p" / "a.nii.gz", [[1, 0, 0, 0], [2, 0, 0, 0]])
    write(tmp_path / "r" / "a.nii.gz", [[0, 0, 1, 0], [0, 0, 2, 0]])
    task = Task(DESCRIPTION, Measures(tolerance=2.0, tolerances={2: 1.0}))
    found = evaluate_folders(tmp_path / "p", tmp_path / "r", task, workers=1).cases[0].labels
    assert found[1].surface_dice == 1
    assert found[2].surface_dice < 1


def test_cells_are_counted_where_they_are_asked_for(tmp_path: Path) -> None:
    cells = [[1, 2, 1, 0, 1], [1, 2, 1, 0, 1]]
    write(tmp_path / "p" / "a.nii.gz", [[1, 2, 1, 0, 0], [1, 2, 1, 0, 0]])
    write(tmp_path / "r" / "a.nii.gz", cells)
    task = Task(cells=CellLabels(1, 2))
    evaluation = evaluate_folders(tmp_path / "p", tmp_path / "r", task, workers=1)
    assert evaluation.instances is not None
    assert evaluation.instances.f1[0.5] == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert evaluation.to_json()["instances"]["matches"]["0.5"]["fn"] == 1
    assert evaluate((tmp_path / "p", tmp_path / "r")).instances is None


def test_a_single_slice_is_measured_in_its_plane(tmp_path: Path) -> None:
    for folder, rows in (("p", [[1, 0, 0, 0]]), ("r", [[0, 0, 1, 0]])):
        write(tmp_path / folder / "a.nii.gz", rows, spacing_mm=(50.0, 1.0, 3.0))
    evaluation = evaluate((tmp_path / "p", tmp_path / "r"))
    assert evaluation.cases[0].labels[1].hd == pytest.approx(6)
    assert evaluation.unit == "mm"


def test_a_label_in_one_slice_of_a_volume_is_measured_in_space(tmp_path: Path) -> None:
    labels = {"p": np.zeros((5, 6, 6), np.uint8), "r": np.zeros((5, 6, 6), np.uint8)}
    labels["p"][2, 1:3, 1:4] = labels["r"][2, 1:4, 1:4] = 1
    for folder, array in labels.items():
        direction = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
        grid = Grid(array.shape, (3.0, 1.0, 2.0), (0.0, 0.0, 0.0), direction)
        write_label_map(tmp_path / folder / "a.nii.gz", array, grid)
    found = evaluate((tmp_path / "p", tmp_path / "r")).cases[0].labels[1]
    expected = surface_metrics(labels["p"] == 1, labels["r"] == 1, (3.0, 1.0, 2.0), 1.0)
    flat = surface_metrics(labels["p"][2] == 1, labels["r"][2] == 1, (1.0, 2.0), 1.0)
    assert (found.surface_dice, found.asd) == pytest.approx((expected.surface_dice, expected.asd))
    assert found.asd != pytest.approx(flat.asd)


def test_ignored_voxels_have_no_surface(tmp_path: Path) -> None:
    ignoring = DESCRIPTION.model_copy(update={"labels": {**DESCRIPTION.labels, "ignore": 3}})
    found = evaluate_one(tmp_path, [[1, 1, 0, 0, 0, 1]], [[1, 1, 0, 0, 3, 3]], description=ignoring).cases[0]
    assert (found.labels[1].surface_dice, found.labels[1].hd, found.labels[1].lesion_f1) == (1, 0, 1)
    assert found.voxels == 4


def test_ignored_voxels_are_no_part_of_a_region_that_holds_the_background(tmp_path: Path) -> None:
    description = DatasetDescription(
        channel_names={"0": "MRI"},
        labels={"background": 0, "not_b": (0, 1), "b": 2, "ignore": 3},
        regions_class_order=(1, 2),
        file_ending=".nii.gz",
    )
    found = evaluate_one(tmp_path, [[0, 0, 1, 2]], [[0, 3, 3, 2]], description=description).cases[0]
    assert (found.labels[0, 1].tp, found.labels[0, 1].fp, found.labels[0, 1].fn) == (1, 0, 0)


def test_cases_without_a_number_come_last(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        write(folder / "0.nii.gz", [[0, 0], [0, 0]])
    assert [case.case for case in evaluate(folders).worst_first] == ["a", "b", "0"]


def test_nnunet_s_own_file(shared: Path, tmp_path: Path) -> None:
    golden = shared / "goldens" / "nnunet_model" / "predictions"
    references = shared / "data" / "Dataset004_Hippocampus" / "labelsTr"
    evaluation = evaluate_folders(golden / "mirroring", references, workers=1)
    assert len(evaluation.missing) == 104
    write_nnunet_summary(tmp_path / "summary.json", evaluation)
    ours, theirs = (json.loads(path.read_text()) for path in (tmp_path / "summary.json", golden / "evaluation.json"))
    assert ours.keys() == theirs.keys()
    assert ours["foreground_mean"] == pytest.approx(theirs["foreground_mean"], abs=1e-6)
    assert ours["mean"].keys() == theirs["mean"].keys()
    for label, means in theirs["mean"].items():
        assert ours["mean"][label] == pytest.approx(means, abs=1e-6)
    by_case = {case["case"]: case["metrics"] for case in theirs["metric_per_case"]}
    assert len(ours["metric_per_case"]) == 26
    for case in ours["metric_per_case"]:
        assert Path(case["prediction_file"]).is_file()
        for label, metrics in by_case[case["case"]].items():
            assert case["metrics"][label] == pytest.approx(metrics, abs=1e-6)


def test_nnunet_s_file_of_labels_in_neither(folders: tuple[Path, Path]) -> None:
    summary = nnunet_summary(evaluate_folders(*folders, Task(DESCRIPTION), workers=1))
    b = next(case for case in summary["metric_per_case"] if case["case"] == "b")
    assert math.isnan(b["metrics"]["2"]["Dice"])
    assert b["metrics"]["2"]["TN"] == 4
    assert [case["case"] for case in summary["metric_per_case"]] == ["a", "b"]
