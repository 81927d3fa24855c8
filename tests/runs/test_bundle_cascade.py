"""A bundle of a cascade holds both stages."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import FOLD_0, WEIGHTS, cascade_bundle, cascade_records, edit, refused, rewrite
from safetensors.torch import save

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.runs.bundle import PreviousStage, open_bundle, write_bundle

PREVIOUS_0 = f"previous/{FOLD_0}"


@pytest.fixture
def cascade(tmp_path: Path) -> Path:
    """Folds 0 and 1 of a cascade; 1 was trained with fold 1 of its previous stage alone."""
    return cascade_bundle(tmp_path / "model.zip")


def test_both_stages_come_back(cascade: Path) -> None:
    bundle, (second, first) = open_bundle(cascade), cascade_records()
    assert bundle.previous is not None
    assert bundle.record == second
    assert bundle.previous.record == first
    assert bundle.previous.previous is None
    assert bundle.folds == bundle.previous.folds == (0, 1)
    for fold in (0, 1):
        assert torch.equal(bundle.weights(fold)["layer.bias"], WEIGHTS["layer.bias"] + fold)
        assert torch.equal(bundle.previous.weights(fold)["layer.bias"], WEIGHTS["layer.bias"] + fold + 10)


def test_the_folds_that_a_fold_was_trained_with(cascade: Path) -> None:
    bundle = open_bundle(cascade)
    assert bundle.previous_folds((0,)) == (0, 1)
    assert bundle.previous_folds((1,)) == (1,)
    assert bundle.previous_folds((1, 0)) == (1, 0)
    with pytest.raises(InputError, match="holds no fold 3"):
        bundle.previous_folds((0, 3))


def test_all_files_are_listed_and_plans_are_there_once(cascade: Path) -> None:
    with zipfile.ZipFile(cascade) as archive:
        names, manifest = archive.namelist(), json.loads(archive.read("manifest.json"))
    assert set(names) - {"manifest.json"} == manifest["files"].keys()
    assert sorted(name for name in names if name.startswith("previous/")) == [
        "previous/run.json",
        PREVIOUS_0,
        "previous/weights/fold_1.safetensors",
    ]
    assert manifest["format"] == 1


def test_plans_and_dataset_of_its_own(tmp_path: Path) -> None:
    path, (second, first) = tmp_path / "model.zip", cascade_records()
    plans = first.plans.model_copy(update={"plans_name": "others"})
    dataset = first.dataset.model_copy(update={"name": "renamed"})
    own = first.model_copy(update={"plans": plans, "dataset": dataset})
    write_bundle(path, second, [(0, WEIGHTS)], origin={}, previous=PreviousStage(own, [("all", WEIGHTS)], {0: ["all"]}))
    bundle = open_bundle(path)
    assert bundle.previous is not None
    assert bundle.previous.record == own
    assert bundle.record == second
    assert bundle.previous_folds([0]) == ("all",)


@pytest.mark.parametrize("name", ["previous/run.json", PREVIOUS_0])
def test_other_content_is_refused(cascade: Path, name: str) -> None:
    other = {"previous/run.json": b"{}", PREVIOUS_0: save({key: t * 1.5 for key, t in WEIGHTS.items()})}[name]
    rewrite(cascade, lambda files: files.update({name: other.ljust(len(files[name]))}), listed=False)
    with pytest.raises(InputError, match="is another file than its manifest says"):
        _read_all(cascade)


def _read_all(path: Path) -> None:
    bundle = open_bundle(path)
    assert bundle.previous is not None
    bundle.previous.weights(0)


@pytest.mark.parametrize("name", ["previous/run.json", PREVIOUS_0])
def test_files_that_are_missing_are_refused(cascade: Path, name: str) -> None:
    refused(rewrite(cascade, lambda files: files.pop(name), listed=False), f"lacks {name}")


def test_weights_without_a_record_are_refused(cascade: Path) -> None:
    refused(rewrite(cascade, lambda files: files.pop("previous/run.json")), "lacks previous/run.json")


@pytest.mark.parametrize(
    "folds",
    [
        {},
        {"0": [0]},
        {"0": [0], "1": []},
        {"0": [0], "1": [2]},
        {"0": [0], "1": ["all"]},
        {"0": [0], "1": [1], "2": [1]},
    ],
)
def test_folds_that_are_not_there_are_refused(cascade: Path, folds: Any) -> None:
    refused(rewrite(cascade, edit("manifest.json", previous_folds=folds)), "does not hold the folds of 3d_lowres")


def test_a_stage_that_is_not_the_previous_one_is_refused(cascade: Path) -> None:
    rewrite(cascade, edit("previous/run.json", configuration="3d_fullres"))
    refused(cascade, "holds 3d_fullres as the previous stage of 3d_cascade_fullres, whose previous stage is 3d_lowres")


def test_a_previous_stage_of_what_has_none_is_refused(cascade: Path) -> None:
    rewrite(cascade, edit("run.json", configuration="3d_fullres"))
    refused(cascade, "whose previous stage is none")


def test_a_stage_before_the_previous_one_is_refused(cascade: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        plans = json.loads(files["plans.json"])
        plans["configurations"]["3d_lowres"]["previous_stage"] = "3d_fullres"
        files["plans.json"] = json.dumps(plans).encode()

    refused(rewrite(cascade, change), "holds 3d_lowres after 3d_fullres as the previous stage")


@pytest.mark.parametrize(
    "name", ["previous/manifest.json", "previous/previous/run.json", "previous/weights/fold_0.pth", "next/run.json"]
)
def test_other_files_are_refused(cascade: Path, name: str) -> None:
    refused(rewrite(cascade, lambda files: files.update({name: b"x"})), "a file that a bundle does not have")
