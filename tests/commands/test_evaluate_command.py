from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phantoms import Finished
from raw_datasets import snapshot

from umamba_cli.pipeline.data.images import write_label_map
from umamba_cli.pipeline.geometry import Grid

Umamba = Callable[..., Finished]

DATASET = {
    "channel_names": {"0": "microscope"},
    "labels": {"background": 0, "interior": 1, "boundary": 2},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


def write(path: Path, rows: list[list[int]]) -> None:
    labels = np.array([rows], dtype=np.uint8)
    direction = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    write_label_map(path, labels, Grid(labels.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), direction))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two predicted cases of three; in `a` the object is two voxels off."""
    write(tmp_path / "p" / "a.nii.gz", [[0, 0, 1, 2, 1]])
    write(tmp_path / "r" / "a.nii.gz", [[1, 0, 0, 2, 1]])
    write(tmp_path / "p" / "b.nii.gz", [[1, 1, 0, 2, 1]])
    write(tmp_path / "r" / "b.nii.gz", [[1, 1, 0, 2, 1]])
    write(tmp_path / "r" / "c.nii.gz", [[1, 1, 0, 2, 1]])
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
    return tmp_path


def evaluate(umamba: Umamba, folder: Path, *options: object) -> dict[str, Any]:
    done = umamba("evaluate", folder / "p", folder / "r", "-j", 1, "--json", *options)
    assert done.code == 0, done.err
    content: dict[str, Any] = json.loads(done.out)
    return content


def test_the_file_and_the_table_beside_it(umamba: Umamba, folder: Path) -> None:
    content = evaluate(umamba, folder, "--dataset", folder / "dataset.json", "-o", folder / "out" / "result.json")
    assert json.loads((folder / "out" / "result.json").read_text())["mean"] == content["mean"]
    with (folder / "out" / "result.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["c", "c", "a", "a", "b", "b"]
    assert content["worst_first"] == ["c", "a", "b"]
    assert content["missing"] == ["c"]
    assert content["unit"] == "mm"
    assert content["foreground_mean_of_predicted"]["dice"] > content["foreground_mean"]["dice"]


def test_missing_predictions_are_named_and_what_they_do_to_the_mean(umamba: Umamba, folder: Path) -> None:
    done = umamba("evaluate", folder / "p", folder / "r", "-j", 1)
    assert done.code == 0
    assert "warning: 1 reference is without a prediction: c" in done.err
    assert "1 case is without a prediction and counted with Dice 0; the mean Dice of the other 2 is 0.875" in done.out
    assert "c (missing)" in done.out
    left_out = umamba("evaluate", folder / "p", folder / "r", "-j", 1, "--only-predicted")
    assert "c (missing)" not in left_out.out
    assert "warning: 1 reference is without a prediction: c" in left_out.err
    assert "counted with Dice 0" not in left_out.out


def test_tolerances_for_all_and_for_one_label(umamba: Umamba, folder: Path) -> None:
    def surface_dice(*options: object) -> float:
        content = evaluate(umamba, folder, "--dataset", folder / "dataset.json", "--only-predicted", *options)
        value: float = content["cases"][0]["labels"]["1"]["surface_dice"]
        return value

    assert surface_dice() < 1
    assert surface_dice("--tolerance", 2) == 1
    assert surface_dice("--tolerance", "interior=2") == 1
    assert surface_dice("--tolerance", "1=2", "--tolerance", 0.5) == 1
    assert surface_dice("--tolerance", "boundary=2") < 1


def test_sizes_and_instances(umamba: Umamba, folder: Path) -> None:
    content = evaluate(umamba, folder, "--sizes", "1.2,9", "--instances", "1,2")
    assert list(content["sizes"]["1"]) == ["< 1.2", "1.2 to 9", "9 or more"]
    assert content["instances"]["f1"]["0.5"] < 1
    by_name = evaluate(umamba, folder, "--dataset", folder / "dataset.json")
    assert by_name["instances"] == content["instances"]
    assert evaluate(umamba, folder)["instances"] is None
    done = umamba("evaluate", folder / "p", folder / "r", "-j", 1, "--instances", "1,2")
    assert "instances: panoptic quality " in done.out


def test_nnunet_s_summary(umamba: Umamba, folder: Path) -> None:
    evaluate(umamba, folder, "--nnunet", folder / "nnunet.json")
    content = json.loads((folder / "nnunet.json").read_text())
    assert [case["case"] for case in content["metric_per_case"]] == ["a", "b"]
    assert content["mean"]["1"]["Dice"] == pytest.approx((1 / 2 + 1) / 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tolerance", "0"), "--tolerance '0' is no number above 0"),
        (("--tolerance", "x"), "--tolerance 'x' is no number above 0"),
        (("--tolerance", "liver=2"), "there is no label 'liver'"),
        (("--sizes", "5,3"), "--sizes '5,3' do not rise"),
        (("--sizes", "inf"), "is no number above 0"),
        (("--instances", "interior"), "--instances 'interior' does not name two labels"),
        (("--instances", "1,1"), "does not name two labels"),
        (("--instances", "1,7"), "there is no label '7'"),
        (("--merge", "--tolerance", "2"), "--merge and --tolerance do not go together"),
        (("--merge", "--only-predicted"), "--merge and --only-predicted do not go together"),
    ],
)
def test_options_that_are_wrong_are_refused(umamba: Umamba, folder: Path, options: tuple[str, ...], said: str) -> None:
    done = umamba("evaluate", folder / "p", folder / "r", "--dataset", folder / "dataset.json", *options)
    assert done.code == 2, done.err
    assert said in done.err
    assert "next: " in done.err
    assert not (folder / "p" / "summary.json").exists()


def test_shards_keep_what_they_were_measured_by(umamba: Umamba, folder: Path) -> None:
    command = ("evaluate", folder / "p", folder / "r", "-j", 1)
    how = ("--tolerance", 2, "--tolerance", "1=0.5", "--sizes", "2,4", "--instances", "1,2")
    assert umamba(*command, *how, "-o", folder / "whole.json").code == 0
    for shard in ("1/2", "2/2"):
        assert umamba(*command, *how, "--shard", shard).code == 0
    assert umamba(*command[:3], "--merge").code == 0
    assert (folder / "p" / "summary.json").read_text() == (folder / "whole.json").read_text()
    assert umamba(*command, "--shard", "2/2").code == 0
    other = umamba(*command[:3], "--merge")
    assert other.code == 2
    assert "differ in tolerances or classes of size" in other.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-o", "p/a.nii.gz"), "a.nii.gz is there and no summary that may be replaced"),
        (("-o", "p/summary.json", "--nnunet", "dataset.json"), "dataset.json is there and no nnU-Net's summary"),
        (("-o", "out.csv"), "two files of one name would be written"),
        (("-o", "s.json", "--nnunet", "s.json"), "two files of one name would be written"),
        (("-o", "s.json", "--nnunet", "s.csv"), "two files of one name would be written"),
        (("-o", "p"), "p is a folder"),
        (("--nnunet", "r"), "r is a folder"),
    ],
)
def test_nothing_that_is_there_is_overwritten(
    umamba: Umamba, folder: Path, options: tuple[str, ...], said: str
) -> None:
    before = snapshot(folder)
    named = [option if option.startswith("-") else folder / option for option in options]
    done = umamba("evaluate", folder / "p", folder / "r", "-j", 1, *named)
    assert done.code == 2
    assert said in done.err
    assert "next: " in done.err
    assert snapshot(folder) == before


@pytest.mark.parametrize("output", ["", ".", "/"])
def test_an_output_without_a_name_is_refused(umamba: Umamba, folder: Path, output: str) -> None:
    done = umamba("evaluate", folder / "p", folder / "r", "-j", 1, "-o", output)
    assert done.code == 2
    assert "is a folder" in done.err


def test_an_evaluation_replaces_an_earlier_one_but_not_that_of_nnunet(umamba: Umamba, folder: Path) -> None:
    first = evaluate(umamba, folder, "--nnunet", folder / "theirs.json")
    assert evaluate(umamba, folder, "--nnunet", folder / "theirs.json")["mean"] == first["mean"]
    (folder / "theirs.json").replace(folder / "p" / "summary.json")
    done = umamba("evaluate", folder / "p", folder / "r", "-j", 1)
    assert done.code == 2
    assert "summary.json is there and no summary that may be replaced" in done.err


def test_the_background_is_no_instance(umamba: Umamba, folder: Path) -> None:
    done = umamba("evaluate", folder / "p", folder / "r", "--instances", "0,1")
    assert done.code == 2
    assert "does not name two labels" in done.err
    named = umamba("evaluate", folder / "p", folder / "r", "--instances", "interior,boundary")
    assert "give its value, or --dataset, which knows names" in named.err
