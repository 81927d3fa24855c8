"""Each kind of bad input gives the design's error and exit code 2, before work starts, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from phantoms import Finished
from raw_datasets import error_lines


@pytest.fixture
def dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_dataset, tmp_path / tiny_dataset.name))


def refused(done: Finished, *expected: str) -> list[str]:
    """The lines of an error in what was given."""
    lines = error_lines(done, code=2)
    for text in expected:
        assert text in done.err
    return lines


def _rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    image = sitk.ReadImage(str(path))
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    changed.SetSpacing(image.GetSpacing())
    changed.SetOrigin(image.GetOrigin())
    changed.SetDirection(image.GetDirection())
    sitk.WriteImage(changed, str(path))


def _truncate(folder: Path) -> None:
    path = folder / "imagesTr/phantom_001_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])


def _unknown_label(folder: Path) -> None:
    def spoil(labels: np.ndarray) -> np.ndarray:
        labels[0, 0, 0] = 9
        return labels

    _rewrite(folder / "labelsTr/phantom_001.nii.gz", spoil)


def _other_size(folder: Path) -> None:
    _rewrite(folder / "labelsTr/phantom_001.nii.gz", lambda labels: labels[:-1])


def _missing_channel(folder: Path) -> None:
    description = json.loads((folder / "dataset.json").read_text())
    description["channel_names"] = {"0": "T1", "1": "T2"}
    (folder / "dataset.json").write_text(json.dumps(description))
    for path in list((folder / "imagesTr").glob("*_0000.nii.gz")):
        if "001" not in path.name:
            shutil.copy(path, path.with_name(path.name.replace("_0000", "_0001")))


def _not_finite(folder: Path) -> None:
    _rewrite(
        folder / "imagesTr/phantom_001_0000.nii.gz", lambda image: np.where(image > 50, np.nan, image).astype("f4")
    )


SPOILED = {
    "truncated": (_truncate, "phantom_001"),
    "unknown label": (_unknown_label, "label holds 9, dataset.json knows 0, 1, 2, 3, 4"),
    "other size": (_other_size, "label is"),
    "missing channel": (_missing_channel, "channel 0001 is missing"),
    "not finite": (_not_finite, "finite"),
}


@pytest.mark.parametrize("command", ["check", "plan"])
@pytest.mark.parametrize("kind", SPOILED)
def test_a_bad_case_is_named(umamba: Callable, dataset: Path, tmp_path: Path, kind: str, command: str) -> None:
    spoil, expected = SPOILED[kind]
    spoil(dataset)
    arguments = ("-w", tmp_path / "work") if command == "plan" else ()
    lines = refused(umamba(command, dataset, "-j", 1, *arguments), "1 of 5 cases", "phantom_001: ", expected)
    assert len(lines) == 3
    assert not (tmp_path / "work").exists()


def test_all_bad_cases_are_listed(umamba: Callable, dataset: Path) -> None:
    _truncate(dataset)
    (dataset / "labelsTr/phantom_002.nii.gz").unlink()
    refused(umamba("check", dataset, "-j", 1), "2 of 5 cases", "phantom_001: ", "phantom_002: ")
    report = umamba("check", dataset, "-j", 1, "--json")
    assert report.code == 2
    assert set(json.loads(report.out)["bad_cases"]) == {"phantom_001", "phantom_002"}


def test_a_case_spoiled_after_planning_stops_preprocessing(umamba: Callable, dataset: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert umamba("plan", dataset, "-w", work, "--preset", "cpu", "-j", 1).code == 0
    _truncate(dataset)
    refused(umamba("preprocess", work, "-c", "3d_fullres", "-j", 1), "1 of 5 cases", "phantom_001")
    assert not list(work.glob("preprocessed/*/phantom_001*"))


@pytest.mark.parametrize("command", ["check", "plan"])
def test_an_empty_folder(umamba: Callable, tmp_path: Path, command: str) -> None:
    assert len(refused(umamba(command, tmp_path), "dataset.json does not exist")) == 2


def test_no_workspace(umamba: Callable, tmp_path: Path) -> None:
    for command in ("preprocess", "train"):
        refused(umamba(command, tmp_path), "is no workspace", "umamba plan")


def test_a_workspace_that_was_not_preprocessed(umamba: Callable, own_workspace: Path) -> None:
    shutil.rmtree(own_workspace / "preprocessed")
    refused(umamba("train", own_workspace, "--device", "cpu"), "not preprocessed for 3d_fullres", "umamba preprocess")
    assert not (own_workspace / "runs").exists()


def test_a_workspace_that_was_preprocessed_with_other_plans(umamba: Callable, own_workspace: Path) -> None:
    plans = json.loads((own_workspace / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["NoNormalization"]
    (own_workspace / "plans.json").write_text(json.dumps(plans))
    refused(umamba("train", own_workspace, "--device", "cpu"), "preprocessed with other plans", "umamba preprocess")


@pytest.mark.parametrize("command", ["preprocess", "train"])
def test_an_unknown_configuration(umamba: Callable, own_workspace: Path, command: str) -> None:
    refused(umamba(command, own_workspace, "-c", "4d"), "'4d'", "2d", "3d_fullres")


def test_an_unknown_model(umamba: Callable, own_workspace: Path) -> None:
    refused(umamba("train", own_workspace, "-m", "vnet"), "no model 'vnet'", "umamba-bot")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--fold", "7"), "no fold 7"),
        (("--fold", "x"), "no fold 'x'"),
        (("--device", "tpu"), "no device 'tpu'"),
        (("--device", "cpu", "--precision", "fp8"), "no precision 'fp8'"),
        (("--device", "cpu", "--precision", "fp16"), "fp16"),
        (("--tag", "a/b"), "tag 'a/b'"),
    ],
)
def test_other_wrong_options_of_train(
    umamba: Callable, own_workspace: Path, arguments: tuple[str, ...], expected: str
) -> None:
    refused(umamba("train", own_workspace, *arguments), expected)
    assert not (own_workspace / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--preset", "gpu"), "no preset 'gpu'"),
        (("--spacing", "1,2"), "three lengths"),
        (("--group-by", "("), "regular"),
    ],
)
def test_other_wrong_options_of_plan(
    umamba: Callable, tiny_dataset: Path, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    refused(umamba("plan", tiny_dataset, "-w", tmp_path / "work", "-j", 1, *arguments), expected)
    assert not (tmp_path / "work").exists()


def test_an_edited_plan_is_refused_with_key_and_value(umamba: Callable, own_workspace: Path) -> None:
    plans = json.loads((own_workspace / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = [13, 32, 32]
    (own_workspace / "plans.json").write_text(json.dumps(plans))
    refused(umamba("train", own_workspace), "configurations.3d_fullres.patch_size", "13")


def test_data_that_changed_after_preprocessing(umamba: Callable, dataset: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert umamba("plan", dataset, "-w", work, "--preset", "cpu", "-j", 1).code == 0
    assert umamba("preprocess", work, "-c", "3d_fullres", "-j", 1).code == 0
    _rewrite(dataset / "labelsTr/phantom_001.nii.gz", lambda labels: labels[:, ::-1].copy())
    refused(umamba("train", work, "--device", "cpu"), "1 of 5 cases", "from other files", "umamba preprocess")


def test_restart_removes_nothing_before_all_is_known_to_be_right(
    umamba: Callable, trained_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = trained_workspace / "runs/umamba-bot__3d_fullres/fold_0/checkpoint_final.safetensors"
    refused(umamba("train", trained_workspace, "--restart", "--seed", 2**64), "seed")
    monkeypatch.setenv("UMAMBA_SCAN", "nonsense")
    refused(umamba("train", trained_workspace, "--restart"), "nonsense")
    assert final.is_file()


def test_predict_never_writes_among_the_images(
    umamba: Callable, trained_workspace: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    (image,) = (tiny_dataset / "imagesTs").iterdir()
    (tmp_path / "alpha.nii.gz").write_bytes(image.read_bytes())
    run = trained_workspace / "runs/umamba-bot__3d_fullres"
    refused(umamba("predict", run, "-i", tmp_path, "-o", tmp_path, "--overwrite"), "the images themselves")
    assert (tmp_path / "alpha.nii.gz").read_bytes() == image.read_bytes()


def test_predict_names_images_with_absurd_voxels_or_wrong_channels(
    umamba: Callable, trained_workspace: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    (image,) = (tiny_dataset / "imagesTs").iterdir()
    images = tmp_path / "images"
    images.mkdir()
    for name in ("absurd_0000.nii.gz", "second_0001.nii.gz"):
        (images / name).write_bytes(image.read_bytes())
    _rewrite(
        images / "absurd_0000.nii.gz", lambda voxels: np.where(voxels > voxels.mean(), np.nan, voxels).astype("f4")
    )
    run = trained_workspace / "runs/umamba-bot__3d_fullres"
    done = umamba("predict", run, "-i", images, "-o", tmp_path / "out")
    refused(done, "2 of 2 cases", "absurd: image has", "second: channel 0000 is missing")
    assert not list(tmp_path.glob("out/*"))


def test_predict_refuses_what_it_cannot_use(
    umamba: Callable, trained_workspace: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    run = trained_workspace / "runs/umamba-bot__3d_fullres"
    images, output = tiny_dataset / "imagesTs", tmp_path / "out"
    refused(umamba("predict", tmp_path / "none", "-i", images, "-o", output), "is no folder")
    refused(umamba("predict", trained_workspace, "-i", images, "-o", output), "holds no finished training")
    refused(umamba("predict", run, "-f", 3, "-i", images, "-o", output), "not trained to the end", "fold_3")
    refused(umamba("predict", run, "-i", tmp_path / "none", "-o", output), "does not exist")
    refused(umamba("predict", run, "-i", tmp_path, "-o", output), "holds no *.nii.gz")
    refused(umamba("predict", run, "-i", images, "-o", output, "--step", 0), "step")
    assert not output.exists()


def test_evaluate_refuses_what_it_cannot_use(umamba: Callable, tiny_dataset: Path, tmp_path: Path) -> None:
    refused(umamba("evaluate", tmp_path / "none", tiny_dataset / "labelsTr"), "is no folder")
    refused(umamba("evaluate", tmp_path, tiny_dataset / "labelsTr"), "holds no label map")
    predictions = Path(shutil.copytree(tiny_dataset / "labelsTr", tmp_path / "predictions"))
    _rewrite(predictions / "phantom_002.nii.gz", lambda labels: labels[1:])
    refused(umamba("evaluate", predictions, tiny_dataset / "labelsTr", "-j", 1), "phantom_002")
    assert not (predictions / "summary.json").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_preprocessed_file_damaged_on_disk_is_named(umamba: Callable, own_workspace: Path, workers: int) -> None:
    for path in own_workspace.glob("preprocessed/3d_fullres/*[0-9].b2nd"):
        content = bytearray(path.read_bytes())
        content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
        path.write_bytes(content)
    arguments = ("-c", "3d_fullres", "-m", "unet", "--epochs", 1, "--iterations", 2, "-j", workers)
    done = umamba("train", own_workspace, *arguments)
    assert done.code == 1
    error, advice = done.err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert ".b2nd is damaged" in error
    assert advice.startswith("next: remove this file, then run `umamba preprocess` again")


def test_the_disk_is_looked_at_for_the_spacing_of_a_variant(umamba: Callable, own_workspace: Path) -> None:
    path = own_workspace / "plans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["fine"] = {"inherits_from": "3d_fullres", "spacing": [1e-4, 1e-4, 1e-4]}
    path.write_text(json.dumps(plans))
    refused(umamba("preprocess", own_workspace, "-c", "fine", "-j", 1), "needs about", "MiB")
