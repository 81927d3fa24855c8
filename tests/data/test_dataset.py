from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from umamba_cli.pipeline.data.dataset import DatasetDescription, open_dataset
from umamba_cli.pipeline.data.workspace import create_workspace, open_workspace, valid_tag
from umamba_cli.pipeline.errors import InputError

DESCRIPTION: dict[str, Any] = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "organ": 1},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


def _dataset(folder: Path, **changes: Any) -> Path:
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    (folder / "dataset.json").write_text(json.dumps({**DESCRIPTION, **changes}))
    for name in ("imagesTr/b_c_0001", "imagesTr/b_c_0000", "labelsTr/b_c", "imagesTr/a_0000", "imagesTr/.hidden_0000"):
        (folder / f"{name}.nii.gz").touch()
    return folder


def test_cases_and_channels_are_found_in_order(tmp_path: Path) -> None:
    dataset = open_dataset(_dataset(tmp_path / "Dataset001_A"))
    assert [case.identifier for case in dataset.cases] == ["a", "b_c"]
    assert [path.name for path in dataset.cases[1].images] == ["b_c_0000.nii.gz", "b_c_0001.nii.gz"]
    assert dataset.cases[0].label is None
    assert dataset.description.foreground == {1: "organ"}
    assert dataset.name == "Dataset001_A"


def test_old_files_say_modality(tmp_path: Path) -> None:
    folder = _dataset(tmp_path)
    content = {**DESCRIPTION, "modality": {"0": "MR"}}
    del content["channel_names"]
    (folder / "dataset.json").write_text(json.dumps(content))
    assert open_dataset(folder).description.channel_names == {"0": "MR"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"labels": {"organ": 1}}, "background"),
        ({"labels": {"background": 0, "organ": 2}}, "0 to 1"),
        ({"labels": {"background": 0}}, "at least one label"),
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "regions_class_order"),
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1]}, "2 values"),
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 3]}, "labels only"),
        ({"labels": {"background": 0, "whole": [1, 3]}, "regions_class_order": [1]}, "every value from 0 to 3"),
        ({"labels": {"background": 0, "whole": []}}, "without any label"),
        ({"labels": {"background": 0, "a": [1, 2], "b": [2, 1]}, "regions_class_order": [1, 2]}, "values in a and b"),
        ({"labels": {"background": 0, "organ": 1, "ignore": 3}}, "2 as `ignore`"),
        ({"labels": {"background": 0, "organ": 1, "ignore": 1}}, "2 as `ignore`"),
        ({"channel_names": {"0": "CT", "2": "PET"}}, "0 to 1"),
        ({"file_ending": "nii"}, "file_ending"),
        ({"file_ending": ".mhd"}, "two files"),
        ({"file_ending": ".jpg"}, "JPEG"),
        ({"channel_names": {}}, "channel_names"),
    ],
)
def test_a_bad_description_is_refused_with_key_and_reason(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        open_dataset(_dataset(tmp_path, **changes))


def test_many_regions_take_no_time_worth_the_name(tmp_path: Path) -> None:
    count = 5000  # 25 million comparisons, were each compared with each
    regions = {f"r{value}": [value, value % count + 1] for value in range(1, count + 1)}
    changes = {"labels": {"background": 0, **regions}, "regions_class_order": list(range(1, count + 1))}
    began = time.process_time()
    assert open_dataset(_dataset(tmp_path / "a", **changes)).description.num_outputs == count
    assert time.process_time() - began < 2
    changes["labels"]["again"] = [2, 1]
    with pytest.raises(InputError, match="the same values in again and r1"):
        open_dataset(_dataset(tmp_path / "b", **changes))


def test_an_empty_folder_and_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.json does not exist"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        open_dataset(tmp_path / "nowhere")
    (tmp_path / "dataset.json").write_text(json.dumps(DESCRIPTION))
    with pytest.raises(InputError, match="holds no case"):
        open_dataset(tmp_path)


def test_a_workspace_belongs_to_one_dataset(tmp_path: Path) -> None:
    first, second = (open_dataset(_dataset(tmp_path / name)) for name in ("Dataset001_A", "Dataset002_B"))
    create_workspace(tmp_path / "work", first)
    assert open_workspace(tmp_path / "work").dataset() == first
    create_workspace(tmp_path / "work", first)
    with pytest.raises(InputError, match="workspace of"):
        create_workspace(tmp_path / "work", second)
    with pytest.raises(InputError, match="not empty"):
        create_workspace(tmp_path / "Dataset002_B", second)


def test_a_dataset_that_moved_is_said(tmp_path: Path) -> None:
    workspace = create_workspace(tmp_path / "work", open_dataset(_dataset(tmp_path / "Dataset001_A")))
    (tmp_path / "Dataset001_A").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no longer at"):
        workspace.dataset()


def test_tags_are_names() -> None:
    assert valid_tag("lr-0.1") == "lr-0.1"
    for tag in ("a/b", "..\\x", "a__b", "ü"):
        with pytest.raises(InputError, match="tag"):
            valid_tag(tag)


def test_regions_are_sets_of_labels() -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    description = DatasetDescription.model_validate(
        {"channel_names": {"0": "MR"}, "labels": labels, "regions_class_order": [1, 2, 3], "file_ending": ".nrrd"}
    )
    assert description.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert description.foreground == {1: "whole", 2: "core", 3: "enhancing"}
    assert description.known_values == (0, 1, 2, 3, 4)
    assert description.num_classes == 4
    assert description.num_outputs == 3
    assert description.targets == {(1, 2, 3): "whole", (2, 3): "core", 3: "enhancing"}


def test_an_ignore_label_is_no_class() -> None:
    labels = {"background": 0, "organ": 1, "ignore": 2}
    description = DatasetDescription.model_validate(
        {"channel_names": {"0": "MR"}, "labels": labels, "file_ending": ".nrrd"}
    )
    assert (description.ignore_label, description.num_classes, description.foreground) == (2, 2, {1: "organ"})
    assert not description.has_regions
    assert (description.num_outputs, description.targets) == (2, {1: "organ"})


@pytest.mark.parametrize("content", ["null", "[]", '"x"', '{"format": 1}'])
def test_a_damaged_workspace_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "workspace.json").write_text(content)
    with pytest.raises(InputError, match=r"workspace.json does not say what it must"):
        open_workspace(tmp_path)
