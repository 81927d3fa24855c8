"""A bundle comes back as it was written."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import FOLD_0, WEIGHTS, architecture, deflated, record, rewrite

from umamba_cli.pipeline.errors import InputError, WorkError
from umamba_cli.pipeline.runs.bundle import open_bundle, write_bundle


def test_what_was_written_comes_back(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.record == record()
    assert opened.folds == (0, 1)
    assert opened.manifest.origin == {"program": "test"}
    assert opened.manifest.validation == {"dice": 0.9}
    for fold in opened.folds:
        weights = opened.weights(fold)
        assert weights.keys() == WEIGHTS.keys()
        assert all(torch.equal(weights[name], tensor + fold) for name, tensor in WEIGHTS.items())


def test_it_is_a_plain_zip_of_json_and_safetensors(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        assert set(archive.namelist()) == {
            "manifest.json",
            "plans.json",
            "dataset.json",
            "run.json",
            FOLD_0,
            "weights/fold_1.safetensors",
        }
        manifest = json.loads(archive.read("manifest.json"))
        assert manifest["format"] == 1
        for name, entry in manifest["files"].items():
            content = archive.read(name)
            assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        assert json.loads(archive.read("dataset.json"))["name"] == "größe"
        assert "plans" not in json.loads(archive.read("run.json"))
        assert set(json.loads(archive.read("plans.json"))["configurations"]) == {"3d_fullres"}


def test_the_order_of_folds(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    write_bundle(path, record(), ((fold, WEIGHTS) for fold in ("all", 10, 2)), origin={})
    assert open_bundle(path).folds == (2, 10, "all")


def test_an_architecture_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    given = record(architecture=architecture(channel_tokens_for=(16, 16, 16), mamba="encoder"))
    write_bundle(path, given, [(0, WEIGHTS)], origin={})
    assert open_bundle(path).record.architecture == given.architecture


def test_nothing_is_left_where_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    path.write_bytes(b"before")

    def folds() -> Any:
        yield 0, WEIGHTS
        raise OSError(28, "No space left on device")

    with pytest.raises(WorkError, match="No space left"):
        write_bundle(path, record(), folds(), origin={})
    assert [file.name for file in tmp_path.iterdir()] == ["model.zip"]
    assert path.read_bytes() == b"before"


def test_tensors_that_share_memory_or_are_not_contiguous_are_written(tmp_path: Path) -> None:
    path, base = tmp_path / "model.zip", torch.arange(6.0).reshape(2, 3)
    write_bundle(path, record(), [(0, {"a": base, "b": base.t(), "c": torch.nn.Parameter(base)})], origin={})
    read = open_bundle(path).weights(0)
    assert torch.equal(read["b"], base.t())
    assert torch.equal(read["c"], base)


def test_one_that_was_packed_again_is_read(bundle: Path) -> None:
    rewrite(bundle, lambda files: files.update({"weights/": b""}), of=deflated, listed=False)
    assert open_bundle(bundle).weights(1).keys() == WEIGHTS.keys()


def test_a_fold_that_is_not_there(bundle: Path) -> None:
    with pytest.raises(InputError, match="holds no fold 3") as error:
        open_bundle(bundle).weights(3)
    assert "0, 1" in error.value.next_step
