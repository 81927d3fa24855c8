"""`umamba compare` of finished predictions, by whatever made them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from phantoms import Finished
from scipy.ndimage import binary_dilation

from umamba_cli.pipeline.data.images import write_label_map
from umamba_cli.pipeline.geometry import Grid

Umamba = Callable[..., Finished]


def balls(generator: np.random.Generator) -> NDArray[np.uint8]:
    """Two labels in an image of 24x32x32 voxels."""
    labels = np.zeros((24, 32, 32), dtype=np.uint8)
    grid = np.indices(labels.shape)
    for label, centre in ((1, (12, 10, 12)), (2, (11, 22, 21))):
        middle = np.array(centre) + generator.integers(-2, 3, 3)
        labels[sum((axis - at) ** 2 for axis, at in zip(grid, middle, strict=True)) < generator.integers(20, 50)] = (
            label
        )
    return labels


def spoilt(labels: NDArray[np.uint8], generator: np.random.Generator, share: float) -> NDArray[np.uint8]:
    """Some voxels of the labels' rims lost, as a model loses them."""
    rim = (labels == 0) & binary_dilation(labels > 0)
    lost = (labels > 0) & binary_dilation(labels == 0) & (generator.random(labels.shape) < share)
    found = np.where(lost, 0, labels)
    grown = rim & (generator.random(labels.shape) < share / 2)
    return np.where(grown, 1, found).astype(np.uint8)


def write(path: Path, labels: NDArray[np.uint8]) -> None:
    direction = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    write_label_map(path, labels, Grid(labels.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), direction))


def trained_again(seed: int) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
    """What a model with this seed finds in 16 cases: each training has a luck of its own."""
    luck = 0.2 + 0.02 * np.random.default_rng(seed).standard_normal()
    for number in range(16):
        reference = balls(np.random.default_rng(1000 + number))
        yield f"case_{number:02d}", reference, spoilt(reference, np.random.default_rng((seed, number)), luck)


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Folders of one model's trainings, a model that dilates label 1, and references."""
    for seed in range(6):
        for name, reference, found in trained_again(seed):
            write(tmp_path / f"seed_{seed}" / f"{name}.nii.gz", found)
            if seed == 0:
                write(tmp_path / "references" / f"{name}.nii.gz", reference)
            if seed < 2:
                larger = np.where((found == 0) & binary_dilation(found == 1), 1, found).astype(np.uint8)
                write(tmp_path / f"dilated_{seed}" / f"{name}.nii.gz", larger)
    return tmp_path


def compare(umamba: Umamba, folder: Path, *named: str) -> dict[str, Any]:
    options = [option for text in named for option in ("--predictions", text.replace("=", f"={folder}/"))]
    done = umamba("compare", *options, "--references", folder / "references", "-o", folder / "out", "-j", 1, "--json")
    assert done.code == 0, done.err
    content: dict[str, Any] = json.loads(done.out)
    return content


def test_the_same_model_with_other_seeds_shows_no_difference(umamba: Umamba, predictions: Path) -> None:
    once = compare(umamba, predictions, "one=seed_0", "other=seed_1")
    assert "no difference shown" in once["verdict"].lower()
    twice = compare(umamba, predictions, "one=seed_0", "one=seed_1", "other=seed_2", "other=seed_3")
    for verdict in twice["verdicts"].values():
        assert "no difference shown" in verdict.lower()
    thrice = [f"{name}=seed_{seed}" for seed, name in enumerate(("one", "one", "one", "other", "other", "other"))]
    assert "no difference shown" in compare(umamba, predictions, *thrice)["verdict"].lower()


def test_a_model_with_a_dilated_label_is_found_out(umamba: Umamba, predictions: Path) -> None:
    once = compare(umamba, predictions, "model=seed_0", "dilated=dilated_1")
    assert once["verdict"].startswith("In these trainings, model does better than dilated in Dice by 0.")
    twice = compare(umamba, predictions, "model=seed_0", "model=seed_1", "dilated=dilated_0", "dilated=dilated_1")
    assert twice["verdict"].startswith("model does better than dilated in Dice by 0.")
    by_label = {label["label"]: label["pairs"][0] for label in twice["comparison"]["metrics"]["dice"]["labels"]}
    assert by_label["1"]["shown"]
    assert not by_label["2"]["shown"]


def test_a_prediction_that_is_missing_counts_as_nothing_found(umamba: Umamba, predictions: Path) -> None:
    before = compare(umamba, predictions, "one=seed_0", "other=seed_1")
    for number in range(4):
        (predictions / "seed_1" / f"case_{number:02d}.nii.gz").unlink()
    after = compare(umamba, predictions, "one=seed_0", "other=seed_1")
    means = [each["comparison"]["metrics"]["dice"]["models"][1]["mean"] for each in (before, after)]
    assert means[1] == pytest.approx(means[0] * 12 / 16, abs=0.01)
    assert after["comparison"]["metrics"]["dice"]["pairs"][0]["cases"] == 16


def test_no_prediction_is_no_right_answer(umamba: Umamba, predictions: Path) -> None:
    """Where nothing is to be found, one that finds a little is better than one that is not there."""
    nothing = np.zeros((24, 32, 32), dtype=np.uint8)
    little = nothing.copy()
    little[0, 0, 0] = 1
    write(predictions / "references" / "case_00.nii.gz", nothing)
    write(predictions / "seed_1" / "case_00.nii.gz", little)
    (predictions / "seed_0" / "case_00.nii.gz").unlink()
    content = compare(umamba, predictions, "one=seed_0", "other=seed_1")
    rows = {}
    with (predictions / "out" / "cases.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            rows[row["model"], row["case"], row["label"]] = row["dice"]
    assert rows["one", "case_00", "1"] == ""  # there was nothing to overlap with
    absent = compare(umamba, predictions, "one=seed_1", "other=seed_1")["comparison"]["metrics"]["dice"]
    assert absent["pairs"][0]["difference"] == 0
    by_label = {label["label"]: label for label in content["comparison"]["metrics"]["dice"]["labels"]}
    one, other = by_label["1"]["models"]
    assert one["cases"] == other["cases"] == 16
    means = [float(rows["one", f"case_{n:02d}", "1"]) for n in range(1, 16)]
    assert one["mean"] == pytest.approx(sum(means) / 16)


def test_missing_predictions_are_named_and_what_no_folder_predicts_is_left_out(
    umamba: Umamba, predictions: Path
) -> None:
    for seed in (0, 1):
        (predictions / f"seed_{seed}" / "case_00.nii.gz").unlink()
    (predictions / "seed_1" / "case_03.nii.gz").unlink()
    where = ("--references", predictions / "references", "-o", predictions / "out", "-j", 1)
    named = [f"{name}={predictions}/seed_{seed}" for name, seed in (("one", 0), ("other", 1))]
    done = umamba("compare", "--predictions", named[0], "--predictions", named[1], *where)
    assert done.code == 0, done.err
    assert "1 reference is left out, for no folder has a prediction: case_00" in done.err
    assert "other, seed 0: 1 prediction is missing and counted with Dice 0: case_03" in done.err
    content = json.loads((predictions / "out" / "comparison.json").read_text())
    assert content["left_out"] == ["case_00"]
    assert content["unpredicted"] == {"other, seed 0": ["case_03"]}
    assert content["comparison"]["metrics"]["dice"]["pairs"][0]["cases"] == 15


def test_patients_are_compared_where_they_have_several_cases(umamba: Umamba, predictions: Path) -> None:
    named = "one=seed_0", "other=dilated_1"
    options = [option for text in named for option in ("--predictions", text.replace("=", f"={predictions}/"))]
    where = ("--references", predictions / "references", "-o", predictions / "out", "-j", 1, "--json")
    done = umamba("compare", *options, *where, "--group-by", "case_[01]")
    metric = json.loads(done.out)["comparison"]["metrics"]["dice"]
    by_case = compare(umamba, predictions, *named)["comparison"]["metrics"]["dice"]
    assert metric["models"][0]["cases"] == metric["pairs"][0]["cases"] == 2
    assert not metric["pairs"][0]["shown"]  # two patients show nothing, whatever number of cases they have
    assert by_case["pairs"][0]["shown"]
    with (predictions / "out" / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    mean = [float(row["dice"]) for row in rows if row["model"] == "one" and row["case"].startswith("case_0")]
    other = [float(row["dice"]) for row in rows if row["model"] == "one" and row["case"].startswith("case_1")]
    assert metric["models"][0]["mean"] == pytest.approx((np.mean(mean) + np.mean(other)) / 2)


def test_folders_that_cannot_be_compared_are_refused(umamba: Umamba, predictions: Path, tmp_path: Path) -> None:
    one = f"one={predictions}/seed_0"
    where = ("--references", predictions / "references", "-o", predictions / "out")
    (tmp_path / "strangers").mkdir()
    write(tmp_path / "strangers" / "x.nii.gz", np.zeros((2, 2, 2), dtype=np.uint8))
    for command, said in (
        (("--predictions", one, *where), "fewer than two models"),
        (("--predictions", one, "--predictions", one), "neither a workspace nor folders"),
        (("--predictions", one, "--predictions", f"x={tmp_path}/strangers", *where), "has a reference"),
        (("--predictions", one, "--predictions", f"x={tmp_path}/nowhere", *where), "nowhere is no folder"),
    ):
        done = umamba("compare", *command)
        assert done.code == 2
        assert said in done.err
    assert not (predictions / "out").exists()
