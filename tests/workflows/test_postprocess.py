"""Postprocessing is kept where it raises the Dice of the held-back cases, and nowhere else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

MODEL = "runs/umamba-bot__3d_fullres"


@pytest.fixture
def workspace(trained_workspace: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_workspace, tmp_path / "work"))


def change(path: Path, how: Callable[[np.ndarray], None]) -> None:
    image = sitk.ReadImage(str(path))
    voxels = sitk.GetArrayFromImage(image)
    how(voxels)
    new = sitk.GetImageFromArray(voxels)
    new.CopyInformation(image)
    sitk.WriteImage(new, str(path))


def reference_of(workspace: Path, prediction: Path) -> Path:
    dataset = Path(json.loads((workspace / "workspace.json").read_text())["dataset"])
    return dataset / "labelsTr" / prediction.name


def test_a_stray_piece_is_found_and_removed(umamba: Callable, workspace: Path, tmp_path: Path) -> None:
    (prediction,) = (workspace / MODEL / "fold_0/validation").glob("*.nii.gz")
    shutil.copy(reference_of(workspace, prediction), prediction)  # right, but for a stray piece of the liver

    def stray(voxels: np.ndarray) -> None:
        voxels[0, 0, :3] = 1

    change(prediction, stray)
    found = umamba("postprocess", "find", workspace / MODEL, "--json")
    assert found.code == 0, found.err
    steps = json.loads(found.out)["steps"]
    assert {"operation": "keep_largest", "labels": [1]} in steps or len(steps[0]["labels"]) == 4
    written = json.loads((workspace / MODEL / "postprocessing.json").read_text())
    assert [each["kept"] for each in written["tried"]].count(True) == len(steps)

    output = tmp_path / "better"
    folder = prediction.parent
    applied = umamba("postprocess", "apply", workspace / MODEL, "-i", folder, "-o", output)
    assert applied.code == 0, applied.err
    better = sitk.GetArrayFromImage(sitk.ReadImage(str(output / prediction.name)))
    assert not better[0, 0, :3].any()
    assert umamba("postprocess", "apply", workspace / MODEL, "-i", folder, "-o", folder).code == 2


def test_what_does_not_help_is_not_kept(umamba: Callable, workspace: Path) -> None:
    (prediction,) = (workspace / MODEL / "fold_0/validation").glob("*.nii.gz")
    shutil.copy(reference_of(workspace, prediction), prediction)  # all right: kidneys and lesions are several pieces
    found = umamba("postprocess", "find", workspace / MODEL, "--json")
    assert json.loads(found.out)["steps"] == []


def test_no_finished_fold_is_said(umamba: Callable, own_workspace: Path) -> None:
    refused = umamba("postprocess", "find", own_workspace / MODEL)
    assert refused.code == 2
    assert "no fold that is trained and evaluated" in refused.err
