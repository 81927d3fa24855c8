"""Every format gives what the same arrays give through NIfTI, from `check` to the preprocessed arrays."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from numpy.typing import NDArray
from raw_datasets import SHAPE, SPACING, RawDataset, bad_cases, draw_image, stored_arrays, write_array

from umamba_cli.pipeline.data.images import read_label_map, write_label_map
from umamba_cli.pipeline.data.store import Store
from umamba_cli.pipeline.geometry import Grid

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
OBLIQUE = {"origin": (1.5, -2.0, 30.0), "direction": (0.8, 0.0, 0.6, 0.0, -1.0, 0.0, 0.6, 0.0, -0.8)}
ONE_MM = (1.0, 1.0, 1.0)

REGIONS = {
    "labels": {"background": 0, "whole": [1, 2], "back": 2, "ignore": 3},
    "regions_class_order": [1, 2],
}


@pytest.fixture
def preprocessed(umamba: Callable, tmp_path: Path) -> Callable[[RawDataset], dict[str, NDArray[Any]]]:
    """Check, plan and preprocess a dataset with all its configurations; returns the stored arrays."""

    def run(raw: RawDataset) -> dict[str, NDArray[Any]]:
        work = tmp_path / f"work_{raw.folder.parent.name}"
        for command in (("check", raw.folder), ("plan", raw.folder, "-w", work), ("preprocess", work)):
            done = umamba(*command, "-j", 1)
            assert done.code == 0, done.err
            assert "warning" not in done.err
        return stored_arrays(work)

    return run


@pytest.fixture(scope="module")
def already_expected() -> dict[str, dict[str, NDArray[Any]]]:
    """What `expected` found before."""
    return {}


@pytest.fixture
def expected(
    preprocessed: Callable, already_expected: dict[str, dict[str, NDArray[Any]]], tmp_path: Path
) -> Callable[..., dict[str, NDArray[Any]]]:
    """What a dataset of the same arrays in NIfTI gives, one file a channel; of two axes where it is flat."""

    def give(raw: RawDataset, *, spacing: Sequence[float], is_flat: bool = False, **grid: Any) -> Any:
        key = str((raw.shape, raw.channels, spacing, is_flat, grid))
        if key not in already_expected:
            twin = RawDataset(
                tmp_path / "twin/Dataset001_Formats", channels=raw.channels, shape=raw.shape, cases=raw.cases
            )
            for case in twin.cases:
                images, labels = drawn(raw, case)
                paths = [twin.image(case, channel) for channel in range(raw.channels)]
                for path, array in zip([*paths, twin.label(case)], [*images, labels], strict=True):
                    write_array(path, array, spacing=spacing, **grid)
                    if is_flat:
                        sitk.WriteImage(sitk.ReadImage(str(path))[:, :, 0], str(path))
            already_expected[key] = preprocessed(twin)
        return already_expected[key]

    return give


def assert_same(first: dict[str, NDArray[Any]], second: dict[str, NDArray[Any]], configurations: Sequence[str]) -> None:
    assert {name.split("/")[0] for name in first} == set(configurations)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
        assert array.dtype == (np.int8 if name.endswith("_seg") else np.float32)


def formats_dataset(folder: Path, ending: str, **more: Any) -> RawDataset:
    """Two good cases, to be written again."""
    return RawDataset(folder / "raw/Dataset001_Formats", ending, cases=("a", "b"), **more)


def drawn(raw: RawDataset, case: str) -> tuple[list[NDArray[np.uint8]], NDArray[np.uint8]]:
    """The channels and the label map of a case."""
    labels = raw.good_labels()
    return [draw_image(labels, seed=100 * raw.cases.index(case) + index) for index in range(raw.channels)], labels


def remove_images(raw: RawDataset, case: str) -> None:
    for path in raw.folder.glob(f"imagesTr/{case}_*"):
        path.unlink()


@pytest.mark.parametrize(
    ("ending", "compressed"),
    [(".nii", False), (".nii.gz", True), (".mha", False), (".mha", True), (".nrrd", False), (".nrrd", True)],
)
def test_volumes_one_file_a_channel(
    preprocessed: Callable, expected: Callable, tmp_path: Path, ending: str, compressed: bool
) -> None:
    raw = formats_dataset(tmp_path, ending, channels=2)
    for case in raw.cases:
        images, labels = drawn(raw, case)
        for channel, image in enumerate(images):
            write_array(raw.image(case, channel), image, compressed=compressed, **OBLIQUE)
        write_array(raw.label(case), labels, compressed=compressed, **OBLIQUE)
    assert_same(preprocessed(raw), expected(raw, spacing=SPACING, **OBLIQUE), ["2d", "3d_fullres"])


@pytest.mark.parametrize(
    ("ending", "numbered"), [(".nii", True), (".nii.gz", True), (".nii.gz", False), (".mha", False), (".nrrd", True)]
)
def test_volumes_with_all_channels_in_one_file(
    preprocessed: Callable, expected: Callable, tmp_path: Path, ending: str, numbered: bool
) -> None:
    raw = formats_dataset(tmp_path, ending, channels=3)
    for case in raw.cases:
        images, labels = drawn(raw, case)
        remove_images(raw, case)
        write_array(raw.image(case, 0 if numbered else None), np.stack(images, axis=-1).astype(np.int16))
        write_array(raw.label(case), labels)
    assert_same(preprocessed(raw), expected(raw, spacing=SPACING), ["2d", "3d_fullres"])


@pytest.mark.parametrize("in_one_file", [True, False])
@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_pictures(preprocessed: Callable, expected: Callable, tmp_path: Path, ending: str, in_one_file: bool) -> None:
    raw = formats_dataset(tmp_path, ending, channels=3)
    for case in raw.cases:
        images, labels = drawn(raw, case)
        if in_one_file:
            remove_images(raw, case)
            write_array(raw.image(case), np.stack(images, axis=-1))
        else:
            for channel, image in enumerate(images):
                write_array(raw.image(case, channel), image)
        write_array(raw.label(case), labels)
    assert_same(preprocessed(raw), expected(raw, spacing=ONE_MM, is_flat=True), ["2d"])


@pytest.mark.parametrize("spacing", ["image and label", "image", "none"])
def test_tiff_volumes(preprocessed: Callable, expected: Callable, tmp_path: Path, spacing: str) -> None:
    raw = formats_dataset(tmp_path, ".tif", shape=SHAPE, channels=2)
    for case in raw.cases:
        images, labels = drawn(raw, case)
        for channel, image in enumerate(images):
            write_array(raw.image(case, channel), image)
        write_array(raw.label(case), labels)
        for folder, kind in (("imagesTr", "image"), ("labelsTr", "label")):
            if kind in spacing:
                (raw.folder / folder / f"{case}.json").write_text(json.dumps({"spacing": SPACING}))
    same = expected(raw, spacing=ONE_MM if spacing == "none" else SPACING)
    assert_same(preprocessed(raw), same, ["2d", "3d_fullres"])


@pytest.mark.parametrize("slices", [1, 3, 4])
def test_tiff_volumes_of_few_slices_are_no_colours(
    preprocessed: Callable, expected: Callable, tmp_path: Path, slices: int
) -> None:
    """One slice looks like a picture; three or four look like its colours where the writer was not told."""
    raw = formats_dataset(tmp_path, ".tif", shape=(slices, *SHAPE[1:]))
    as_colours = {"photometric": "rgb", "planarconfig": "separate"} if slices > 1 else {"photometric": "minisblack"}
    for case in raw.cases:
        (image,), labels = drawn(raw, case)
        for path, array in ((raw.image(case), image), (raw.label(case), labels)):
            tifffile.imwrite(path, array.squeeze(), metadata=None, **as_colours)
        (raw.folder / "imagesTr" / f"{case}.json").write_text(json.dumps({"spacing": SPACING}))
    configurations = ["2d"] if slices == 1 else ["2d", "3d_fullres"]
    assert_same(preprocessed(raw), expected(raw, spacing=SPACING), configurations)


@pytest.mark.parametrize("numbered", [True, False])
def test_a_tiff_volume_with_all_channels_in_one_file(
    preprocessed: Callable, expected: Callable, tmp_path: Path, numbered: bool
) -> None:
    raw = formats_dataset(tmp_path, ".tif", shape=SHAPE, channels=2)
    for case in raw.cases:
        images, labels = drawn(raw, case)
        remove_images(raw, case)
        stack = np.stack(images, axis=1).astype(np.uint16)
        tifffile.imwrite(raw.image(case, 0 if numbered else None), stack, imagej=True, metadata={"axes": "ZCYX"})
        write_array(raw.label(case), labels)
        (raw.folder / "imagesTr" / f"{case}.json").write_text(json.dumps({"spacing": SPACING}))
    assert_same(preprocessed(raw), expected(raw, spacing=SPACING), ["2d", "3d_fullres"])


def test_a_spacing_that_changed_is_seen(umamba: Callable, preprocessed: Callable, tmp_path: Path) -> None:
    raw = formats_dataset(tmp_path, ".tif", shape=SHAPE)
    beside = [raw.folder / "imagesTr" / f"{case}.json" for case in raw.cases]
    for path in beside:
        path.write_text(json.dumps({"spacing": SPACING}))
    preprocessed(raw)
    beside[1].write_text(json.dumps({"spacing": [3.0, 2.0, 1.6]}))
    done = umamba("preprocess", tmp_path / "work_raw", "-c", "2d", "-j", 1, "--json")
    assert json.loads(done.out)["configurations"][0]["kept"] == 1
    assert stored_arrays(tmp_path / "work_raw")["2d/b"].shape == (1, 6, 40, 48)


@pytest.mark.parametrize("content", ["no JSON", "[1, 1, 1]", '{"spacing": [1, 1]}', '{"spacing": [1, 0, 1]}'])
def test_a_spacing_that_is_none_is_refused(umamba: Callable, tmp_path: Path, content: str) -> None:
    raw = formats_dataset(tmp_path, ".tif", shape=SHAPE)
    (raw.folder / "imagesTr/b.json").write_text(content)
    assert "b.json" in bad_cases(umamba("check", raw.folder, "-j", 1))["b"]


@pytest.fixture
def with_regions(tmp_path: Path) -> RawDataset:
    """A dataset with regions and voxels that nobody annotated."""
    raw = formats_dataset(tmp_path, ".nrrd", **REGIONS)
    for case in raw.cases:
        labels = raw.good_labels()
        labels[:, :2] = 3
        write_array(raw.label(case), labels)
    return raw


def test_regions_and_an_ignore_label_are_preprocessed(
    preprocessed: Callable, with_regions: RawDataset, tmp_path: Path
) -> None:
    stored = preprocessed(with_regions)
    labels = with_regions.good_labels()
    labels[:, :2] = 3
    np.testing.assert_array_equal(stored["3d_fullres/a_seg"][0], labels)
    properties = json.loads((tmp_path / "work_raw/preprocessed/3d_fullres/a.json").read_text())
    assert properties["class_counts"] == np.bincount(labels.ravel())[:3].tolist()
    annotated = Store(tmp_path / "work_raw/preprocessed/3d_fullres").case("a").annotated_voxels()
    np.testing.assert_array_equal(annotated, np.flatnonzero(labels != 3))


def test_where_nothing_is_ignored_no_annotated_voxels_are_noted(preprocessed: Callable, tmp_path: Path) -> None:
    preprocessed(formats_dataset(tmp_path, ".nrrd"))
    assert Store(tmp_path / "work_raw/preprocessed/3d_fullres").case("a").annotated_voxels() is None


def test_regions_and_an_ignore_label_are_evaluated(umamba: Callable, with_regions: RawDataset, tmp_path: Path) -> None:
    labels, description = with_regions.folder / "labelsTr", with_regions.folder / "dataset.json"
    done = umamba("evaluate", labels, labels, "--dataset", description, "-o", tmp_path / "summary.json", "--json")
    assert done.code == 0, done.err
    assert list(json.loads(done.out)["mean"]) == ["(1, 2)", "2"]
    assert json.loads((tmp_path / "summary.json").read_text())["mean"]["(1, 2)"]["dice"] == 1


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 5, 6), (3, 5, 6), (4, 5, 1), (4, 1, 6), (1, 1, 1)])
def test_a_label_map_in_a_tiff_volume_comes_back_on_its_grid(tmp_path: Path, shape: tuple[int, ...]) -> None:
    labels = np.random.default_rng(0).integers(0, 4, shape)
    grids = {name: Grid(shape, (3.0, 0.7, size), (0.0, 0.0, 0.0), IDENTITY) for name, size in NAMES.items()}
    for name, grid in grids.items():
        write_label_map(tmp_path / f"{name}.tif", labels, grid)
    for name, grid in grids.items():
        read = read_label_map(tmp_path / f"{name}.tif")
        assert grid.differences(read.grid) == []
        np.testing.assert_array_equal(read.labels, labels)
        assert json.loads((tmp_path / f"{name}.json").read_text()) == {"spacing": list(grid.spacing_mm)}


NAMES = {"scan": 0.9, "scan_2018": 1.0, "scan_2019": 1.1, "scan.v1": 1.2}
"""Cases whose names end as if in a channel number, each with a spacing of its own along x."""
