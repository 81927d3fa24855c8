from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msd_tasks import SHAPE, convert, edit, files_in, make_task, patch, write_nifti

from umamba_cli.pipeline.errors import InputError, WorkError


def refused(task: Path, dataset: Path, *expected: str) -> InputError:
    """Convert, expect an error that says all this, and no file beyond those that were there."""
    there = files_in(dataset) if dataset.is_dir() else None
    with pytest.raises(InputError) as raised:
        convert(task, dataset)
    for text in expected:
        assert text in str(raised.value)
    assert raised.value.next_step
    assert (files_in(dataset) if dataset.is_dir() else None) == there
    return raised.value


ABOVE = {"image": "../imagesTr/one.nii.gz", "label": "./labelsTr/one.nii.gz"}
ABSOLUTE = {"image": "./imagesTr/one.nii.gz", "label": "/labelsTr/one.nii.gz"}
ON_WINDOWS = {"image": "C:\\one.nii.gz", "label": "..\\one.nii.gz"}
PICTURE = {"image": "imagesTr/one.png", "label": "labelsTr/._one.nii.gz"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"training": []}, ("training: ",)),
        ({"training": None}, ("training: missing",)),
        ({"modality": None, "labels": None}, ("modality: missing", "labels: missing")),
        ({"modality": {}}, ("modality: ",)),
        ({"modality": {"1": "MRI"}}, ("modality: ", '"0", "1"')),
        ({"labels": {"1": "a", "2": "b"}}, ("labels: ", "label 0 must be there")),
        ({"labels": {"0": "liver", "1": "b"}}, ("labels: ", "be called background")),
        ({"labels": {"background": "0"}}, ("labels: ", "'background' is no number")),
        ({"labels": {"0": "background", "1": "a", "2": "a"}}, ("labels: ", "'a' is the name of several")),
        ({"labels": {"0": "Background", "1": "background"}}, ("'background' is the name of several",)),
        ({"labels": {"0": "background", "1": "a", "3": "b"}}, ("labels: ", '"b": 3')),
        ({"labels": {"0": "background"}}, ("labels: ",)),
        ({"training": [ABOVE, ABSOLUTE]}, ("training.0.image: must be", "training.1.label: must be", "../imagesTr")),
        ({"training": [ON_WINDOWS]}, ("training.0.image: must be a path", "training.0.label: must be a path")),
        ({"training": [PICTURE]}, ("training.0.image: must be a NIfTI", "training.0.label: must be a NIfTI")),
        ({"test": ["./imagesTs/../../x.nii.gz"]}, ("test.0: must be a path",)),
        ({"test": ["a/three.nii.gz", "b/three.nii.gz"]}, ("1 case several times", "three")),
    ],
)
def test_a_description_that_cannot_be_used(
    task: Path, dataset: Path, changes: dict[str, object], expected: tuple[str, ...]
) -> None:
    edit(task / "dataset.json", **changes)
    refused(task, dataset, str(task / "dataset.json"), *expected)


def test_no_task_is_there(task: Path, dataset: Path, tmp_path: Path) -> None:
    refused(tmp_path / "none", dataset, "dataset.json does not exist")
    (task / "dataset.json").write_text("{")
    refused(task, dataset, "no valid JSON")


def test_missing_files_are_all_listed(task: Path, dataset: Path) -> None:
    for name in ("imagesTr/one.nii.gz", "labelsTr/two.nii.gz", "imagesTs/three.nii.gz"):
        (task / name).unlink()
    error = refused(task, dataset, "3 of 5 files")
    assert error.details == ("imagesTr/one.nii.gz", "labelsTr/two.nii.gz", "imagesTs/three.nii.gz")


def test_cases_with_other_numbers_of_channels_are_all_listed(tmp_path: Path, dataset: Path) -> None:
    task = make_task(tmp_path / "task", channels=2)
    write_nifti(task / "imagesTr/one.nii.gz", np.zeros((3, *SHAPE), np.int16))
    write_nifti(task / "labelsTr/one.nii.gz", np.zeros((2, *SHAPE), np.int16))
    write_nifti(task / "imagesTs/three.nii.gz", np.zeros(SHAPE, np.int16))
    error = refused(task, dataset, "2 of 3 cases")
    assert error.details == (
        "one: image holds 3 channels, dataset.json knows 2; label holds 2 channels, a label map has one",
        "three: image holds 1 channel, dataset.json knows 2",
    )


SPOILED: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello, this is no image"),
    "zipped text": lambda path: path.write_bytes(gzip.compress(b"hello" * 200)),
    "ended in the header": lambda path: path.write_bytes(path.read_bytes()[:60]),
    "no axes": lambda path: patch(path, 40, "<8h", 0, 0, 0, 0, 0, 0, 0, 0),
    "axes of no voxels": lambda path: patch(path, 40, "<8h", 3, 6, -7, 4, 1, 1, 1, 1),
    "complex": lambda path: patch(path, 70, "<h", 32),
    "no beginning": lambda path: patch(path, 108, "<f", float("nan")),
    "far beginning": lambda path: patch(path, 108, "<f", 1e30),
    "NIfTI-2": lambda path: path.write_bytes(gzip.compress(struct.pack("<i4s", 540, b"n+2") + bytes(600))),
    "header apart": lambda path: patch(path, 344, "4s", b"ni1\0"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_files_that_are_no_nifti_are_found_before_work_starts(task: Path, dataset: Path, kind: str) -> None:
    SPOILED[kind](task / "imagesTr/two.nii.gz")
    SPOILED[kind](task / "labelsTr/one.nii.gz")
    error = refused(task, dataset, "2 of 3 cases")
    assert [line.split(" cannot be read")[0] for line in error.details] == ["one: one.nii.gz", "two: two.nii.gz"]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("place", [400, -6])
def test_a_damaged_file_is_named(tmp_path: Path, dataset: Path, channels: int, place: int) -> None:
    task = make_task(tmp_path / "task", channels=channels)
    content = bytearray((task / "imagesTr/two.nii.gz").read_bytes())
    content[place : place + 4] = b"\xff\xee\xdd\xcc"
    (task / "imagesTr/two.nii.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"1 of 3 cases(?s:.*)two: two\.nii\.gz cannot be read"):
        convert(task, dataset)
    assert not [name for name in files_in(dataset) if "two_" in name or "dataset" in name]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("left", [0.5, -9])
def test_a_truncated_file_is_named_and_the_others_are_finished(
    tmp_path: Path, dataset: Path, channels: int, left: float
) -> None:
    task = make_task(tmp_path / "task", channels=channels)
    whole = (task / "imagesTr/two.nii.gz").read_bytes()
    (task / "imagesTr/two.nii.gz").write_bytes(whole[: int(left * len(whole) if left > 0 else left)])
    with pytest.raises(InputError, match=r"1 of 3 cases(?s:.*)two: two\.nii\.gz cannot be read"):
        convert(task, dataset)
    assert (dataset / "imagesTr/one_0000.nii.gz").is_file()
    assert not [name for name in files_in(dataset) if "two_" in name or "dataset" in name]
    (task / "imagesTr/two.nii.gz").write_bytes(whole)
    assert convert(task, dataset).kept == 2


def test_a_truncated_unzipped_file_is_named(tmp_path: Path, dataset: Path) -> None:
    task = make_task(tmp_path / "task", ending=".nii")
    path = task / "imagesTr/one.nii"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"one\.nii cannot be read as an image: it ends 10 bytes too early"):
        convert(task, dataset)


def test_folders_that_hold_something_else(task: Path, dataset: Path, tmp_path: Path) -> None:
    refused(task, task, "lies in")
    refused(task, task / "raw/Dataset004", "lies in")
    refused(task, tmp_path, "holds what this conversion does not make", "Task04_Phantom")
    (tmp_path / "file").write_text("")
    refused(task, tmp_path / "file", "is a file")
    convert(task, dataset)
    for number in range(10):
        (dataset / f"labelsTr/other{number}.nii.gz").write_text("")
    error = refused(task, dataset, "holds what this conversion does not make", "labelsTr/other0.nii.gz")
    assert error.details[-1] == "and 2 more"
    for number in range(10):
        (dataset / f"labelsTr/other{number}.nii.gz").unlink()
    (dataset / ".DS_Store").write_text("")
    assert convert(task, dataset).kept == 3
    edit(dataset / "dataset.json", channel_names={"0": "CT"})
    refused(task, dataset, "is not that of this conversion")


def test_a_link_into_the_folder_is_seen(task: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(task)
    refused(task, tmp_path / "link/new", "lies in")


def test_a_full_disk_is_seen_before_work_starts(task: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(task)._replace(free=100)
    monkeypatch.setattr("umamba_cli.pipeline.resources.shutil.disk_usage", lambda _: usage)
    refused(task, dataset, "the disk has 0 MiB free")
    assert not dataset.exists()


@pytest.mark.parametrize("channels", [1, 2])
def test_a_disk_that_fills_up_leaves_no_part_of_a_case(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    task = make_task(tmp_path / "task", channels=channels)
    monkeypatch.setattr("umamba_cli.pipeline.interop.nifti_volumes.shutil.copyfile", full)
    monkeypatch.setattr("umamba_cli.pipeline.interop.nifti_volumes.gzip.GzipFile.write", full)
    with pytest.raises(WorkError, match=r"cannot write .*one_000.\.nii\.gz: No space left"):
        convert(task, dataset)
    assert files_in(dataset) == []
