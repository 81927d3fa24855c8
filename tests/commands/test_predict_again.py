"""A folder of predictions that a command comes back to: what is kept, redone, refused; and what fails alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from dicom_files import write_series
from predicted_images import phantom, write
from raw_datasets import error_lines

from umamba_cli.pipeline.data.inputs import find_cases
from umamba_cli.pipeline.devices import choose_compute
from umamba_cli.pipeline.errors import WorkError
from umamba_cli.pipeline.inference import folder as predictions
from umamba_cli.pipeline.inference import predict as predicting
from umamba_cli.pipeline.inference.predict import predict_cases
from umamba_cli.pipeline.inference.predictor import Predictor, load_predictor

Result = dict[str, Sequence[str]]


@pytest.fixture(scope="module")
def model(trained_workspace: Path) -> Path:
    return trained_workspace / "runs/umamba-bot__3d_fullres"


@pytest.fixture
def predict(umamba: Callable, model: Path, tmp_path: Path) -> Callable:
    def run(*arguments: object) -> object:
        return umamba("predict", model, "-o", tmp_path / "out", "--device", "cpu", "--no-mirroring", "-q", *arguments)

    return run


@pytest.fixture
def predicted(predict: Callable) -> Callable[..., Result]:
    """What a command that succeeds says."""

    def run(*arguments: object) -> Result:
        done = predict(*arguments, "--json")
        assert done.code == 0, done.err
        result: Result = json.loads(done.out)
        return result

    return run


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return load_predictor(model, (), choose_compute("cpu"), mirroring=False)


def test_another_image_of_the_same_name_is_refused(predict: Callable, predicted: Callable, tmp_path: Path) -> None:
    one, other = (
        write(tmp_path / place / "ct_0000.nii.gz", phantom((9, 12, 12), seed)) for seed, place in enumerate("ab")
    )
    assert predicted("-i", one)["predicted"] == ["ct"]
    lines = error_lines(predict("-i", other), code=2)
    assert "other images of the same name" in lines[0]
    assert str(one) in lines[1]
    assert predicted("-i", other, "--overwrite")["predicted"] == ["ct"]
    lines = error_lines(predict("-i", one), code=2)
    assert str(other) in lines[1]


def test_a_copy_is_the_same_image_and_a_changed_one_is_predicted_anew(predicted: Callable, tmp_path: Path) -> None:
    image = write(tmp_path / "a/ct_0000.nii.gz", phantom((9, 12, 12)))
    assert predicted("-i", image)["predicted"] == ["ct"]
    (tmp_path / "b").mkdir()
    shutil.copyfile(image, tmp_path / "b/ct_0000.nii.gz")
    os.utime(image)
    for place in "ab":
        assert predicted("-i", tmp_path / place)["skipped"] == ["ct"]
    write(image, phantom((11, 12, 12)))
    assert predicted("-i", image)["predicted"] == ["ct"]
    assert predicted("-i", image)["skipped"] == ["ct"]


def test_another_series_is_another_image(predict: Callable, predicted: Callable, tmp_path: Path) -> None:
    for number, uid in ((1, "1.2.3"), (2, "1.2.4")):
        write_series(tmp_path / "patient", phantom((9, 12, 12), number).astype("int16"), number=number, uid=uid)
    assert predicted("-i", tmp_path / "patient", "--series", 1)["predicted"] == ["patient"]
    lines = error_lines(predict("-i", tmp_path / "patient", "--series", 2), code=2)
    assert "series 1" in lines[1]


def test_what_overwrite_left_of_another_model_is_redone(predict: Callable, predicted: Callable, tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"in/{name}_0000.nii.gz", phantom((9, 12, 12), ord(name)))
    assert predicted("-i", tmp_path / "in")["predicted"] == ["a", "b", "c"]
    assert predicted("-i", tmp_path / "in/b_0000.nii.gz", "--step", 0.7, "--overwrite")["predicted"] == ["b"]
    again = predicted("-i", tmp_path / "in", "--step", 0.7)
    assert (again["skipped"], again["predicted"]) == (["b"], ["a", "c"])


def test_label_maps_of_others_are_kept_and_told_of(predict: Callable, tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"in/{name}_0000.nii.gz", phantom((9, 12, 12)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.nii.gz").write_bytes(b"an expert's")
    for _ in range(2):
        done = predict("-i", tmp_path / "in")
        assert done.code == 0
        assert "1 label maps" in done.err
        assert "a.nii.gz" in done.err
        assert (tmp_path / "out/a.nii.gz").read_bytes() == b"an expert's"
    assert predict("-i", tmp_path / "in", "--overwrite").code == 0
    assert (tmp_path / "out/a.nii.gz").read_bytes() != b"an expert's"


def test_a_case_killed_before_its_record_is_redone(predicted: Callable, tmp_path: Path) -> None:
    image = write(tmp_path / "ct_0000.nii.gz", phantom((9, 12, 12)))
    predicted("-i", image)
    (tmp_path / "out/.predicted/ct.json").unlink()
    assert predicted("-i", image)["predicted"] == ["ct"]


def test_the_output_must_be_writable_and_no_input(predict: Callable, tmp_path: Path) -> None:
    image = write(tmp_path / "in/ct_0000.nii.gz", phantom((9, 12, 12)))
    (tmp_path / "out").write_text("a file")
    assert "cannot be written to" in error_lines(predict("-i", image), code=2)[0]
    (tmp_path / "out").unlink()
    (tmp_path / "out").symlink_to(tmp_path / "in")
    assert "the images themselves" in error_lines(predict("-i", tmp_path / "in"), code=2)[0]
    (tmp_path / "out").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/ct_0000.nii.gz").symlink_to(image)
    assert "the images themselves" in error_lines(predict("-i", tmp_path / "out"), code=2)[0]


def test_a_case_that_cannot_be_written_fails_alone(predict: Callable, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"in/{name}_0000.nii.gz", phantom((9, 12, 12)))
    (tmp_path / "out/a.nii.gz").mkdir(parents=True)
    lines = error_lines(predict("-i", tmp_path / "in"), code=1)
    assert lines[1].strip().startswith("a: ")
    assert (tmp_path / "out/b.nii.gz").is_file()


def some_cases(folder: Path) -> tuple:
    for name in "abc":
        write(folder / f"{name}_0000.nii.gz", phantom((9, 12, 12), ord(name)))
    return find_cases([folder], ".nii.gz").cases


def test_memory_that_runs_out_is_charged_to_the_case_that_took_it(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = some_cases(tmp_path / "in")
    real_read, real_write, real_export = predicting.read_case, predictions.write_label_map, Predictor.export

    def read(case: object, dataset: object) -> object:
        if case is cases[1]:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return real_read(case, dataset)  # type: ignore[arg-type]

    def write_labels(path: Path, *arguments: object, **options: object) -> None:
        if path.name == "b.nii.gz":
            raise MemoryError
        real_write(path, *arguments, **options)  # type: ignore[arg-type]

    def export(self: Predictor, coming: object, wanted: object) -> object:
        for key, found in real_export(self, coming, wanted):  # type: ignore[arg-type]
            if key.case is cases[1]:  # type: ignore[attr-defined]
                raise WorkError("there is no room for it", next_step="make room")
            yield key, found

    for target, name, replacement in (
        (predicting, "read_case", read),
        (predictions, "write_label_map", write_labels),
        (Predictor, "export", export),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, replacement)
            result = predict_cases(predictor, cases, tmp_path / name)
        assert (set(result.predicted), list(result.failed)) == ({"a", "c"}, ["b"]), name
        assert {path.name for path in (tmp_path / name).glob("*.nii.gz")} == {"a.nii.gz", "c.nii.gz"}
