"""Small datasets in nnU-Net raw layout, in every format, that a test may spoil; and what commands say of them."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import SimpleITK as sitk
import tifffile
from numpy.typing import NDArray
from phantoms import Finished

SHAPE = (6, 20, 24)  # z, y, x
SPACING = (3.0, 1.0, 0.8)
PICTURES = (".png", ".bmp", ".tif")
STEPS = tuple(f"{task} " for task in ("check", "compile", "plan", "import", "preprocess", "predict", "evaluate"))


def draw_labels(shape: Sequence[int] = SHAPE) -> NDArray[np.uint8]:
    """Two boxes, 1 and 2, that are there in the thinnest volume too."""
    labels = np.zeros(shape, dtype=np.uint8)
    z, y, x = ((n // 3, max(n // 3, 1) + n // 3) for n in shape)
    labels[z[0] : z[1], y[0] : y[1], x[0] : x[1]] = 1
    labels[z[0] : z[1], y[0] : y[1], x[1] :] = 2
    return labels


def draw_image(labels: NDArray[Any], seed: int = 0) -> NDArray[np.uint8]:
    """Each label at a brightness of its own, with noise; nowhere 0."""
    noise = np.random.default_rng(seed).integers(1, 40, labels.shape)
    return (60 * labels + noise).astype(np.uint8)


def write_array(path: Path, array: NDArray[Any], *, compressed: bool = False, **grid: Any) -> None:
    """Write (z, y, x) in the format of the file's ending; with a last axis of colours where `colours` is given.

    Pictures are of one slice. A TIFF of several slices is a volume; its spacing is not written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif" and len(array) > 1:
        tifffile.imwrite(path, array, photometric="minisblack", metadata={"axes": "ZYX"})
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array[0], photometric="rgb" if array.ndim == 4 else "minisblack")
    elif path.suffix in PICTURES:
        imageio.imwrite(path, array[0])
    else:
        image = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
        image.SetSpacing(tuple(reversed(grid.get("spacing", SPACING))))
        image.SetOrigin(grid.get("origin", (0.0, 0.0, 0.0)))
        image.SetDirection(grid.get("direction", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)))
        sitk.WriteImage(image, str(path), useCompression=compressed or path.suffix == ".gz")


class RawDataset:
    """A dataset of good cases, `a`, `b` and `c` unless told otherwise, with one file a channel."""

    def __init__(
        self,
        folder: Path,
        ending: str = ".nii.gz",
        *,
        channels: int = 1,
        cases: Sequence[str] = ("a", "b", "c"),
        shape: Sequence[int] | None = None,
        labels: Mapping[str, Any] | None = None,
        **description: Any,
    ) -> None:
        self.folder, self.ending, self.cases, self.channels = folder, ending, tuple(cases), channels
        self.shape = tuple(shape or ((1, *SHAPE[1:]) if ending in PICTURES else SHAPE))
        content = {
            "channel_names": {str(index): "MRI" for index in range(channels)},
            "labels": labels or {"background": 0, "front": 1, "back": 2},
            "file_ending": ending,
            **description,
        }
        folder.mkdir(parents=True)
        (folder / "dataset.json").write_text(json.dumps(content))
        for seed, case in enumerate(cases):
            drawn = draw_labels(self.shape)
            write_array(self.label(case), drawn)
            for channel in range(channels):
                write_array(self.image(case, channel), draw_image(drawn, seed=10 * seed + channel))

    def copy_to(self, folder: Path) -> RawDataset:
        """A copy that may be spoiled."""
        other = copy.copy(self)
        other.folder = Path(shutil.copytree(self.folder, folder))
        return other

    def image(self, case: str = "b", channel: int | None = 0) -> Path:
        """The file of a channel; of all channels where it is None."""
        number = "" if channel is None else f"_{channel:04d}"
        return self.folder / "imagesTr" / f"{case}{number}{self.ending}"

    def label(self, case: str = "b") -> Path:
        """The file of a label map."""
        return self.folder / "labelsTr" / f"{case}{self.ending}"

    def good_image(self) -> NDArray[np.uint8]:
        """What an image may hold."""
        return draw_image(draw_labels(self.shape))

    def good_labels(self) -> NDArray[np.uint8]:
        """What a label map may hold."""
        return draw_labels(self.shape)


def error_lines(done: Finished, *, code: int) -> list[str]:
    """The lines of an error: what is wrong, details, what to do next; no traceback, nothing on standard output."""
    assert done.code == code, done.err
    lines = [line for line in done.err.splitlines() if not line.startswith(STEPS)]
    assert lines[0].startswith("error: "), done.err
    assert lines[-1].startswith("next: ")
    assert all(line.startswith("  ") for line in lines[1:-1])
    assert "unexpected" not in lines[0]
    assert "Traceback" not in done.err
    assert done.out == ""
    return lines


def bad_cases(done: Finished) -> dict[str, str]:
    """The bad cases that an error lists, each with what is wrong with it."""
    first, *details, _ = error_lines(done, code=2)
    assert first.startswith(f"error: {len(details)} of "), first
    return dict(line.strip().split(": ", 1) for line in details)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder but the logs, with its content; None where that may not be read."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".log"]
    readable = [path for path in files if os.access(path, os.R_OK)]
    return {str(path.relative_to(folder)): path.read_bytes() if path in readable else None for path in files}


def stored_arrays(workspace: Path) -> dict[str, NDArray[Any]]:
    """What was preprocessed: configuration/case, and configuration/case_seg, to array."""
    import blosc2

    files = sorted(workspace.glob("preprocessed/*/*.b2nd"))
    return {f"{path.parent.name}/{path.stem}": blosc2.open(str(path), mode="r")[:] for path in files}
