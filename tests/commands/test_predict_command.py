"""`umamba predict` on what hospitals have: odd images, bad ones among good ones, stops, other formats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from predicted_images import FLIPPED, OBLIQUE, SPACING, phantom, write
from raw_datasets import error_lines

from umamba_cli.pipeline.inference import folder as predictions


@pytest.fixture(scope="module")
def model(trained_workspace: Path) -> Path:
    return trained_workspace / "runs/umamba-bot__3d_fullres"


@pytest.fixture
def predict(umamba: Callable, model: Path, tmp_path: Path) -> Callable:
    def run(*arguments: object, output: str = "out", of: Path = model) -> object:
        return umamba("predict", of, "-o", tmp_path / output, "--device", "cpu", "--no-mirroring", "-q", *arguments)

    return run


@pytest.mark.parametrize(
    ("shape", "spacing", "direction"),
    [
        ((5, 9, 7), SPACING, None),  # smaller than the patch
        ((1, 40, 40), SPACING, None),  # one voxel thick
        ((12, 1, 40), SPACING, None),
        ((14, 40, 36), SPACING, OBLIQUE),
        ((14, 40, 36), SPACING, FLIPPED),
        ((14, 40, 36), (2.5, 0.3, 7.0), None),  # other spacing than any in training
        ((60, 12, 12), (4.0, 4.0, 0.2), OBLIQUE),
    ],
)
def test_images_unlike_those_of_the_training(
    predict: Callable,
    tmp_path: Path,
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    direction: tuple[float, ...] | None,
) -> None:
    array = phantom(shape)
    path = write(tmp_path / "in/odd_0000.nii.gz", array, spacing=spacing, direction=direction)
    straight = write(tmp_path / "in/straight_0000.nii.gz", array, spacing=spacing)
    done = predict("-i", tmp_path / "in")
    assert done.code == 0, done.err
    image, labels = sitk.ReadImage(str(path)), sitk.ReadImage(str(tmp_path / "out/odd.nii.gz"))
    assert labels.GetSize() == image.GetSize()
    for told in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(labels, told)() == pytest.approx(getattr(image, told)(), abs=1e-5)
    assert labels.GetPixelID() == sitk.sitkUInt8
    same = sitk.ReadImage(str(tmp_path / "out" / straight.name.replace("_0000", "")))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(labels), sitk.GetArrayFromImage(same))


def test_one_bad_case_among_good_ones_is_named_at_the_end(predict: Callable, tmp_path: Path) -> None:
    for name in ("a", "c", "e"):
        write(tmp_path / f"in/{name}_0000.nii.gz", phantom((12, 30, 30)))
    (tmp_path / "in/b_0000.nii.gz").write_bytes((tmp_path / "in/a_0000.nii.gz").read_bytes()[:300])
    broken = phantom((12, 30, 30))
    broken[3, 3, 3] = np.nan
    write(tmp_path / "in/d_0000.nii.gz", broken)
    write(tmp_path / "in/f_0001.nii.gz", phantom((12, 30, 30)))
    done = predict("-i", tmp_path / "in")
    lines = error_lines(done, code=1)
    assert lines[0] == "error: 3 of 6 cases could not be predicted"
    assert [line.strip().split(":")[0] for line in lines[1:4]] == ["b", "d", "f"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [
        "a.nii.gz",
        "c.nii.gz",
        "e.nii.gz",
    ]


def test_with_json_a_failed_command_tells_what_it_did(predict: Callable, tmp_path: Path) -> None:
    write(tmp_path / "in/a_0000.nii.gz", phantom((12, 30, 30)))
    (tmp_path / "in/b_0000.nii.gz").write_bytes(b"no image")
    done = predict("-i", tmp_path / "in", "--json")
    assert done.code == 1
    told = json.loads(done.out)
    assert (told["predicted"], list(told["failed"])) == (["a"], ["b"])
    assert told["error"] == "1 of 2 cases could not be predicted"


def test_folds_are_named_as_in_train(predict: Callable, tmp_path: Path) -> None:
    write(tmp_path / "in/a_0000.nii.gz", phantom((12, 30, 30)))
    assert "fold_1" in predict("-i", tmp_path / "in", "-f", "0-1").err
    assert predict("-i", tmp_path / "in", "-f", "0").code == 0


def test_another_number_of_channels_is_refused(predict: Callable, tmp_path: Path) -> None:
    write(tmp_path / "in/a.nii.gz", phantom((2, 12, 30, 30)), spacing=(*SPACING, 1.0))
    assert (
        "the image has 2 channel(s), the model was trained on 1"
        in error_lines(predict("-i", tmp_path / "in"), code=2)[1]
    )


def test_formats_come_back_as_they_went_in(predict: Callable, tmp_path: Path) -> None:
    array = phantom((12, 30, 30))
    for ending in (".nii", ".mha", ".nrrd"):
        write(tmp_path / f"in/a{ending.removeprefix('.')}_0000{ending}", array)
    write(tmp_path / "in/four_0000.mha", array[None], spacing=(*SPACING, 1.0))  # 4D of one channel
    done = predict("-i", tmp_path / "in", "--json")
    assert json.loads(done.out)["predicted"] == ["amha", "anii", "anrrd", "four"]
    there = {path.name for path in (tmp_path / "out").iterdir()} - {"prediction.json", ".predicted"}
    assert there == {"amha.mha", "anii.nii", "anrrd.nrrd", "four.mha"}
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out/amha.mha")))
    for name in there:
        image = sitk.ReadImage(str(tmp_path / "out" / name))
        assert image.GetSpacing() == pytest.approx(SPACING)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), expected)


def test_an_interrupted_folder_goes_on(predict: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        write(tmp_path / f"in/{name}_0000.nii.gz", phantom((12, 30, 30), seed=ord(name)))
    assert predict("-i", tmp_path / "in", output="whole").code == 0
    real = predictions.write_label_map

    def interrupted(path: Path, *arguments: object, **names: object) -> None:
        if path.name == "b.nii.gz":
            raise KeyboardInterrupt
        real(path, *arguments, **names)  # type: ignore[arg-type]

    monkeypatch.setattr(predictions, "write_label_map", interrupted)
    assert predict("-i", tmp_path / "in").code == 130
    monkeypatch.setattr(predictions, "write_label_map", real)
    there = sorted(path.name.removesuffix(".nii.gz") for path in (tmp_path / "out").glob("*.nii.gz"))
    assert "b" not in there
    done = json.loads(predict("-i", tmp_path / "in", "--json").out)
    assert done["skipped"] == there
    assert sorted(there + done["predicted"]) == ["a", "b", "c"]
    for name in "abc":
        one, other = ((tmp_path / folder / f"{name}.nii.gz").read_bytes() for folder in ("out", "whole"))
        assert one == other


def test_a_disk_that_fills_up_leaves_nothing_half_written(
    predict: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        write(tmp_path / f"in/{name}_0000.nii.gz", phantom((12, 30, 30)))
    real = sitk.WriteImage

    def full(image: sitk.Image, path: str, **options: object) -> None:
        if Path(path).name.startswith(".b."):
            Path(path).write_bytes(b"half")
            raise RuntimeError("No space left on device")
        real(image, path, **options)

    monkeypatch.setattr(sitk, "WriteImage", full)
    lines = error_lines(predict("-i", tmp_path / "in"), code=1)
    assert "No space left" in lines[0]
    assert "b.nii.gz" in lines[0]
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert "prediction.json" in there <= {"prediction.json", ".predicted", "a.nii.gz", "c.nii.gz"}
    monkeypatch.setattr(sitk, "WriteImage", real)
    assert predict("-i", tmp_path / "in").code == 0
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3


def test_predictions_of_another_model_are_not_mixed_in(
    predict: Callable, trained_workspace: Path, tmp_path: Path
) -> None:
    write(tmp_path / "in/a_0000.nii.gz", phantom((12, 30, 30)))
    assert predict("-i", tmp_path / "in").code == 0
    lines = error_lines(predict("-i", tmp_path / "in", "--step", 0.7), code=2)
    assert "predictions of another model, or with other options" in lines[0]
    assert "step: 0.5 there, now 0.7" in lines[1]
    assert predict("-i", tmp_path / "in", "--step", 0.7, "--overwrite").code == 0
    copy = Path(shutil.copytree(trained_workspace / "runs", tmp_path / "runs")) / "umamba-bot__3d_fullres"
    assert predict("-i", tmp_path / "in", "--step", 0.7, "--json", of=copy).code == 0  # the same weights elsewhere


def test_uncertainty_and_probabilities_lie_beside(predict: Callable, tmp_path: Path) -> None:
    write(tmp_path / "in/a_0000.nii.gz", phantom((12, 30, 30)), direction=OBLIQUE)
    assert predict("-i", tmp_path / "in").code == 0
    for more in ("--save-uncertainty", "--save-probabilities"):
        done = predict("-i", tmp_path / "in", more, "--json")
        assert json.loads(done.out)["predicted"] == ["a"]  # what is there is not all that is wanted
    assert list(json.loads(done.out)["sums"].values()) == ["memory"]
    uncertainty = sitk.ReadImage(str(tmp_path / "out/uncertainty/a.nii.gz"))
    assert uncertainty.GetDirection() == pytest.approx(OBLIQUE, abs=1e-5)
    nats = sitk.GetArrayFromImage(uncertainty)
    probabilities = np.load(tmp_path / "out/a.npz")["probabilities"]
    np.testing.assert_allclose(nats, -(probabilities * np.log(probabilities)).sum(0), atol=0.02)  # one fold, no mirrors
    again = predict("-i", tmp_path / "in", "--save-uncertainty", "--save-probabilities", "--json")
    assert json.loads(again.out)["skipped"] == ["a"]


def test_shards_are_the_whole_together(predict: Callable, tmp_path: Path) -> None:
    for name in "abcde":
        write(tmp_path / f"in/{name}_0000.nii.gz", phantom((8, 12, 12)))
    parts = [
        json.loads(predict("-i", tmp_path / "in", "--shard", f"{k}/3", "--json").out)["predicted"] for k in (1, 2, 3)
    ]
    assert parts == [["a", "d"], ["b", "e"], ["c"]]
    assert "shard" in error_lines(predict("-i", tmp_path / "in", "--shard", "4/3"), code=2)[0]
    assert "--watch" in error_lines(predict("-i", tmp_path / "in", "--shard", "1/3", "--watch"), code=2)[0]


def test_a_folder_that_is_the_output_is_refused(umamba: Callable, model: Path, tmp_path: Path) -> None:
    write(tmp_path / "in/a_0000.nii.gz", phantom((8, 12, 12)))
    lines = error_lines(umamba("predict", model, "-i", tmp_path / "in", "-o", tmp_path / "in"), code=2)
    assert "the images themselves" in lines[0]
    assert {path.name for path in (tmp_path / "in").iterdir()} == {"a_0000.nii.gz"}
