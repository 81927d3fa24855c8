"""A bundle of runs predicts as the runs do, wherever it is copied to."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

MODEL = "runs/umamba-bot__3d_fullres"


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_a_bundle_predicts_as_its_run(
    umamba: Callable, trained_workspace: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "model.zip"
    done = umamba("export", trained_workspace / MODEL, "-o", bundle, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["folds"] == [0]
    assert told["origin"]["folds"]["0"]["train_cases"] == 4
    assert told["validation"]["folds"]["0"]["foreground_mean"]["dice"] is not None
    elsewhere = Path(shutil.copy(bundle, tmp_path / "copied.zip"))
    for model, output in ((trained_workspace / MODEL, "run"), (elsewhere, "bundle")):
        predicted = umamba("predict", model, "-i", tiny_dataset / "imagesTs", "-o", tmp_path / output)
        assert predicted.code == 0, predicted.err
    (one,), (other,) = (list((tmp_path / name).glob("*.nii.gz")) for name in ("run", "bundle"))
    np.testing.assert_array_equal(voxels(one), voxels(other))
    with zipfile.ZipFile(bundle) as archive:
        texts = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".json")]
    for secret in (str(trained_workspace), str(tiny_dataset), "phantom_00"):  # paths, names of cases
        assert not any(secret in text for text in texts), secret


def test_what_cannot_be_exported_is_refused(umamba: Callable, trained_workspace: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "model.zip"
    for model, fold, said in (
        (trained_workspace / "runs/none__3d_fullres", 0, "no folder"),
        (trained_workspace / MODEL, 3, "fold"),
    ):
        refused = umamba("export", model, "-o", bundle, "-f", fold)
        assert refused.code == 2
        assert said in refused.err
        assert not bundle.exists()
    assert umamba("export", trained_workspace / MODEL, "-o", bundle).code == 0
    before = bundle.read_bytes()
    assert umamba("export", trained_workspace / MODEL, "-o", bundle).code == 2
    assert umamba("export", bundle, "-o", tmp_path / "again.zip").code == 2
    assert bundle.read_bytes() == before
    assert umamba("export", trained_workspace / MODEL, "-o", bundle, "--overwrite").code == 0
