"""What is done to a folder of label maps: only to label maps, with their names, and the same to all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from umamba_cli.pipeline.data.images import read_label_map, write_label_map
from umamba_cli.pipeline.data.label_names import read_label_names
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Grid
from umamba_cli.pipeline.inference.postprocessing import Step, read_postprocessing
from umamba_cli.pipeline.workflows.postprocess import apply_postprocessing

FILL = (Step(operation="fill_holes", labels=(1,)),)
FILL_300 = (Step(operation="fill_holes", labels=(300, 1)),)
LARGEST = (Step(operation="keep_largest", labels=(1,)),)

RING = np.pad(np.ones((3, 3), dtype=np.uint8), 2)[None]
RING[0, 3, 3] = 0
GRID = Grid(RING.shape, (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


def save(path: Path, array: NDArray[Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return path


def apply(steps: Sequence[Step], folder: Path, output: Path, **options: Any) -> int:
    return apply_postprocessing(steps, folder, output, workers=1, **options)


def spoilt(how: str) -> NDArray[Any]:
    """What looks like a label map by its file's name."""
    if how == "ct":
        return np.random.default_rng(0).normal(0, 500, RING.shape).astype(np.int16)
    values = np.random.default_rng(0).random(RING.shape).astype(np.float32)
    if how == "nan":
        values = RING.astype(np.float32)
        values[0, 0, 0] = np.nan
    return RING.astype(np.uint32) * 3_000_000_000 if how == "large" else values


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("ct", "labels start at 0"),
        ("floats", "labels are whole numbers"),
        ("nan", "1 of 49 voxels that are not finite"),
        ("large", "cannot hold label 3000000000"),
    ],
)
def test_what_is_no_label_map_is_named_and_the_others_are_done(
    umamba: Callable, tmp_path: Path, how: str, said: str
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    save(folder / "bad.nii.gz", spoilt(how))
    steps = tmp_path / "postprocessing.json"
    steps.write_text(json.dumps({"format": 1, "steps": [step.model_dump() for step in FILL]}))
    command = ("postprocess", "apply", steps, "-i", folder, "-o", output, "-j", 1)
    assert umamba(*command).code == 2
    save(folder / "good.nii.gz", RING)
    done = umamba(*command)
    assert done.code == 1
    assert "1 of 2 label maps cannot be used" in done.err
    assert "bad: " in done.err
    assert said in " ".join(done.err.split())
    assert {path.name for path in output.iterdir()} == {"good.nii.gz", "postprocessing.json"}
    assert read_label_map(output / "good.nii.gz").labels[0, 3, 3] == 1


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.uint16, np.int64, np.float32])
def test_a_label_that_the_type_does_not_hold_widens_it(tmp_path: Path, kind: type) -> None:
    save(tmp_path / "in/a.nii.gz", RING.astype(kind))
    assert apply(FILL_300, tmp_path / "in", tmp_path / "out") == 1
    found = read_label_map(tmp_path / "out/a.nii.gz").labels
    assert found[0, 3, 3] == 300
    assert found.dtype == np.uint16


@pytest.mark.parametrize(("ending", "written"), [(".mhd", ".mha"), (".bmp", ".png"), (".nii.gz", ".nii.gz")])
def test_the_format_is_one_that_holds_the_labels(tmp_path: Path, ending: str, written: str) -> None:
    save(tmp_path / f"in/a{ending}", RING[0] if ending == ".bmp" else RING)
    assert apply(FILL_300, tmp_path / "in", tmp_path / "out") == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"a{written}", "postprocessing.json"}
    assert read_label_map(tmp_path / f"out/a{written}").labels.max() == 300
    assert apply(FILL_300, tmp_path / "in", tmp_path / "out") == 0
    if ending == ".mhd":
        with pytest.raises(InputError) as caught:
            apply(FILL, tmp_path / "in", tmp_path / "in", overwrite=True)
        assert "cannot be replaced" in caught.value.details[0]


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_names_stay(tmp_path: Path, ending: str) -> None:
    names = {1: "liver", 2: "lesion"}
    write_label_map(tmp_path / f"in/a{ending}", RING, GRID, names=names)
    apply(FILL, tmp_path / "in", tmp_path / "out")
    assert read_label_names(tmp_path / f"out/a{ending}") == names


def test_other_steps_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    for name in ("a", "b"):
        save(folder / f"{name}.nii.gz", RING)
    apply(FILL, folder, output)
    noted = read_postprocessing(output / "postprocessing.json")
    assert (noted.steps, noted.outdated) == (FILL, ())
    assert apply(FILL, folder, output) == 0
    with pytest.raises(InputError, match="other steps") as caught:
        apply(LARGEST, folder, output)
    assert caught.value.details == ("there: fill_holes (1,)", "now: keep_largest (1,)")
    assert apply(LARGEST, folder, output, overwrite=True) == 2
    assert read_postprocessing(output / "postprocessing.json").steps == LARGEST
    assert read_label_map(output / "a.nii.gz").labels[0, 3, 3] == 0


def test_what_other_steps_made_is_made_again_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from umamba_cli.pipeline.workflows import postprocess

    folder, output = tmp_path / "in", tmp_path / "out"
    for name in ("a", "b"):
        save(folder / f"{name}.nii.gz", RING)
    apply(LARGEST, folder, output)

    def stopped(path: Path, *args: Any, **options: Any) -> None:
        if path.name == "b.nii.gz":
            raise KeyboardInterrupt
        write_label_map(path, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(postprocess, "write_label_map", stopped)
        with pytest.raises(KeyboardInterrupt):
            apply(FILL, folder, output, overwrite=True)
    apply(FILL, folder, output)
    assert read_label_map(output / "b.nii.gz").labels[0, 3, 3] == 1
    assert read_postprocessing(output / "postprocessing.json").outdated == ()


def test_what_was_found_beside_a_model_is_not_replaced(tmp_path: Path) -> None:
    save(tmp_path / "in/a.nii.gz", RING)
    output = tmp_path / "model"
    save(output / "a.nii.gz", RING)
    (output / "postprocessing.json").write_text('{"format": 1, "tried": [{"kept": false}]}')
    for overwrite in (False, True):
        with pytest.raises(InputError, match="folder of a model"):
            apply((), tmp_path / "in", output, overwrite=overwrite)
    for content in ("{", '{"format": 2}'):
        (output / "postprocessing.json").write_text(content)
        with pytest.raises(InputError, match=r"postprocessing\.json"):
            apply((), tmp_path / "in", output)
