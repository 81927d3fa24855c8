"""Small tasks of the Medical Segmentation Decathlon for tests."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from umamba_cli.pipeline.interop.msd import ConvertedDataset, convert_msd

OBLIQUE = (0.8, 0.0, 0.6, 0.0, -1.0, 0.0, 0.6, 0.0, -0.8)
SPACING, ORIGIN = (0.7, 0.9, 3.5), (-12.5, 7.0, 130.0)
SHAPE = (4, 7, 6)


def write_nifti(path: Path, array: np.ndarray) -> None:
    """(z, y, x), or with channels (channels, z, y, x) as the fourth axis; oblique."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array, isVector=False)
    extra = array.ndim - 3
    direction = np.eye(array.ndim)
    direction[:3, :3] = np.reshape(OBLIQUE, (3, 3))
    image.SetSpacing((*SPACING, *[2.0] * extra))
    image.SetOrigin((*ORIGIN, *[0.0] * extra))
    image.SetDirection(direction.ravel().tolist())
    sitk.WriteImage(image, str(path))


def make_task(
    folder: Path,
    *,
    names: Sequence[str] = ("one", "two", "three"),
    channels: int = 1,
    kind: type = np.int16,
    ending: str = ".nii.gz",
) -> Path:
    """A task folder as the Decathlon hands them out: the last name is a test image, and macOS left its rubbish."""
    rng = np.random.default_rng(7)
    shape = SHAPE if channels == 1 else (channels, *SHAPE)
    *training, test = names
    for name in names:
        images = "imagesTs" if name == test else "imagesTr"
        write_nifti(folder / images / f"{name}{ending}", rng.integers(-900, 3000, shape).astype(kind))
        (folder / images / f"._{name}{ending}").write_bytes(b"\0\5\x16\7rubbish")
    for name in training:
        write_nifti(folder / "labelsTr" / f"{name}{ending}", rng.integers(0, 3, SHAPE).astype(np.uint8))
        (folder / "labelsTr" / f"._{name}{ending}").write_bytes(b"\0\5\x16\7rubbish")
    description = {
        "name": "Phantom",
        "description": "Left and right",
        "reference": "nobody",
        "licence": "CC-BY-SA 4.0",
        "relase": "1.0 04/05/2018",
        "tensorImageSize": "3D" if channels == 1 else "4D",
        "modality": {str(index): f"MRI {index}" for index in reversed(range(channels))},
        "labels": {"2": "Posterior", "0": "Background", "1": "Anterior"},
        "numTraining": len(training),
        "numTest": 1,
        "training": [
            {"image": f"./imagesTr/{name}{ending}", "label": f"./labelsTr/{name}{ending}"} for name in training
        ],
        "test": [f"./imagesTs/{test}{ending}"],
    }
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return folder


def convert(task: Path, dataset: Path) -> ConvertedDataset:
    return convert_msd(task, dataset, workers=1)


def files_in(folder: Path) -> list[str]:
    """All files but the conversion's own notes."""
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(path.as_posix() for path in files if path.parts[0] != ".converted")


def edit(path: Path, **changes: object) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def patch(path: Path, offset: int, kind: str, *values: float) -> None:
    """Write numbers into the bytes of a .nii.gz, its checksum renewed."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(kind, content, offset, *values)
    path.write_bytes(gzip.compress(content))
