"""`from umamba_cli import Predictor`: as a program of one's own uses it."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from umamba_cli.pipeline.errors import InputError


@pytest.fixture(scope="module")
def image(tiny_dataset: Path) -> Path:
    (path,) = (tiny_dataset / "imagesTs").iterdir()
    return path


def test_arrays_and_files_give_the_same(trained_workspace: Path, image: Path, tmp_path: Path) -> None:
    from umamba_cli import Predictor

    predictor = Predictor.load(trained_workspace / "runs/umamba-bot__3d_fullres", device="cpu", precision="fp32")
    read = sitk.ReadImage(str(image))
    array, spacing = sitk.GetArrayFromImage(read), read.GetSpacing()[::-1]
    before = array.copy()
    labels = predictor.predict(array, spacing)
    np.testing.assert_array_equal(array, before)
    assert labels.shape == array.shape
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(predictor.predict(array[None], spacing), labels)
    np.testing.assert_array_equal(predictor.predict_file(image, tmp_path / "labels.nii.gz"), labels)
    written = sitk.ReadImage(str(tmp_path / "labels.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), labels)
    assert written.GetOrigin() == pytest.approx(read.GetOrigin())


def test_two_threads_may_predict_at_once(trained_workspace: Path, image: Path) -> None:
    from umamba_cli import Predictor

    predictor = Predictor.load(trained_workspace / "runs/umamba-bot__3d_fullres", device="cpu", mirroring=False)
    arrays = [np.random.default_rng(seed).random((12, 40, 40), dtype=np.float32) for seed in range(4)]
    alone = [predictor.predict(array, (3.0, 1.2, 1.2)) for array in arrays]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda array: predictor.predict(array, (3.0, 1.2, 1.2)), arrays))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((5, 5), (1.0, 1.0, 1.0)), ((2, 5, 5, 5), (1.0, 1.0, 1.0)), ((5, 5, 5), (1.0, 0.0, 1.0)), ((5, 5, 5), (1.0,))],
)
def test_what_does_not_fit_is_refused(trained_workspace: Path, shape: tuple[int, ...], spacing: tuple) -> None:
    from umamba_cli import Predictor

    predictor = Predictor.load(trained_workspace / "runs/umamba-bot__3d_fullres", device="cpu")
    with pytest.raises(InputError):
        predictor.predict(np.zeros(shape, dtype=np.float32), spacing)
    with pytest.raises(InputError, match="finite"):
        predictor.predict(np.full((5, 5, 5), np.nan), (1.0, 1.0, 1.0))


def test_the_package_loads_no_torch() -> None:
    program = (
        "import sys, umamba_cli; assert 'torch' not in sys.modules; umamba_cli.Predictor; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
