"""`from umamba_cli import Predictor`: as a program of one's own uses it."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import write_series

from umamba_cli.pipeline.data.label_names import read_label_names
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.inference.predictor import Predictor


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


VOLUME = np.random.default_rng(0).normal(150, 50, (12, 32, 32)).astype(np.float32)
SPACING = (3.0, 1.2, 1.2)


@pytest.fixture(scope="module")
def predictor(trained_workspace: Path) -> Predictor:
    model = trained_workspace / "runs/umamba-bot__3d_fullres"
    return Predictor.load(model, device="cpu", precision="fp32", mirroring=False)


def test_whatever_numpy_makes_an_array_of(predictor: Predictor) -> None:
    whole = VOLUME.round()
    expected = predictor.predict(whole, SPACING)
    for given in (whole.tolist(), whole.astype(">f8"), whole.astype(np.int16), np.asfortranarray(whole)):
        np.testing.assert_array_equal(predictor.predict(given, np.array(SPACING)), expected)


@pytest.mark.parametrize(
    ("array", "spacing", "said"),
    [
        (np.zeros((0, 5, 5)), SPACING, "no voxel"),
        ([], SPACING, "no voxel"),
        ([[1, 2], [3]], SPACING, "cannot be made a numpy array"),
        (VOLUME, 1.0, "a spacing of 1.0 mm"),
        (VOLUME, None, "the spacing holds object, no real numbers: None"),
        (VOLUME, ("3", "1", "1"), "the spacing holds <U1, no real numbers"),
        (VOLUME, "111", "the spacing holds"),
        (VOLUME, [SPACING], "fit together"),
        (VOLUME, (np.nan, 1, 1), "fit together"),
        (VOLUME.astype(str), SPACING, "no real numbers"),
        (VOLUME + 1j, SPACING, "the array holds complex64, no real numbers"),
        (np.full((3, 3, 3), None), SPACING, "no real numbers"),
        (None, SPACING, "no real numbers"),
        (VOLUME.astype("f8") * 1e300, SPACING, "not finite"),
    ],
)
def test_what_is_no_image_is_refused_in_two_lines(predictor: Predictor, array: Any, spacing: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        predictor.predict(array, spacing)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200
    assert error.value.next_step


def write_volume(path: Path, array: np.ndarray = VOLUME) -> Path:
    image = sitk.GetImageFromArray(array, isVector=False)
    image.SetSpacing((*SPACING[::-1], 1.0)[: array.ndim])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def test_files_are_what_the_command_takes_for_one_case(predictor: Predictor, tmp_path: Path) -> None:
    file = write_volume(tmp_path / "one/a_0000.nii.gz")
    expected = predictor.predict_file(file)
    write_volume(tmp_path / "four/a.nii.gz", VOLUME[None])
    write_volume(tmp_path / "mha/a.mha")
    (tmp_path / "list.txt").write_text(str(file))
    for given in (file.parent, [file], str(tmp_path / "four/a.nii.gz"), tmp_path / "mha", tmp_path / "list.txt"):
        np.testing.assert_array_equal(predictor.predict_file(given), expected)
    whole = VOLUME.round().astype(np.int16)
    write_series(tmp_path / "dicom", whole, spacing=SPACING)
    from_series = predictor.predict_file(tmp_path / "dicom", tmp_path / "out/labels.nii.gz")
    np.testing.assert_array_equal(from_series, predictor.predict(whole, SPACING))
    assert (tmp_path / "out/labels.nii.gz").is_file()


def test_several_files_are_the_channels_in_their_order(predictor: Predictor, tmp_path: Path) -> None:
    files = [write_volume(tmp_path / name) for name in ("t2.nii.gz", "t1.nii.gz")]
    with pytest.raises(InputError, match=r"2 channel\(s\), the model was trained on 1"):
        predictor.predict_file(files)
    write_volume(tmp_path / "four.nii.gz", np.stack([VOLUME, VOLUME]))
    with pytest.raises(InputError, match=r"2 channel\(s\)"):
        predictor.predict_file(tmp_path / "four.nii.gz")


def test_no_file_and_several_cases_are_refused(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        predictor.predict_file([])
    with pytest.raises(InputError, match="does not exist"):
        predictor.predict_file(tmp_path / "none.nii.gz")
    for name in ("a", "b"):
        write_volume(tmp_path / f"{name}_0000.nii.gz")
    with pytest.raises(InputError, match="holds 2 images, a and b") as error:
        predictor.predict_file(tmp_path)
    assert "umamba predict" in error.value.next_step


def test_label_maps_hold_the_names_of_labels(predictor: Predictor, image: Path, tmp_path: Path) -> None:
    predictor.predict_file(image, tmp_path / "labels.NII.GZ")
    assert read_label_names(tmp_path / "labels.NII.GZ") == predictor.dataset.foreground


@pytest.mark.parametrize(
    "name", ["a.png", "a.bmp", "a.jpg", "a.xyz", "a", "a.mhd", "a.hdr", "a.img", "a.dcm", "a.npz", "folder", "image"]
)
def test_an_output_that_cannot_hold_the_labels_is_refused_before_the_work(
    predictor: Predictor, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("the work began")

    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(Predictor, "_labels", work)
    with pytest.raises(InputError, match=r"output|cannot be written") as error:
        predictor.predict_file(image, image if name == "image" else tmp_path / name)
    assert error.value.next_step
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("name", ["a.nii", "a.mha", "a.nrrd", "a.tif"])
def test_outputs_that_hold_a_volume(predictor: Predictor, image: Path, tmp_path: Path, name: str) -> None:
    predictor.predict_file(image, tmp_path / name)
    assert (tmp_path / name).is_file()


def test_the_package_loads_no_torch() -> None:
    program = (
        "import sys, umamba_cli; assert 'torch' not in sys.modules; umamba_cli.Predictor; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
