"""What nnU-Net preprocessed becomes a workspace that is trained on as if it had been preprocessed here."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nnunet_folders import Kind, change_properties, preprocessed_workspace, write_preprocessed, write_sagittal_dataset

from umamba_cli.pipeline.data.images import read_label_map, write_label_map
from umamba_cli.pipeline.data.splits import make_folds, read_folds
from umamba_cli.pipeline.data.store import Store, StoredCase
from umamba_cli.pipeline.data.workspace import open_workspace
from umamba_cli.pipeline.interop import nnunet_case
from umamba_cli.pipeline.interop.nnunet import ImportResult, import_preprocessed
from umamba_cli.pipeline.interop.nnunet_files import CaseProperties
from umamba_cli.pipeline.preprocessing.dataset import require_preprocessed
from umamba_cli.pipeline.training.patches import PatchSampler

QUICK = ("--epochs", 1, "--iterations", 2, "--device", "cpu", "-j", 0)
NAME = "Dataset001_Tiny"


@pytest.fixture(scope="module", params=["b2nd", "npz"])
def made(request: pytest.FixtureRequest, tiny_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_workspace` as nnU-Net would have preprocessed it, in either form. Not to be changed; copy it first."""
    return write_preprocessed(tiny_workspace, tmp_path_factory.mktemp("nnunet") / NAME, request.param)


@pytest.fixture
def folder(tiny_workspace: Path, tmp_path: Path) -> Path:
    """The same as `.b2nd` files, for a test to change."""
    return write_preprocessed(tiny_workspace, tmp_path / "nnunet" / NAME, "b2nd")


@pytest.fixture(scope="module")
def sagittal(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose cases were transposed, cropped and resampled. Not to be changed."""
    place = tmp_path_factory.mktemp("sagittal")
    write_sagittal_dataset(tiny_dataset, place / NAME)
    return preprocessed_workspace(place / NAME, place / "work", "2d", "3d_fullres", spacing_mm=(1.0, 1.1, 3.0))


def imported(folder: Path, work: Path, raw: Path | None = None) -> ImportResult:
    return import_preprocessed(folder, work, raw=raw, workers=1)


def same_case(case: StoredCase, other: StoredCase) -> None:
    np.testing.assert_array_equal(case.image[:], other.image[:])
    np.testing.assert_array_equal(case.labels[:], other.labels[:])
    assert case.classes == other.classes
    for label in case.classes:
        np.testing.assert_array_equal(case.class_voxels(label), other.class_voxels(label))
    for key in ("identifier", "digest", "shape", "class_counts"):
        assert case.properties[key] == other.properties[key]
    ours, theirs = case.properties["geometry"], other.properties["geometry"]
    assert {**ours, "grid": None} == {**theirs, "grid": None}
    for key, value in ours["grid"].items():
        np.testing.assert_allclose(value, theirs["grid"][key], rtol=1e-5)


def test_the_store_is_as_if_preprocessed_here(made: Path, tiny_workspace: Path, tmp_path: Path) -> None:
    result = imported(made, tmp_path / "work")
    work, ours = open_workspace(tmp_path / "work"), open_workspace(tiny_workspace)
    assert set(result.source.folders) == {"2d", "3d_fullres"}
    assert result.kept == 0
    assert result.rebuilt == ()
    for name in result.source.folders:
        store, other = Store(work.preprocessed(name)), Store(ours.preprocessed(name))
        for case in work.dataset().cases:
            same_case(store.case(case.identifier), other.case(case.identifier))
    assert work.plans_file.read_text() == (made / "nnUNetPlans.json").read_text()
    assert read_folds(work.splits_file) == read_folds(made / "splits_final.json")
    assert json.loads(work.fingerprint_file.read_text()) == json.loads(ours.fingerprint_file.read_text())
    assert not [path for path in work.folder.rglob("*") if path.suffix in (".pkl", ".npz", ".npy")]


def test_transposed_and_cropped_cases_find_their_place(sagittal: Path, tmp_path: Path) -> None:
    folder = write_preprocessed(sagittal, tmp_path / "nnunet" / NAME, "b2nd")
    result = imported(folder, tmp_path / "work")
    assert result.source.plans.transpose_forward == (2, 0, 1)
    store = Store(result.workspace.preprocessed("3d_fullres"))
    other = Store(open_workspace(sagittal).preprocessed("3d_fullres"))
    for case in result.dataset.cases:
        same_case(store.case(case.identifier), other.case(case.identifier))
    stored = store.case("phantom_000")
    assert stored.properties["geometry"]["crop"][0] == [1, 2, 0]
    assert np.any(stored.labels[:] == -1)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_patches_are_those_of_an_ordinary_workspace(
    made: Path, tiny_workspace: Path, tmp_path: Path, configuration: str
) -> None:
    imported(made, tmp_path / "work")
    plans = json.loads((tiny_workspace / "plans.json").read_text())
    size = tuple(plans["configurations"][configuration]["patch_size"])
    cases = read_folds(tiny_workspace / "splits.json")[0].train
    ours, theirs = (
        PatchSampler(Store(work / "preprocessed" / configuration), cases, size, size, 0.5, 7, "training")
        for work in (tiny_workspace, tmp_path / "work")
    )
    for index in range(12):
        patch, other = ours.draw(index)[0], theirs.draw(index)[0]
        np.testing.assert_array_equal(patch.image, other.image)
        np.testing.assert_array_equal(patch.labels, other.labels)


def test_images_and_label_maps_are_linked(folder: Path, tmp_path: Path) -> None:
    work = imported(folder, tmp_path / "work").workspace
    image, label = "nnUNetPlans_2d/phantom_001.b2nd", "gt_segmentations/phantom_001.nii.gz"
    assert (folder / image).samefile(work.preprocessed("2d") / "phantom_001.b2nd")
    assert (folder / label).samefile(work.imported / NAME / "labelsTr/phantom_001.nii.gz")


def test_without_links_they_are_copied(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    work = imported(folder, tmp_path / "work").workspace
    copy = work.preprocessed("2d") / "phantom_001.b2nd"
    assert copy.read_bytes() == (folder / "nnUNetPlans_2d/phantom_001.b2nd").read_bytes()
    assert copy.stat().st_nlink == 1
    assert imported(folder, work.folder).kept == 5


@pytest.mark.parametrize("kind", ["b2nd", "npz"])
def test_arrays_of_other_types_are_rewritten(folder: Path, tmp_path: Path, kind: Kind) -> None:
    import blosc2

    start = folder / "nnUNetPlans_2d/phantom_001"
    image = blosc2.open(f"{start}.b2nd", mode="r")[:]
    labels = blosc2.open(f"{start}_seg.b2nd", mode="r")[:]
    for path in (f"{start}.b2nd", f"{start}_seg.b2nd"):
        Path(path).unlink()
    if kind == "npz":
        np.savez(f"{start}.npz", data=image.astype(np.float64), seg=labels.astype(np.float32))
    else:
        blosc2.asarray(image.astype(np.float64), urlpath=f"{start}.b2nd")
        blosc2.asarray(labels.astype(np.float32), urlpath=f"{start}_seg.b2nd")
    work = imported(folder, tmp_path / "work").workspace
    case = Store(work.preprocessed("2d")).case("phantom_001")
    assert case.image.dtype == np.float32
    assert case.labels.dtype == np.int8
    np.testing.assert_array_equal(case.image[:], image)
    np.testing.assert_array_equal(case.labels[:], labels)


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_training_runs_at_once(umamba: Callable, made: Path, tmp_path: Path, configuration: str) -> None:
    work = tmp_path / "work"
    done = umamba("plan", "--from-nnunet", made, "-w", work, "-j", 1)
    assert done.code == 0, done.err
    assert f"next: umamba train {work} -c 3d_fullres" in done.out
    done = umamba("train", work, "-m", "unet", "-c", configuration, *QUICK)
    assert done.code == 0, done.err
    validation = work / f"runs/unet__{configuration}/fold_0/validation"
    (case,) = json.loads((validation / "summary.json").read_text())["cases"]
    predicted = read_label_map(validation / f"{case['case']}.nii.gz")
    reference = read_label_map(made / "gt_segmentations" / f"{case['case']}.nii.gz")
    assert predicted.grid.differences(reference.grid) == []
    done = umamba("preprocess", work, "-c", configuration, "-j", 1)
    assert "5 of them were there already" in done.out


def test_the_command_says_what_it_did(umamba: Callable, folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "nnUNetPlans_3d_fullres")
    (folder / "splits_final.json").unlink()
    (folder / "gt_segmentations/phantom_002.nii.gz").unlink()
    work = tmp_path / "work"
    done = umamba("plan", "--from-nnunet", folder, "-w", work, "-j", 1)
    assert done.code == 0, done.err
    for text in (
        "nnU-Net planned but did not preprocess 3d_fullres",
        "1 of 5 label maps were not in gt_segmentations",
        "no splits_final.json",
        "5 cases of",
        f"next: umamba train {work} -c 2d",
    ):
        assert text in done.out
    assert read_folds(work / "splits.json") == make_folds([f"phantom_{i:03d}" for i in range(5)])
    again = umamba("plan", "--from-nnunet", folder / "nnUNetPlans.json", "-w", work, "-j", 1)
    assert "5 of them were there already" in again.out
    document = json.loads(umamba("plan", "--from-nnunet", folder, "-w", work, "-j", 1, "--json").out)
    assert document["kept"] == document["cases"] == 5
    assert set(document["configurations"]) == {"2d"}
    assert document["not_preprocessed"] == ["3d_fullres"]
    assert document["rebuilt_references"] == ["phantom_002"]


def test_the_workspace_is_named_after_the_folder(
    umamba: Callable, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert umamba("plan", "--from-nnunet", folder / "nnUNetPlans.json", "-j", 1).code == 0
    assert (tmp_path / "umamba_work" / NAME / "plans.json").is_file()


def test_a_child_of_a_cascade_shares_its_parents_cases(folder: Path, tmp_path: Path) -> None:
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "2d"}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    result = imported(folder, tmp_path / "work")
    assert set(result.source.folders) == {"2d", "3d_fullres", "3d_cascade_fullres"}
    assert {path.name for path in (tmp_path / "work/preprocessed").iterdir()} == {"2d", "3d_fullres"}
    names = [case.identifier for case in result.dataset.cases]
    store = require_preprocessed(result.workspace, result.source.plans, "3d_cascade_fullres", result.dataset, names)
    assert store.folder == result.workspace.preprocessed("3d_fullres")
    assert imported(folder, tmp_path / "work").kept == len(names)


@pytest.mark.parametrize("removed", ["all", "one"])
def test_label_maps_that_are_missing_are_rebuilt(sagittal: Path, tmp_path: Path, removed: str) -> None:
    folder = write_preprocessed(sagittal, tmp_path / "nnunet" / NAME, "b2nd")
    given = shutil.copytree(folder / "gt_segmentations", tmp_path / "given")
    if removed == "all":
        shutil.rmtree(folder / "gt_segmentations")
    else:
        (folder / "gt_segmentations/phantom_003.nii.gz").unlink()
    result = imported(folder, tmp_path / "work")
    assert set(result.rebuilt) == {case.identifier for case in result.dataset.cases if removed == "all"} | {
        "phantom_003"
    }
    for name in result.rebuilt:
        original = read_label_map(given / f"{name}.nii.gz")
        rebuilt = read_label_map(result.dataset.folder / "labelsTr" / f"{name}.nii.gz")
        assert rebuilt.grid.differences(original.grid) == []
        assert set(np.unique(rebuilt.labels)) <= set(np.unique(original.labels))
        for label in (0, 1):  # the others are of a few voxels
            held, found = original.labels == label, rebuilt.labels == label
            assert 2 * np.sum(held & found) / (held.sum() + found.sum()) > 0.9
    assert imported(folder, tmp_path / "work").kept == 5


def test_a_rebuilt_label_map_follows_its_source(folder: Path, tmp_path: Path) -> None:
    import blosc2

    shutil.rmtree(folder / "gt_segmentations")
    result = imported(folder, tmp_path / "work")
    for path in folder.glob("*/phantom_001_seg.b2nd"):
        labels = blosc2.open(str(path), mode="r")[:]
        labels[:, :, :4, :4] = 4
        path.unlink()
        blosc2.asarray(labels, urlpath=str(path))
    assert imported(folder, tmp_path / "work").kept == 4
    rebuilt = read_label_map(result.dataset.folder / "labelsTr/phantom_001.nii.gz")
    assert np.all(rebuilt.labels[:, :3, :3] == 4)
    assert imported(folder, tmp_path / "work").kept == 5


def test_with_the_raw_dataset_everything_else_works_too(
    umamba: Callable, folder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    shutil.rmtree(folder / "nnUNetPlans_3d_fullres")
    work = tmp_path / "work"
    assert umamba("plan", "--from-nnunet", folder, "-w", work, "-j", 1).code == 0
    done = umamba("preprocess", work, "-c", "3d_fullres", "-j", 1)
    assert done.code == 2
    assert "5 of 5 cases are not preprocessed for 3d_fullres, and their images are not there" in done.err
    assert "umamba plan DATASET --from-nnunet FOLDER" in done.err
    assert umamba("plan", tiny_dataset, "--from-nnunet", folder, "-w", work, "-j", 1).code == 0
    assert open_workspace(work).dataset().folder == tiny_dataset
    assert "5 of them were there already" in umamba("preprocess", work, "-c", "2d", "-j", 1).out
    assert "5 cases are preprocessed" in umamba("preprocess", work, "-c", "3d_fullres", "-j", 1).out


def test_a_killed_import_goes_on(
    umamba: Callable, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, calls = tmp_path / "work", []

    def killed(job: nnunet_case.ImportJob) -> None:
        calls.append(job)
        if len(calls) == 3:
            raise KeyboardInterrupt
        nnunet_case.import_case(job)

    with monkeypatch.context() as patched:
        patched.setattr("umamba_cli.pipeline.interop.nnunet.import_case", killed)
        with pytest.raises(KeyboardInterrupt):
            imported(folder, work)
    assert umamba("train", work).code == 2
    finished = {path: path.stat().st_mtime_ns for path in (work / "preprocessed").glob("*/*.json")}
    assert len(finished) == 4
    assert imported(folder, work).kept == 2
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert imported(folder, work).kept == 5


def test_what_changed_is_imported_again(folder: Path, tmp_path: Path) -> None:
    work = imported(folder, tmp_path / "work").workspace
    case = folder / "nnUNetPlans_2d/phantom_004.pkl"
    case.write_bytes(pickle.dumps(pickle.loads(case.read_bytes()), protocol=5))
    edited = json.loads(work.plans_file.read_text()) | {"comment": "edited"}
    work.plans_file.write_text(json.dumps(edited))
    work.splits_file.write_text(json.dumps(json.loads(work.splits_file.read_text())[:2]))
    again = imported(folder, work.folder)
    assert again.kept == 4
    assert again.plans_replaced
    assert json.loads(work.previous_plans_file.read_text()) == edited
    assert again.folds_kept
    assert len(read_folds(work.splits_file)) == 2


def test_a_case_that_was_removed_is_removed(folder: Path, tmp_path: Path) -> None:
    work = imported(folder, tmp_path / "work").workspace
    for path in folder.glob("*/phantom_004*"):
        path.unlink()
    (folder / "splits_final.json").unlink()
    assert imported(folder, work.folder).kept == 4
    assert [case.identifier for case in work.dataset().cases] == [f"phantom_{i:03d}" for i in range(4)]


def test_a_fingerprint_of_another_version_is_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "dataset_fingerprint.json").write_text('{"spacings": []}')
    work = imported(folder, tmp_path / "work").workspace
    assert not work.fingerprint_file.exists()
    assert work.plans_file.exists()


def test_a_reader_that_noted_no_grid(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "gt_segmentations")
    affine = np.diag([1.2, 1.2, 3.0, 1.0])
    files = sorted(folder.glob("*/phantom_001.pkl"))
    for path in files:
        change_properties(path, sitk_stuff=None, nibabel_stuff={"original_affine": affine})
    result = imported(folder, tmp_path / "work")
    grid = read_label_map(result.dataset.folder / "labelsTr/phantom_001.nii.gz").grid
    assert grid.origin_mm == (0, 0, 0)
    assert grid.direction == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    np.testing.assert_allclose(grid.spacing_mm, pickle.loads(files[0].read_bytes())["spacing"], rtol=1e-6)


@pytest.mark.parametrize(
    ("ending", "spacing", "is_picture"), [(".png", 999, True), (".tif", 999, True), (".tif", 3, False)]
)
def test_pictures_have_two_axes(ending: str, spacing: float, is_picture: bool) -> None:
    noted = {
        "spacing": (spacing, 1, 1),
        "shape_before_cropping": (1, 30, 20),
        "bbox_used_for_cropping": ((0, 1), (0, 30), (0, 20)),
        "shape_after_cropping_and_before_resampling": (1, 30, 20),
    }
    grid = CaseProperties.model_validate(noted).grid((0, 1, 2), ending)
    assert grid.shape == (1, 30, 20)
    assert grid.is_2d_file is is_picture


@pytest.mark.parametrize("given", [True, False])
def test_tiff_volumes_keep_their_spacing(folder: Path, tmp_path: Path, given: bool) -> None:
    """nnU-Net copies label maps without the JSON files that hold the spacing."""
    description = json.loads((folder / "dataset.json").read_text()) | {"file_ending": ".tif"}
    (folder / "dataset.json").write_text(json.dumps(description))
    for path in sorted((folder / "gt_segmentations").iterdir()):
        found = read_label_map(path)
        path.unlink()
        if given:
            write_label_map(path.with_name(path.name.replace(".nii.gz", ".tif")), found.labels, found.grid)
    for path in (folder / "gt_segmentations").glob("*.json"):
        path.unlink()
    for path in folder.glob("*/*.pkl"):
        change_properties(path, sitk_stuff=None)
    result = imported(folder, tmp_path / "work")
    assert len(result.rebuilt) == (0 if given else 5)
    for case in result.dataset.cases:
        assert case.label is not None
        spacing = pickle.loads((folder / f"nnUNetPlans_2d/{case.identifier}.pkl").read_bytes())["spacing"]
        np.testing.assert_allclose(read_label_map(case.label).grid.spacing_mm, spacing)
        stored = Store(result.workspace.preprocessed("2d")).case(case.identifier)
        np.testing.assert_allclose(stored.properties["geometry"]["grid"]["spacing_mm"], spacing)
    assert imported(folder, tmp_path / "work").kept == 5
