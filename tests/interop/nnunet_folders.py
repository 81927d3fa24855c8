"""Folders as nnU-Net's preprocessing leaves them, made of a workspace of ours."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any, Literal

import blosc2
import numpy as np

from umamba_cli.pipeline.data.images import Image, read_image, read_label_map, write_label_map, write_volume
from umamba_cli.pipeline.data.store import Store, StoredCase
from umamba_cli.pipeline.data.workspace import open_workspace
from umamba_cli.pipeline.geometry import Grid, Spacing
from umamba_cli.pipeline.planning.planner import PlanOptions
from umamba_cli.pipeline.preprocessing.case import CaseGeometry
from umamba_cli.pipeline.preprocessing.dataset import preprocess_workspace
from umamba_cli.pipeline.workflows.plan import plan_workspace

Kind = Literal["b2nd", "npz"]


def write_preprocessed(workspace: Path, folder: Path, kind: Kind) -> Path:
    """What nnU-Net would have written into nnUNet_preprocessed for the dataset of a preprocessed workspace."""
    opened = open_workspace(workspace)
    dataset = opened.dataset()
    folder.mkdir(parents=True)
    shutil.copy(dataset.folder / "dataset.json", folder)
    shutil.copytree(dataset.folder / "labelsTr", folder / "gt_segmentations")
    for ours, theirs in (("plans", "nnUNetPlans"), ("splits", "splits_final"), ("fingerprint", "dataset_fingerprint")):
        shutil.copy(workspace / f"{ours}.json", folder / f"{theirs}.json")
    plans = json.loads(opened.plans_file.read_text())
    for name, configuration in plans["configurations"].items():
        configuration["data_identifier"] = f"nnUNetPlans_{name}"
        store = Store(opened.preprocessed(name))
        for case in dataset.cases if store.folder.is_dir() else ():
            _write_case(store.case(case.identifier), folder / f"nnUNetPlans_{name}", kind)
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans, indent=4))
    return folder


def _write_case(case: StoredCase, folder: Path, kind: Kind) -> None:
    folder.mkdir(exist_ok=True)
    image, labels = case.image[:], case.labels[:].astype(np.int16)
    start = folder / case.identifier
    if kind == "npz":
        np.savez_compressed(f"{start}.npz", data=image, seg=labels)
        np.save(f"{start}.npy", image)  # unpacked beside it, as a training leaves it
        np.save(f"{start}_seg.npy", labels)
    else:
        blosc2.asarray(image, urlpath=f"{start}.b2nd", chunks=(1, *image.shape[1:]))
        blosc2.asarray(labels, urlpath=f"{start}_seg.b2nd")
    Path(f"{start}.pkl").write_bytes(pickle.dumps(properties(case), protocol=4))


def properties(case: StoredCase) -> dict[str, Any]:
    """What nnU-Net notes of a case: spacing and grid as the image has them, the rest in the transposed axes."""
    geometry = CaseGeometry.from_json(case.properties["geometry"])
    grid = geometry.grid
    return {
        "sitk_stuff": {
            "spacing": tuple(reversed(grid.spacing_mm)),
            "origin": grid.origin_mm,
            "direction": grid.direction,
        },
        "spacing": [np.float64(value) for value in grid.spacing_mm],
        "shape_before_cropping": tuple(grid.shape[axis] for axis in geometry.transpose),
        "bbox_used_for_cropping": [list(ends) for ends in zip(geometry.crop.start, geometry.crop.stop, strict=True)],
        "shape_after_cropping_and_before_resampling": geometry.crop.shape,
        "class_locations": {label: np.argwhere(case.labels[:] == label) for label in case.classes},
    }


def change_properties(path: Path, **changes: Any) -> None:
    """Rewrite a `.pkl` with other values; None takes a key out."""
    content = pickle.loads(path.read_bytes()) | changes
    path.write_bytes(pickle.dumps({key: value for key, value in content.items() if value is not None}, protocol=4))


def write_sagittal_dataset(phantoms: Path, folder: Path) -> None:
    """The phantoms with thick slices along the last axis, empty margins and an empty corner.

    They are transposed, cropped, and hold voxels that are outside of the nonzero mask.
    """
    shutil.copytree(phantoms, folder, ignore=shutil.ignore_patterns("*.nii.gz"))
    margins = ((2, 3), (0, 4), (1, 0))
    for path in sorted((phantoms / "imagesTr").iterdir()):
        image: Image = read_image([path])
        name = path.name.replace("_0000", "")
        labels = read_label_map(phantoms / "labelsTr" / name).labels
        voxels = np.pad(image.voxels[0].transpose(1, 2, 0) + 1000, margins)
        voxels[:6, :5] = 0
        z, y, x = image.grid.spacing_mm
        grid = Grid(voxels.shape, (y, x, z), image.grid.origin_mm, image.grid.direction)
        write_volume(folder / "imagesTr" / path.name, voxels, grid)
        write_label_map(folder / "labelsTr" / name, np.pad(labels.transpose(1, 2, 0), margins), grid)


def preprocessed_workspace(dataset: Path, folder: Path, *configurations: str, spacing_mm: Spacing) -> Path:
    """A workspace of a dataset, planned for the CPU and preprocessed at a spacing."""
    plan_workspace(dataset, folder, PlanOptions(preset="cpu", spacing_mm=spacing_mm), workers=1)
    for configuration in configurations:
        preprocess_workspace(open_workspace(folder), configuration, workers=1)
    return folder
