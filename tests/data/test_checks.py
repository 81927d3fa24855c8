from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from umamba_cli.pipeline.data.checks import (
    CheckReport,
    check_case,
    check_dataset,
    label_problems,
    label_values,
    load_and_check,
    not_finite_problems,
)
from umamba_cli.pipeline.data.dataset import Dataset, open_dataset
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.progress import Progress

SHAPE = (4, 6, 5)  # z, y, x


def write_volume(
    path: Path,
    array: NDArray[Any],
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    direction: Sequence[float] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
    is_vector: bool = False,
) -> None:
    image = sitk.GetImageFromArray(array, isVector=is_vector)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


class Folder:
    """A dataset in the making; `image` and `label` put a good file there unless told otherwise."""

    def __init__(self, folder: Path, *, channels: int = 1, ending: str = ".nii.gz") -> None:
        self.folder, self.ending = folder, ending
        for name in ("imagesTr", "labelsTr"):
            (folder / name).mkdir(parents=True)
        description = {
            "channel_names": {str(index): "MRI" for index in range(channels)},
            "labels": {"background": 0, "front": 1, "back": 2},
            "file_ending": ending,
        }
        (folder / "dataset.json").write_text(json.dumps(description))

    def image_path(self, end: str = "_0000", case: str = "case") -> Path:
        return self.folder / "imagesTr" / f"{case}{end}{self.ending}"

    def label_path(self, case: str = "case") -> Path:
        return self.folder / "labelsTr" / f"{case}{self.ending}"

    def image(self, end: str = "_0000", case: str = "case", *, array: NDArray[Any] | None = None, **grid: Any) -> None:
        good = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
        write_volume(self.image_path(end, case), good if array is None else array, **grid)

    def label(self, case: str = "case", *, array: NDArray[Any] | None = None, **grid: Any) -> None:
        good = np.zeros(SHAPE, dtype=np.uint8)
        good[1, 2:4, 1:3] = [[1, 2], [2, 1]]
        write_volume(self.label_path(case), good if array is None else array, **grid)

    def open(self) -> Dataset:
        return open_dataset(self.folder)

    def problems(self) -> tuple[str, ...]:
        dataset = self.open()
        (case,) = dataset.cases
        return check_case(case, dataset.description).problems


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "Dataset001_Test")


@pytest.fixture
def two_channels(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "Dataset002_Test", channels=2)


def test_a_good_case_is_handed_back_with_its_arrays(folder: Folder) -> None:
    folder.image()
    folder.label()
    dataset = folder.open()
    checked = load_and_check(dataset.cases[0], dataset.description)
    assert checked.problems == ()
    assert checked.case == dataset.cases[0]
    assert checked.image is not None
    assert checked.image.voxels.shape == (1, *SHAPE)
    assert checked.label_map is not None
    assert checked.label_map.labels.shape == SHAPE


def test_sizes_differ(folder: Folder) -> None:
    folder.image()
    folder.label(array=np.zeros((4, 6, 4), dtype=np.uint8))
    assert folder.problems() == ("image is 4x6x5, label is 4x6x4",)


def test_spacings_differ(folder: Folder) -> None:
    folder.image(spacing=(1.0, 1.0, 3.0))
    folder.label(spacing=(1.0, 1.0, 3.01))
    assert folder.problems() == ("image and label differ: spacing is 3 1 1 and 3.01 1 1 mm (z, y, x)",)


def test_origins_and_directions_differ(folder: Folder) -> None:
    folder.image(origin=(1.0, 2.0, 3.0))
    folder.label(origin=(1.0, 2.0, 3.5), direction=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))
    origin, direction = folder.problems()
    assert origin == "image and label differ: origin is 1 2 3 and 1 2 3.5 mm (x, y, z)"
    assert direction.startswith("image and label differ: direction is 1 0 0 0 1 0 0 0 1 and -1 0 0 0 -1 0 0 0 1")


def test_what_rounding_does_to_a_grid_is_no_difference(folder: Folder) -> None:
    folder.image(spacing=(1.0, 1.0, 3.0), origin=(0.0, 0.0, 0.0))
    folder.label(spacing=(1.0, 1.0, 3.0002), origin=(0.0, 0.0005, 0.0))
    assert folder.problems() == ()


@pytest.mark.parametrize(
    ("kind", "values", "phrase"),
    [
        (np.uint8, [3], "label holds 3, dataset.json knows 0, 1, 2"),
        (np.int16, [-1, 3, 255], "label holds -1, 3, 255, dataset.json knows 0, 1, 2"),
        (np.int16, range(3, 15), "label holds 3, 4, 5, 6, 7, 8, 9, 10 and 4 more, dataset.json knows 0, 1, 2"),
        (np.float32, [0.5, 1.25], "label holds 0.5, 1.25, labels are whole numbers"),
        (np.float32, [np.nan, np.nan, np.inf], "label has 3 of 120 voxels that are not finite"),
    ],
)
def test_values_that_are_no_labels(folder: Folder, kind: type, values: Sequence[float], phrase: str) -> None:
    labels = np.zeros(SHAPE, dtype=kind)
    labels.reshape(-1)[: len(values)] = values
    folder.image()
    folder.label(array=labels)
    assert folder.problems() == (phrase,)


def test_labels_may_be_stored_as_whole_floating_numbers_and_need_not_all_be_there(folder: Folder) -> None:
    folder.image()
    folder.label(array=np.full(SHAPE, 2.0))
    assert folder.problems() == ()


def test_without_a_description_every_whole_number_from_zero_is_a_label() -> None:
    assert label_problems("reference", np.array([[0, 7, 200]]), None) == []
    assert label_problems("reference", np.array([[0, -7]]), None) == ["reference holds -7, labels start at 0"]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_voxels_that_are_not_finite_are_counted(tmp_path: Path, ending: str, kind: type) -> None:
    folder = Folder(tmp_path, ending=ending)
    voxels = np.zeros(SHAPE, dtype=kind)
    voxels[0, 0, :2] = [np.nan, np.inf]
    voxels[-1, -1, -1] = -np.inf
    folder.image(array=voxels)
    folder.label()
    assert folder.problems() == ("image has 3 of 120 voxels that are not finite",)


def test_an_image_without_label_and_a_label_without_image(folder: Folder) -> None:
    folder.image(case="a")
    folder.label(case="b")
    dataset = folder.open()
    assert [check_case(case, dataset.description).problems for case in dataset.cases] == [
        ("no label in labelsTr",),
        ("no image in imagesTr",),
    ]


def test_channels_by_number(two_channels: Folder) -> None:
    two_channels.image("_0000")
    two_channels.image("_0001")
    two_channels.label()
    assert two_channels.problems() == ()


@pytest.mark.parametrize(
    ("ends", "phrases"),
    [
        (["_0000"], ("channel 0001 is missing",)),
        (["_0001"], ("channel 0000 is missing",)),
        (["_0003"], ("channel 0000 is missing", "channel 0001 is missing", "channel 0003 is not in dataset.json")),
        (["_0000", "_0002"], ("channel 0001 is missing", "channel 0002 is not in dataset.json")),
        (["_0000", "_0001", "_0002"], ("channel 0002 is not in dataset.json",)),
        ([""], ("image holds 1 channel, dataset.json knows 2",)),
        (["", "_0001"], ("channel 0000 is missing", "case.nii.gz has no channel number")),
    ],
)
def test_channels_that_are_missing_or_too_many(
    two_channels: Folder, ends: Sequence[str], phrases: tuple[str, ...]
) -> None:
    for end in ends:
        two_channels.image(end)
    two_channels.label()
    assert two_channels.problems() == phrases


@pytest.mark.parametrize("end", ["", "_0000"])
def test_one_file_may_hold_all_channels(two_channels: Folder, end: str) -> None:
    two_channels.image(end, array=np.zeros((*SHAPE, 2), dtype=np.float32), is_vector=True)
    two_channels.label()
    assert two_channels.problems() == ()


def test_one_file_holds_too_many_channels(two_channels: Folder) -> None:
    two_channels.image("_0000", array=np.zeros((*SHAPE, 3), dtype=np.float32), is_vector=True)
    two_channels.label()
    assert two_channels.problems() == ("image holds 3 channels, dataset.json knows 2",)


def test_channels_on_different_grids(two_channels: Folder) -> None:
    two_channels.image("_0000")
    two_channels.image("_0001", origin=(5.0, 0.0, 0.0))
    two_channels.label()
    (phrase,) = two_channels.problems()
    assert phrase.startswith("case_0000.nii.gz and case_0001.nii.gz do not fit together: origin is")


def test_files_that_cannot_be_read_are_all_named(two_channels: Folder) -> None:
    two_channels.image("_0001")
    whole = two_channels.image_path("_0001").read_bytes()
    two_channels.image_path("_0001").write_bytes(whole[: len(whole) // 2])
    two_channels.image_path("_0000").write_text("no image")
    two_channels.label_path().write_bytes(b"")
    text, truncated, empty = two_channels.problems()
    assert text.startswith("case_0000.nii.gz cannot be read as an image: Not a gzipped file")
    assert truncated.startswith("case_0001.nii.gz cannot be read as an image: Compressed file ended before")
    assert empty == "case.nii.gz is empty (0 bytes)"


def test_all_that_is_wrong_with_a_case_is_listed(folder: Folder) -> None:
    folder.image("_0000", array=np.full(SHAPE, np.nan, dtype=np.float32))
    folder.image("_0001", array=np.full(SHAPE, 0, dtype=np.float32))
    folder.label(array=np.full((4, 6, 4), 3, dtype=np.uint8))
    assert folder.problems() == (
        "channel 0001 is not in dataset.json",
        "image has 120 of 240 voxels that are not finite",
        "image is 4x6x5, label is 4x6x4",
        "label holds 3, dataset.json knows 0, 1, 2",
    )


def test_pictures(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "Dataset003_Pictures", channels=3, ending=".png")
    pixels = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
    labels = np.zeros((6, 5), dtype=np.uint8)
    labels[2:4, 2] = [1, 2]
    imageio.imwrite(folder.image_path(), pixels)
    imageio.imwrite(folder.label_path(), labels)
    assert folder.problems() == ()
    imageio.imwrite(folder.label_path(), labels[:5])
    assert folder.problems() == ("image is 1x6x5, label is 1x5x5",)
    imageio.imwrite(folder.label_path(), pixels)
    assert folder.problems() == ("case.png has 3 different channels, a label map has one",)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_dataset_is_checked_case_by_case_and_refused_in_one_message(folder: Folder, workers: int) -> None:
    for name in ("a", "b", "c"):
        folder.image(case=name)
        folder.label(case=name)
    folder.label("a", array=np.full((4, 6, 4), 3, dtype=np.uint8))
    folder.label_path("c").unlink()
    seen: list[Progress] = []
    report = check_dataset(folder.open(), workers=workers, on_progress=seen.append)
    assert report.cases == 3
    assert list(report.problems) == ["a", "c"]
    assert [step.done for step in seen] == [0, 1, 2, 3]
    with pytest.raises(InputError) as caught:
        report.raise_if_bad()
    assert caught.value.problem == "2 of 3 cases cannot be used"
    assert caught.value.details == (
        "a: image is 4x6x5, label is 4x6x4; label holds 3, dataset.json knows 0, 1, 2",
        "c: no label in labelsTr",
    )
    assert caught.value.next_step == "correct or remove them, then run the same command again"


def test_a_good_dataset_is_not_refused() -> None:
    CheckReport(3, {}).raise_if_bad()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_odd_is_noted_where_no_case_is_bad(folder: Folder, workers: int) -> None:
    for name in ("a", "b", "c"):
        folder.image(case=name)
        folder.label(case=name, array=np.full(SHAPE, name == "a", dtype=np.uint8))
    folder.image(case="c", array=np.full(SHAPE, 5, dtype=np.int16))
    report = check_dataset(folder.open(), workers=workers)
    assert report.problems == {}
    assert report.notes == (
        "no case holds label 2 (back)",
        "2 of 3 cases have no foreground: b, c",
        "1 of 3 cases have an image or a channel of one single value: c",
    )
    folder.label_path("b").unlink()
    assert check_dataset(folder.open(), workers=workers).notes == ()


def test_a_dataset_without_any_foreground_is_refused(folder: Folder) -> None:
    for name in ("a", "b"):
        folder.image(case=name)
        folder.label(case=name, array=np.zeros(SHAPE, dtype=np.uint8))
    report = check_dataset(folder.open(), workers=1)
    assert report.problems == dict.fromkeys("ab", ("no foreground in this or any other case",))


def test_voxels_too_large_to_compute_with_are_counted() -> None:
    voxels = np.zeros((2, 3), dtype=np.float32)
    voxels[0, :2] = np.finfo(np.float32).max, -1e16
    (phrase,) = not_finite_problems("image", voxels)
    assert phrase == "image has 2 of 6 voxels beyond 1e+15, too large to compute with"


@pytest.mark.parametrize("name", ["Dataset004_Hippocampus", "Dataset018_Nuclei", "Dataset101_CineMR"])
def test_real_datasets_are_good(shared: Path, name: str) -> None:
    dataset = open_dataset(shared / "data" / name)
    few = Dataset(dataset.folder, dataset.description, dataset.cases[:8])
    assert check_dataset(few, workers=1).problems == {}


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int64, np.float32])
def test_the_values_of_a_label_map(kind: type[np.generic]) -> None:
    generator = np.random.default_rng(0)
    for shape in ((3, 4, 5), (1, 1, 1), (4, 1, 2), (2, 0, 3), (0, 3, 3)):
        labels = generator.integers(0, 7, shape).astype(kind)
        found = label_values(labels)
        assert found.tolist() == sorted({*labels.ravel().tolist()})
        assert found.dtype == kind
    assert label_values(np.full((2, 3, 3), 5, kind)).tolist() == [5]


def test_a_value_that_is_not_finite_is_among_the_values() -> None:
    assert np.isnan(label_values(np.array([[[0.0, np.nan, np.nan, 1.0]]]))).any()
