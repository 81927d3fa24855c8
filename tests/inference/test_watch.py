"""Watching a folder: what is whole is predicted once; what fails waits until it changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from umamba_cli.pipeline.data.inputs import Found, InputCase, find_cases
from umamba_cli.pipeline.devices import choose_compute
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.inference.export import Wanted
from umamba_cli.pipeline.inference.predict import PredictionResult
from umamba_cli.pipeline.inference.predictor import Predictor, load_predictor
from umamba_cli.pipeline.inference.watch import Arrivals, watch
from umamba_cli.pipeline.progress import Progress


@pytest.fixture(scope="module")
def predictor(trained_workspace: Path) -> Predictor:
    model = trained_workspace / "runs/umamba-bot__3d_fullres"
    return load_predictor(model, (), choose_compute("cpu"), mirroring=False)


def watched(
    predictor: Predictor, folder: Path, looks: list[Callable[[], object]], heard: list[Progress]
) -> PredictionResult:
    """What a watch does while something happens after each of its looks, the last of which ends it."""
    coming = iter(looks)

    def wait(_seconds: float) -> None:
        if (happening := next(coming, None)) is None:
            raise KeyboardInterrupt
        happening()

    def look() -> Found:
        return find_cases([folder / "in"], ".nii.gz", may_be_empty=True)

    return watch(predictor, look, folder / "out", wanted=Wanted(), every_s=1, on_progress=heard.append, wait=wait)


def test_what_comes_is_predicted_once_it_is_whole(predictor: Predictor, tiny_dataset: Path, tmp_path: Path) -> None:
    (image,) = (tiny_dataset / "imagesTs").iterdir()
    inbox, target = tmp_path / "in", tmp_path / "in/new_0000.nii.gz"
    inbox.mkdir()
    whole = image.read_bytes()
    seen: list[list[str]] = []

    def note() -> None:
        seen.append(sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")))

    def put(content: bytes) -> Callable[[], None]:
        def write() -> None:
            note()
            target.write_bytes(content)

        return write

    half = len(whole) // 2
    heard: list[Progress] = []
    result = watched(predictor, tmp_path, [note, put(whole[:half]), put(whole), note, note, note], heard)
    assert seen == [[], [], [], [], ["new.nii.gz"], ["new.nii.gz"]]
    assert (result.predicted, result.skipped, result.failed) == (("new",), (), {})
    assert not [report.warning for report in heard if report.warning]


def test_a_bad_case_is_told_of_at_once_and_tried_when_it_changes(
    predictor: Predictor, tiny_dataset: Path, tmp_path: Path
) -> None:
    (image,) = (tiny_dataset / "imagesTs").iterdir()
    (tmp_path / "in").mkdir()
    target = tmp_path / "in/new_0000.nii.gz"
    target.write_bytes(b"no image")
    heard: list[Progress] = []
    result = watched(predictor, tmp_path, [lambda: None] * 4, heard)
    assert list(result.failed) == ["new"]
    assert len([report for report in heard if report.warning.startswith("new: ")]) == 1
    result = watched(
        predictor, tmp_path, [lambda: None, lambda: shutil.copy(image, target), *[lambda: None] * 2], heard
    )
    assert (result.predicted, result.failed) == (("new",), {})


def test_a_look_that_fails_is_told_of_once(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    heard: list[Progress] = []
    looks = [(tmp_path / "in").rmdir, lambda: None, lambda: None]
    watched(predictor, tmp_path, looks, heard)
    assert len([report for report in heard if "does not exist" in report.warning]) == 1
    with pytest.raises(InputError, match="does not exist"):
        watched(predictor, tmp_path, [], heard)


def test_each_state_of_a_case_arrives_once(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"1")
    case = InputCase("a", (path,), ".nii.gz")
    arrivals = Arrivals()
    assert [len(arrivals.whole([case])) for _ in range(3)] == [0, 1, 0]
    path.write_bytes(b"12")
    assert [len(arrivals.whole([case])) for _ in range(3)] == [0, 1, 0]
