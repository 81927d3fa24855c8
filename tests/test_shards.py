"""Cases divided among machines that know nothing of each other, and the parts of an evaluation put together."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from umamba_cli.pipeline.data.images import write_label_map
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Grid
from umamba_cli.pipeline.shards import Shard

DATASET = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2], "rim": [4]},
    "regions_class_order": [1, 2, 4],
    "file_ending": ".nii.gz",
    "name": "Test",
}


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_the_parts_are_the_whole_each_item_once_and_differ_by_one_at_most(count: int) -> None:
    items = [f"case_{number}" for number in range(7)]
    parts = [Shard(number, count).of(items, str) for number in range(1, count + 1)]
    assert sorted(item for part in parts for item in part) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_all_machines_divide_alike_whatever_order_they_list_a_folder_in() -> None:
    items = ["b", "a", "d", "c"]
    assert Shard(1, 2).of(items, str) == Shard(1, 2).of(items[::-1], str) == ["a", "c"]
    assert Shard.parse("2/3") == Shard(2, 3)
    assert str(Shard(2, 3)) == "2/3"


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/", "/2", "1/2/3", "-1/2", "1/0", "one/2", "1 / 2", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="there is no shard"):
        Shard.parse(text)


@pytest.mark.parametrize("command", ["preprocess", "evaluate"])
def test_commands_refuse_what_is_no_shard(umamba: Callable, tmp_path: Path, command: str) -> None:
    folders = [tmp_path] if command == "preprocess" else [tmp_path, tmp_path]
    done = umamba(command, *folders, "--shard", "5/4")
    assert done.code == 2
    assert "there is no shard '5/4'" in done.err


def test_preprocessed_shards_are_what_one_machine_makes(umamba: Callable, own_workspace: Path) -> None:
    stored = own_workspace / "preprocessed"
    before = {path.relative_to(stored): path.read_bytes() for path in stored.rglob("*") if path.is_file()}
    shutil.rmtree(stored)
    made: dict[str, list[str]] = {}
    for number in range(1, 8):
        known = set(stored.rglob("*.json"))
        command = "preprocess", own_workspace, "-c", "2d", "-c", "3d_fullres", "-j", 1, "--shard", f"{number}/7"
        done = umamba(*command, "--json")
        assert done.code == 0, done.err
        of_shard = sorted(f"{path.parent.name}/{path.stem}" for path in set(stored.rglob("*.json")) - known)
        made[number] = of_shard
        assert [each["cases"] for each in json.loads(done.out)["configurations"]] == [len(of_shard) // 2] * 2
    assert [len(of_shard) for of_shard in made.values()] == [2, 2, 2, 2, 2, 0, 0], (
        "a case of each of two configurations"
    )
    assert {path.relative_to(stored): path.read_bytes() for path in stored.rglob("*") if path.is_file()} == before
    again = umamba("preprocess", own_workspace, "-c", "2d", "-j", 1, "--shard", "1/7")
    assert "2d: 1 cases of shard 1/7 are preprocessed, 1 of them were there already" in again.out


def write(path: Path, rows: Sequence[Sequence[int]]) -> None:
    labels = np.array([rows])
    direction = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    write_label_map(path, labels, Grid(labels.shape, (0.3, 0.7, 1.1), (0.0, 0.0, 0.0), direction))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Seven references with labels of which some are in one case alone; `f` and `g` were not predicted."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    rows = {"a": [[1, 1], [0, 2]], "b": [[1, 0], [0, 0]], "c": [[0, 0], [0, 0]], "d": [[2, 3], [0, 1]]}
    rows |= {unicodedata.normalize("NFD", "é"): [[1, 1], [1, 4]], "f": [[1, 0], [2, 0]], "g": [[4, 0], [2, 0]]}
    for number, (name, label_map) in enumerate(rows.items()):
        write(references / f"{name}.nii.gz", label_map)
        if name not in "fg":
            write(predictions / f"{name}.nii.gz", np.roll(label_map, number % 2, axis=1).tolist())
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
    return predictions, references


@pytest.mark.parametrize("with_names", [False, True])
@pytest.mark.parametrize("count", [2, 3, 9])
def test_parts_of_an_evaluation_put_together_are_the_whole(
    umamba: Callable, folders: tuple[Path, Path], tmp_path: Path, with_names: bool, count: int
) -> None:
    command = ["evaluate", *folders]
    command += ["--dataset", tmp_path / "dataset.json"] if with_names else []
    assert umamba(*command, "-j", 1, "-o", tmp_path / "whole.json").code == 0
    for number in range(1, count + 1):
        done = umamba(*command, "-j", 1, "--shard", f"{number}/{count}")
        assert done.code == 0, done.err
        assert not (folders[0] / "summary.json").exists()
        assert (folders[0] / f"summary.{number}-of-{count}.json").exists()
    label_maps = set(folders[0].glob("*.nii.gz"))
    damaged = next(iter(label_maps))
    damaged.write_bytes(b"damaged")  # nothing is looked at again
    done = umamba(*command, "--merge")
    assert done.code == 0, done.err
    assert (folders[0] / "summary.json").read_text() == (tmp_path / "whole.json").read_text()


def test_parts_of_pictures_and_volumes_are_the_whole_too(umamba: Callable, tmp_path: Path) -> None:
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for folder in (predictions, references):
        write(folder / "a.tif", [[1, 0], [1, 0]])
        grid = Grid((1, 2, 2), (999.0, 1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
        write_label_map(folder / "b.png", np.array([[[1, 0], [1, 0]]]), grid)
        write(folder / "c.tif", [[1, 0], [2, 0]])
    command = "evaluate", predictions, references, "-j", 1
    assert umamba(*command, "-o", tmp_path / "whole.json").code == 0
    for shard in ("1/2", "2/2"):
        assert umamba(*command, "--shard", shard).code == 0
    assert umamba(*command[:3], "--merge").code == 0
    assert (predictions / "summary.json").read_text() == (tmp_path / "whole.json").read_text()
    assert '"reference_ml": null' in (tmp_path / "whole.json").read_text()


def part(folder: Path, number: int) -> tuple[Path, dict[str, Any]]:
    path = folder / f"summary.{number}-of-3.json"
    return path, json.loads(path.read_text())


def spoil_version(folder: Path) -> None:
    path, content = part(folder, 2)
    path.write_text(json.dumps(content | {"version": "0.0.1"}))


def spoil_labels(folder: Path) -> None:
    path, content = part(folder, 2)
    path.write_text(json.dumps(content | {"label_names": {"1": "other"}}))


def spoil_dataset(folder: Path) -> None:
    path, content = part(folder, 3)
    path.write_text(json.dumps(content | {"dataset": "Other"}))


def spoil_all_versions(folder: Path) -> None:
    for number in (1, 2, 3):
        path, content = part(folder, number)
        path.write_text(json.dumps(content | {"version": "0.0.1"}))


def add_part_of_others(folder: Path) -> None:
    _, content = part(folder, 2)
    (folder / "summary.1-of-2.json").write_text(json.dumps(content | {"shard": {"number": 1, "count": 2}}))


@pytest.mark.parametrize(
    ("option", "said"),
    [(("--only-predicted",), "differ in --only-predicted"), (("--instances", "1,2"), "differ in the labels of --inst")],
)
def test_parts_that_were_made_otherwise_are_refused(
    umamba: Callable, folders: tuple[Path, Path], option: tuple[str, ...], said: str
) -> None:
    assert umamba("evaluate", *folders, "-j", 1, "--shard", "1/2").code == 0
    assert umamba("evaluate", *folders, "-j", 1, "--shard", "2/2", *option).code == 0
    done = umamba("evaluate", *folders, "--merge")
    assert done.code == 2
    assert said in done.err


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: part(folder, 2)[0].unlink(), "1 of 3 parts of the evaluation are not in"),
        (spoil_version, "differ in the version that made them"),
        (spoil_all_versions, "they were made by umamba 0.0.1"),
        (spoil_labels, "differ in the labels"),
        (spoil_dataset, "differ in the dataset"),
        (add_part_of_others, "differ in the number of parts there are"),
        (lambda folder: part(folder, 1)[0].write_text("{"), "is no valid JSON"),
        (lambda folder: part(folder, 1)[0].write_text("{}"), "summary.1-of-3.json: 11 values not allowed"),
        (lambda folder: write(folder.parent / "references/h.nii.gz", [[1, 2]]), "the references were others"),
        (lambda folder: (folder.parent / "references/f.nii.gz").unlink(), "the references were others"),
        (lambda folder: [part(folder, number)[0].unlink() for number in (1, 2, 3)], "holds no part of an evaluation"),
    ],
)
def test_parts_that_are_missing_or_disagree_are_refused(
    umamba: Callable, folders: tuple[Path, Path], tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    command = "evaluate", *folders, "--dataset", tmp_path / "dataset.json"
    for number in (1, 2, 3):
        assert umamba(*command, "-j", 1, "--shard", f"{number}/3").code == 0
    spoil(folders[0])
    done = umamba(*command, "--merge")
    assert done.code == 2
    assert said in done.err
    assert "next: " in done.err
    assert not (folders[0] / "summary.json").exists()


def test_parts_made_with_other_labels_than_the_dataset_given_are_refused(
    umamba: Callable, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    assert umamba("evaluate", *folders, "-j", 1, "--shard", "1/1").code == 0
    done = umamba("evaluate", *folders, "--dataset", tmp_path / "dataset.json", "--merge")
    assert done.code == 2
    assert "their labels are other than the dataset's: those found in the label maps" in done.err
    both = umamba("evaluate", *folders, "--merge", "--shard", "1/1")
    assert both.code == 2
    assert "--merge and --shard do not go together" in both.err
