"""What can be worked with is worked with, and said; and a disk that is full or closed breaks nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from raw_datasets import SHAPE, RawDataset, bad_cases, error_lines, snapshot, stored_arrays, write_array

VOLUMES = (".nii.gz", ".nii", ".mha", ".nrrd")


@pytest.fixture
def worked_with(umamba: Callable, tmp_path: Path) -> Callable[[RawDataset], tuple[list[str], dict[str, NDArray[Any]]]]:
    """Check, plan and preprocess a dataset; returns what was said, and every configuration's arrays."""

    def work_with(raw: RawDataset) -> tuple[list[str], dict[str, NDArray[Any]]]:
        work = tmp_path / "work"
        checked = umamba("check", raw.folder, "-j", 1)
        assert checked.code == 0, checked.err
        planned = umamba("plan", raw.folder, "-w", work, "-j", 1, "--preset", "cpu")
        assert planned.code == 0, planned.err
        notes = [line for line in checked.err.splitlines() if line.startswith("warning: ")]
        assert [line for line in planned.err.splitlines() if line.startswith("warning: ")] == notes
        done = umamba("preprocess", work, "-j", 1, "--json")
        assert done.code == 0, done.err
        configurations = json.loads((work / "plans.json").read_text())["configurations"]
        names = {f"{name}/{case}{end}" for name in configurations for case in raw.cases for end in ("", "_seg")}
        stored = stored_arrays(work)
        assert stored.keys() == names
        assert all(np.isfinite(array).all() for array in stored.values())
        return [line.removeprefix("warning: ") for line in notes], stored

    return work_with


def test_good_data_needs_no_words(worked_with: Callable, tmp_path: Path) -> None:
    said, stored = worked_with(RawDataset(tmp_path / "Dataset001_Odd"))
    assert said == []
    assert {name.split("/")[0] for name in stored} == {"2d", "3d_fullres"}


@pytest.mark.parametrize("value", [0.0, 1000.1])
@pytest.mark.parametrize("channel_name", ["MRI", "CT", "rescale_to_0_1", "rgb_to_0_1", "noNorm"])
def test_a_constant_image(worked_with: Callable, tmp_path: Path, channel_name: str, value: float) -> None:
    raw = RawDataset(tmp_path / "Dataset001_Odd", channel_names={"0": channel_name})
    write_array(raw.image("b"), np.full(SHAPE, value, dtype=np.float32))
    said, stored = worked_with(raw)
    assert said == ["1 of 3 cases have an image or a channel of one single value: b"]
    assert len(np.unique(stored["2d/b"])) == 1
    assert not stored["2d/b"].any() or channel_name in ("CT", "rgb_to_0_1", "noNorm")


def test_every_image_constant(worked_with: Callable, tmp_path: Path) -> None:
    raw = RawDataset(tmp_path / "Dataset001_Odd", channel_names={"0": "CT"})
    for case in raw.cases:
        write_array(raw.image(case), np.zeros(SHAPE, dtype=np.int16))
    said, stored = worked_with(raw)
    assert said == ["3 of 3 cases have an image or a channel of one single value: a, b, c"]
    assert not any(array.any() for name, array in stored.items() if not name.endswith("_seg"))


def test_one_channel_constant(worked_with: Callable, tmp_path: Path) -> None:
    raw = RawDataset(tmp_path / "Dataset001_Odd", channels=2)
    write_array(raw.image("c", 1), np.full(SHAPE, 3, dtype=np.uint8))
    said, _ = worked_with(raw)
    assert said == ["1 of 3 cases have an image or a channel of one single value: c"]


def test_a_case_without_foreground(worked_with: Callable, tmp_path: Path) -> None:
    raw = RawDataset(tmp_path / "Dataset001_Odd")
    write_array(raw.label("b"), np.zeros(SHAPE, dtype=np.uint8))
    said, stored = worked_with(raw)
    assert said == ["1 of 3 cases have no foreground: b"]
    assert not stored["2d/b_seg"].any()


def test_no_case_with_foreground(umamba: Callable, tmp_path: Path) -> None:
    raw = RawDataset(tmp_path / "Dataset001_Odd")
    for case in raw.cases:
        write_array(raw.label(case), np.zeros(SHAPE, dtype=np.uint8))
    for command in (("check", raw.folder, "-j", 1), ("plan", raw.folder, "-w", tmp_path / "work", "-j", 1)):
        found = bad_cases(umamba(*command))
        assert found == dict.fromkeys(raw.cases, "no foreground in this or any other case")
    assert not (tmp_path / "work").exists()


def test_a_class_that_is_missing_everywhere(worked_with: Callable, tmp_path: Path) -> None:
    labels = {"background": 0, "front": 1, "back": 2, "left": 3, "right": 4}
    said, stored = worked_with(RawDataset(tmp_path / "Dataset001_Odd", labels=labels))
    assert said == ["no case holds label 3 (left), label 4 (right)"]
    properties = json.loads((tmp_path / "work/preprocessed/2d/a.json").read_text())
    assert properties["class_counts"] == [*np.bincount(stored["2d/a_seg"].ravel()), 0, 0]


def test_what_is_odd_is_in_the_json_too(umamba: Callable, tmp_path: Path) -> None:
    raw = RawDataset(tmp_path / "Dataset001_Odd", cases=[f"case_{index:02d}" for index in range(10)])
    for case in raw.cases[:9]:
        write_array(raw.label(case), np.zeros(SHAPE, dtype=np.uint8))
    notes = ["9 of 10 cases have no foreground: " + ", ".join(raw.cases[:8]) + " and 1 more"]
    for command in (("check", raw.folder, "-j", 1), ("plan", raw.folder, "-w", tmp_path / "work", "-j", 1)):
        done = umamba(*command, "--json")
        assert done.code == 0
        assert json.loads(done.out)["notes"] == notes
        assert f"warning: {notes[0]}" in done.err


SIZES = {
    "one voxel thick": (1, 20, 24),
    "one voxel along y": (6, 1, 24),
    "one voxel along x": (6, 20, 1),
    "one row": (1, 1, 24),
    "one voxel": (1, 1, 1),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_case_that_is_one_voxel_wide(worked_with: Callable, tmp_path: Path, size: tuple[int, ...]) -> None:
    raw = RawDataset(tmp_path / "Dataset001_Odd")
    labels = np.ones(size, dtype=np.uint8)
    write_array(raw.image("b"), 5 * labels + np.arange(labels.size, dtype=np.uint8).reshape(size))
    write_array(raw.label("b"), labels)
    _, stored = worked_with(raw)
    assert {name.split("/")[0] for name in stored} == {"2d", "3d_fullres"}
    assert stored["3d_fullres/b"].shape == (1, *size)
    assert (stored["3d_fullres/b_seg"] == 1).all()


@pytest.mark.parametrize("size", list(SIZES.values())[:-1], ids=list(SIZES)[:-1])
def test_a_dataset_that_is_one_voxel_wide(worked_with: Callable, tmp_path: Path, size: tuple[int, ...]) -> None:
    raw = RawDataset(tmp_path / "Dataset001_Odd", shape=size, labels={"background": 0, "a": 1})
    for case in raw.cases:
        write_array(raw.label(case), np.ones(size, dtype=np.uint8))
    worked_with(raw)


def test_a_thin_volume_among_others_of_another_spacing(worked_with: Callable, tmp_path: Path) -> None:
    raw = RawDataset(tmp_path / "Dataset001_Odd")
    for path, array in ((raw.image("b"), raw.good_image()), (raw.label("b"), raw.good_labels())):
        write_array(path, array[2:3], spacing=(8.0, 2.0, 0.4))
    _, stored = worked_with(raw)
    assert stored["3d_fullres/b"].shape == (1, 3, 40, 12)


@pytest.mark.parametrize("ending", VOLUMES)
def test_an_image_of_one_time_step(worked_with: Callable, tmp_path: Path, ending: str) -> None:
    raw = RawDataset(tmp_path / "Dataset001_Odd", ending)
    twin = raw.copy_to(tmp_path / "twin/Dataset001_Odd")
    sitk.WriteImage(sitk.JoinSeries(sitk.ReadImage(str(raw.image("b")))), str(raw.image("b")))
    if ending == ".nii":
        assert struct.unpack_from("<5h", raw.image("b").read_bytes(), 40) == (4, *reversed(SHAPE), 1)
    _, stored = worked_with(raw)
    shutil.rmtree(tmp_path / "work")
    _, expected = worked_with(twin)
    np.testing.assert_array_equal(stored["3d_fullres/b"], expected["3d_fullres/b"])


@pytest.mark.parametrize(("slope", "intercept"), [(2.5, -100.0), (0.0, 0.0), (float("nan"), 0.0)])
def test_scaled_whole_numbers(worked_with: Callable, tmp_path: Path, slope: float, intercept: float) -> None:
    raw = RawDataset(tmp_path / "Dataset001_Odd", ".nii", channel_names={"0": "noNorm"})
    content = bytearray(raw.image("b").read_bytes())
    struct.pack_into("<ff", content, 112, slope, intercept)
    raw.image("b").write_bytes(content)
    _, stored = worked_with(raw)
    numbers = sitk.GetArrayFromImage(sitk.ReadImage(str(raw.image("a")))).astype("f4")
    assert (stored["3d_fullres/a"][0] == numbers).all()
    plain = np.frombuffer(bytes(content[352:]), dtype=np.uint8).reshape(SHAPE)
    expected = slope * plain + intercept if slope > 0 else plain
    np.testing.assert_array_equal(stored["3d_fullres/b"][0], expected.astype("f4"))


@pytest.fixture
def planned_odd(umamba: Callable, tmp_path: Path) -> Path:
    """A planned workspace of three good cases."""
    raw = RawDataset(tmp_path / "Dataset001_Disk")
    work = tmp_path / "work"
    assert umamba("plan", raw.folder, "-w", work, "-j", 1, "--preset", "cpu").code == 0
    return work


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def nothing_unfinished(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if ".partial-" in path.name]


def test_a_disk_that_is_too_small_is_said_before_work_starts(
    umamba: Callable, planned_odd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(planned_odd)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
    (first, _) = error_lines(umamba("preprocess", planned_odd, "-j", 1), code=2)
    assert "the disk has 0 MiB free" in first
    assert snapshot(planned_odd) == before


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_fills_up_while_preprocessing(
    umamba: Callable, planned_odd: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    owner, name = (os, "fsync") if step == "fsync" else (Path, "replace")
    write, calls = getattr(owner, name), []

    def write_until_full(*arguments: Any) -> Any:
        calls.append(1)
        return no_space() if len(calls) > 4 else write(*arguments)  # three files a case: within the second one

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, write_until_full)
        (first, last) = error_lines(umamba("preprocess", planned_odd, "-c", "2d", "-j", 1), code=1)
    assert "No space left on device" in first
    assert "b_seg.b2nd" in first
    assert "make room" in last
    assert nothing_unfinished(planned_odd)
    stored = planned_odd / "preprocessed/2d"
    assert {path.name for path in stored.glob("*.json")} == {"a.json"}
    done = umamba("preprocess", planned_odd, "-c", "2d", "-j", 1, "--json")
    (result,) = json.loads(done.out)["configurations"]
    assert (result["cases"], result["kept"]) == (3, 1)


def test_a_disk_that_really_refuses_to_write(umamba: Callable, planned_odd: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # what is written beyond fails as on a full disk
    try:
        done = umamba("preprocess", planned_odd, "-c", "2d", "-j", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (first, _) = error_lines(done, code=1)
    assert first.startswith(f"error: cannot write {planned_odd / 'preprocessed/2d/a.b2nd'}")
    assert nothing_unfinished(planned_odd)
    assert not list(planned_odd.glob("preprocessed/2d/*"))
    assert umamba("preprocess", planned_odd, "-c", "2d", "-j", 1).code == 0


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_a_disk_that_fills_up_while_planning(
    umamba: Callable, planned_odd: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    dataset, work = planned_odd.parent / "Dataset001_Disk", planned_odd.parent / "other"
    fsync, calls = os.fsync, []

    def write_until_full(handle: int) -> None:
        calls.append(1)
        (no_space if len(calls) > writes else fsync)(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", write_until_full)
        error_lines(umamba("plan", dataset, "-w", work, "-j", 1), code=1)
    assert nothing_unfinished(work)
    assert len(list(work.iterdir())) == writes
    refused = umamba("preprocess", work, "-j", 1)
    assert refused.code == 2 or writes == 3  # the folds, which come last, are for training
    assert umamba("plan", dataset, "-w", work, "-j", 1).code == 0
    assert umamba("preprocess", work, "-c", "2d", "-j", 1).code == 0


def test_a_workspace_that_may_not_be_written(
    umamba: Callable, planned_odd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(planned_odd)

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.mkstemp", forbidden)
    for command in (("plan", planned_odd.parent / "Dataset001_Disk", "-w"), ("preprocess",)):
        (first, last) = error_lines(umamba(*command, planned_odd, "-j", 1), code=1)
        assert "Permission denied" in first
        assert "write permission" in last
        assert snapshot(planned_odd) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_may_not_be_written(umamba: Callable, planned_odd: Path) -> None:
    closed = planned_odd.parent / "closed"
    closed.mkdir(mode=0o500)
    dataset = planned_odd.parent / "Dataset001_Disk"
    error_lines(umamba("plan", dataset, "-w", closed / "work", "-j", 1), code=1)
    assert not list(closed.iterdir())


def test_a_workspace_below_a_file(umamba: Callable, planned_odd: Path) -> None:
    (planned_odd.parent / "file").write_text("no folder")
    dataset, work = planned_odd.parent / "Dataset001_Disk", planned_odd.parent / "file/work"
    (first, _) = error_lines(umamba("plan", dataset, "-w", work, "-j", 1), code=1)
    assert "cannot write" in first
    assert (planned_odd.parent / "file").read_text() == "no folder"
