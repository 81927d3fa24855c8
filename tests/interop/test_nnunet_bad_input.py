"""Whatever is wrong with a folder of nnU-Net's is said in the design's form, before anything is written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
from nnunet_folders import change_properties, write_preprocessed
from phantoms import Finished
from raw_datasets import error_lines

from umamba_cli.pipeline.data.images import read_label_map, write_label_map
from umamba_cli.pipeline.geometry import Grid

NAME = "Dataset001_Tiny"
CASE = "phantom_001"


@pytest.fixture
def folder(tiny_workspace: Path, tmp_path: Path) -> Path:
    """What nnU-Net would have preprocessed, to be spoilt."""
    return write_preprocessed(tiny_workspace, tmp_path / "nnunet" / NAME, "b2nd")


def refused(done: Finished, *expected: str) -> None:
    """An error in what was given, that says so."""
    error_lines(done, code=2)
    for text in expected:
        assert text in done.err


def _files(folder: Path, ending: str, configuration: str = "2d") -> Path:
    return folder / f"nnUNetPlans_{configuration}" / f"{CASE}{ending}"


def _array(path: Path) -> np.ndarray:
    return np.asarray(blosc2.open(str(path), mode="r")[:])


def _rewrite(path: Path, array: np.ndarray, **more: Any) -> None:
    path.unlink()
    blosc2.asarray(array, urlpath=str(path), **more)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _as_npz(folder: Path) -> Path:
    path = _files(folder, ".npz")
    np.savez_compressed(path, data=_array(_files(folder, ".b2nd")), seg=_array(_files(folder, "_seg.b2nd")))
    for ending in (".b2nd", "_seg.b2nd"):
        _files(folder, ending).unlink()
    return path


def _truncated_npz(folder: Path) -> None:
    _truncate(_as_npz(folder))


def _npz_without_labels(folder: Path) -> None:
    path = _as_npz(folder)
    with np.load(path) as arrays:
        image = arrays["data"]
    np.savez_compressed(path, data=image)


def _npz_of_objects(folder: Path) -> None:
    path = _as_npz(folder)
    np.savez_compressed(path, data=np.array([Harm(folder)], dtype=object), seg=np.array([Harm(folder)], dtype=object))


def _overwritten(folder: Path) -> None:
    path = _files(folder, ".b2nd")
    content = bytearray(path.read_bytes())
    content[300:-300] = np.random.default_rng(0).bytes(len(content) - 600)
    path.write_bytes(content)


class Harm:
    """Pickles as a command."""

    def __init__(self, folder: Path) -> None:
        self.mark = folder.parent / "mark"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def _malicious(folder: Path) -> None:
    path = _files(folder, ".pkl")
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()) | {"spacing": Harm(folder)}))


def _lazy(folder: Path) -> None:
    path = _files(folder, ".b2nd")
    _rewrite(path, _array(path), meta={"LazyArray": {"UDF": "open('mark', 'w')"}})


def _one_slice_less(folder: Path) -> None:
    for ending in (".b2nd", "_seg.b2nd"):
        path = _files(folder, ending)
        _rewrite(path, _array(path)[:, :-1])


def _other_labels_shape(folder: Path) -> None:
    path = _files(folder, "_seg.b2nd")
    _rewrite(path, _array(path)[:, :-1])


def _unknown_label(folder: Path) -> None:
    path = _files(folder, "_seg.b2nd")
    labels = _array(path)
    labels[0, 0, 0, :2] = 9, -2
    _rewrite(path, labels)


def _not_finite(folder: Path) -> None:
    path = _files(folder, ".b2nd")
    image = _array(path)
    image[0, -1, -1, -3:] = np.nan
    _rewrite(path, image)


def _two_channels(folder: Path) -> None:
    path = _files(folder, ".b2nd")
    _rewrite(path, np.concatenate([_array(path)] * 2))


def _text(folder: Path) -> None:
    path = _files(folder, ".b2nd")
    _rewrite(path, _array(path).astype("S4"))


def _reference(change: Callable[[np.ndarray, Grid], tuple[np.ndarray, Grid]]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "gt_segmentations" / f"{CASE}.nii.gz"
        found = read_label_map(path)
        write_label_map(path, *change(found.labels, found.grid))

    return spoil


def _removed(ending: str) -> Callable[[Path], None]:
    return lambda folder: _files(folder, ending).unlink()


def _noted(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change_properties(_files(folder, ".pkl"), **changes)


def _larger_spacing(labels: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid]:
    return labels, Grid(grid.shape, tuple(2 * value for value in grid.spacing_mm), grid.origin_mm, grid.direction)


def _with_label_9(labels: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid]:
    labels[0, 0, 0] = 9
    return labels, grid


TURNED = {"origin": (0.0, 0.0, 0.0), "direction": (1.0, 0, 0, 0, 1, 0, 0, 0, 1), "original_orientation": "LPS"}
AFFINES = {"original_affine": np.diag([-1, -1, 1, 1]), "reoriented_affine": np.eye(4)}

# What is done to the folder, and what the error says of the case.
BAD_CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no properties": (_removed(".pkl"), f"2d: {CASE}.pkl missing"),
    "no image": (_removed(".b2nd"), f"2d: {CASE}.b2nd missing"),
    "no labels": (_removed("_seg.b2nd"), f"2d: {CASE}_seg.b2nd missing"),
    "truncated image": (lambda folder: _truncate(_files(folder, ".b2nd")), f"2d: {CASE}.b2nd is damaged"),
    "truncated labels": (lambda folder: _truncate(_files(folder, "_seg.b2nd")), f"2d: {CASE}_seg.b2nd is damaged"),
    "empty image": (lambda folder: _files(folder, ".b2nd").write_bytes(b""), f"2d: {CASE}.b2nd is damaged"),
    "garbage in the image": (_overwritten, f"2d: {CASE}.b2nd is damaged"),
    "truncated npz": (_truncated_npz, f"2d: {CASE}.npz is damaged"),
    "npz without labels": (_npz_without_labels, f"2d: {CASE}.npz is damaged"),
    "npz of objects": (_npz_of_objects, f"2d: {CASE}.npz is damaged"),
    "truncated properties": (lambda folder: _truncate(_files(folder, ".pkl")), "cannot be read as a pickle"),
    "malicious properties": (_malicious, "system, which a file of numbers, text and arrays does not need"),
    "properties that are none": (
        lambda folder: _files(folder, ".pkl").write_bytes(pickle.dumps([1, 2])),
        f"2d: {CASE}.pkl holds no properties",
    ),
    "no spacing": (_noted(spacing=None), "spacing: missing"),
    "spacing of 0": (_noted(spacing=[0, 1, 1]), "spacing.0"),
    "crop outside": (_noted(bbox_used_for_cropping=[[0, 99]] * 3), "reaches out of shape_before_cropping"),
    "crop of another size": (_noted(bbox_used_for_cropping=[[0, 2]] * 3), "is not shape_after_cropping"),
    "turned by SimpleITK": (_noted(sitk_stuff=TURNED), "nnU-Net turned the image"),
    "turned by nibabel": (_noted(sitk_stuff=None, nibabel_stuff=AFFINES), "nnU-Net turned the image"),
    "lazy array": (_lazy, "it is no plain array (b2nd, LazyArray in its header)"),
    "array of text": (_text, "not numbers"),
    "one slice less": (_one_slice_less, f"by {CASE}.pkl and the plans it is"),
    "labels of another shape": (_other_labels_shape, "label is 1x"),
    "unknown label": (_unknown_label, "label holds -2, 9, dataset.json knows 0, 1, 2, 3, 4"),
    "not finite": (_not_finite, "image has 3 of"),
    "two channels": (_two_channels, "1 channel of three axes are expected"),
    "label map of another size": (_reference(lambda labels, grid: (labels[1:], grid)), "label is"),
    "label map of another spacing": (_reference(_larger_spacing), "spacing is"),
    "label map with an unknown label": (_reference(_with_label_9), "label holds 9"),
    "label map that is none": (
        lambda folder: (folder / "gt_segmentations" / f"{CASE}.nii.gz").write_text("text"),
        f"{CASE}.nii.gz cannot be read as an image",
    ),
}


@pytest.mark.parametrize("kind", BAD_CASES)
def test_a_bad_case_is_named(umamba: Callable, folder: Path, tmp_path: Path, kind: str) -> None:
    spoil, expected = BAD_CASES[kind]
    spoil(folder)
    done = umamba("plan", "--from-nnunet", folder, "-w", tmp_path / "work", "-j", 1)
    refused(done, "1 of 5 cases cannot be used", f"  {CASE}: ", expected)
    assert not (tmp_path / "work").exists()
    assert not (tmp_path / "nnunet/mark").exists()


def test_all_bad_cases_are_listed(umamba: Callable, folder: Path, tmp_path: Path) -> None:
    _unknown_label(folder)
    _truncate(_files(folder, ".pkl", "3d_fullres"))
    (folder / "nnUNetPlans_2d/phantom_003.b2nd").unlink()
    folds = json.loads((folder / "splits_final.json").read_text())
    folds[0]["train"].append("phantom_099")
    (folder / "splits_final.json").write_text(json.dumps(folds))
    done = umamba("plan", "--from-nnunet", folder, "-w", tmp_path / "work", "-j", 1)
    refused(
        done,
        "3 of 6 cases cannot be used",
        f"  {CASE}: 3d_fullres: ",
        "2d: label holds -2, 9",
        "  phantom_003: 2d: phantom_003.b2nd missing",
        "  phantom_099: in splits_final.json, but not preprocessed",
    )
    assert not (tmp_path / "work").exists()


def _edit_plans(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    change(plans)
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))


def _several_plans(folder: Path) -> None:
    shutil.move(folder / "nnUNetPlans.json", folder / "nnUNetResEncUNetMPlans.json")
    shutil.copy(folder / "nnUNetResEncUNetMPlans.json", folder / "nnUNetResEncUNetLPlans.json")


def _not_preprocessed(folder: Path) -> None:
    for name in ("2d", "3d_fullres"):
        shutil.rmtree(folder / f"nnUNetPlans_{name}")


def _one_fold_of_nothing(folder: Path) -> None:
    (folder / "splits_final.json").write_text('[{"train": [], "val": []}]')


def _climbing(plans: dict[str, Any]) -> None:
    plans["configurations"]["../../2d"] = plans["configurations"].pop("2d")


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no plans": (lambda folder: (folder / "nnUNetPlans.json").unlink(), "holds no plans"),
    "several plans": (_several_plans, "holds 2 plans"),
    "no dataset.json": (lambda folder: (folder / "dataset.json").unlink(), "dataset.json does not exist"),
    "nothing preprocessed": (_not_preprocessed, "is preprocessed: no case in nnUNetPlans_2d, nnUNetPlans_3d_fullres"),
    "no folder": (shutil.rmtree, "is no folder"),
    "plans with a wrong value": (
        lambda folder: _edit_plans(folder, lambda plans: plans["configurations"]["2d"].update(batch_size=0)),
        "2d.batch_size",
    ),
    "plans for other channels": (
        lambda folder: _edit_plans(
            folder,
            lambda plans: [
                plans["foreground_intensity_properties_per_channel"].update(
                    {"1": plans["foreground_intensity_properties_per_channel"]["0"]}
                ),
                [
                    c.update(normalization_schemes=["NoNormalization"] * 2, use_mask_for_norm=[False] * 2)
                    for c in plans["configurations"].values()
                ],
            ],
        ),
        "is made for 2 channels",
    ),
    "a configuration that climbs": (lambda folder: _edit_plans(folder, _climbing), "must be named with letters"),
    "folds of nothing": (_one_fold_of_nothing, "fold 0 has no case to train on"),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_a_bad_folder_is_refused(umamba: Callable, folder: Path, tmp_path: Path, kind: str) -> None:
    spoil, expected = BAD_FOLDERS[kind]
    spoil(folder)
    refused(umamba("plan", "--from-nnunet", folder, "-w", tmp_path / "work", "-j", 1), expected)
    assert not (tmp_path / "work").exists()


def test_one_of_several_plans_can_be_given(umamba: Callable, folder: Path, tmp_path: Path) -> None:
    _several_plans(folder)
    done = umamba("plan", "--from-nnunet", folder / "nnUNetResEncUNetLPlans.json", "-w", tmp_path / "work", "-j", 1)
    assert done.code == 0, done.err


def test_the_raw_dataset_must_be_the_same(umamba: Callable, folder: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    raw = Path(shutil.copytree(tiny_dataset, tmp_path / NAME))
    arguments = (raw, "--from-nnunet", folder, "-w", tmp_path / "work", "-j", 1)
    (raw / "imagesTr/phantom_001_0000.nii.gz").unlink()
    (raw / "labelsTr/phantom_001.nii.gz").unlink()
    (raw / "labelsTr/phantom_002.nii.gz").unlink()
    refused(
        umamba("plan", *arguments),
        "2 of 5 cases cannot be used",
        f"phantom_001: not in {raw}",
        f"phantom_002: no label in {raw}/labelsTr",
    )
    description = json.loads((raw / "dataset.json").read_text())
    description["labels"]["cyst"] = 5
    (raw / "dataset.json").write_text(json.dumps(description))
    refused(umamba("plan", *arguments), "labels in", "differ")
    assert not (tmp_path / "work").exists()


def test_the_workspace_of_another_dataset_is_refused(
    umamba: Callable, folder: Path, own_workspace: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "Dataset002_Other"))
    before = sorted(own_workspace.rglob("*"))
    refused(umamba("plan", "--from-nnunet", other, "-w", own_workspace, "-j", 1), "is the workspace of")
    refused(umamba("plan", "--from-nnunet", folder, "-w", folder, "-j", 1), "is not empty and no workspace")
    assert sorted(own_workspace.rglob("*")) == before


@pytest.mark.parametrize(
    "option", [("--memory", 8), ("--preset", "default"), ("--spacing", "1,1,1"), ("--group-by", "x")]
)
def test_what_would_decide_otherwise_is_refused(umamba: Callable, folder: Path, option: tuple[object, ...]) -> None:
    refused(umamba("plan", "--from-nnunet", folder, *option), f"{option[0]} cannot be given with --from-nnunet")


def test_a_plan_needs_a_dataset(umamba: Callable) -> None:
    refused(umamba("plan", "--memory", 8), "DATASET is missing", "--from-nnunet FOLDER")


def _nested(folder: Path) -> None:
    value: Any = 1.0
    for _ in range(60):
        value = (value, value)
    change_properties(_files(folder, ".pkl"), spacing=value)


def _in_a_circle(folder: Path) -> None:
    circle: list[Any] = []
    circle.append(circle)
    change_properties(_files(folder, ".pkl"), spacing=circle)


@pytest.mark.parametrize("spoil", [_nested, _in_a_circle])
def test_properties_that_would_never_end_are_refused(
    umamba: Callable, folder: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(folder)
    arguments = ("--from-nnunet", folder, "-w", tmp_path / "work", "-j", 1)
    refused(umamba("plan", *arguments), "1 of 5 cases", "phantom_001: 2d", "more than properties of a case")
    assert not (tmp_path / "work").exists()


def test_an_import_into_a_workspace_with_images_keeps_them(
    umamba: Callable, folder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    raw, work = Path(shutil.copytree(tiny_dataset, tmp_path / NAME)), tmp_path / "work"
    assert umamba("plan", raw, "--from-nnunet", folder, "-w", work, "-j", 1).code == 0
    assert umamba("plan", "--from-nnunet", folder, "-w", work, "-j", 1).code == 0
    assert json.loads((work / "workspace.json").read_text())["dataset"] == str(raw)
