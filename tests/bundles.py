"""Bundles to write, and to spoil."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from phantoms import nnunet_plans

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.architecture import Architecture
from umamba_cli.pipeline.runs.bundle import PreviousStage, open_bundle, write_bundle
from umamba_cli.pipeline.runs.record import RunRecord

WEIGHTS = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.tensor([0.5, -1.0])}
FOLD_0 = "weights/fold_0.safetensors"


def record(**changed: Any) -> RunRecord:
    given: dict[str, Any] = {
        "model": "unet",
        "configuration": "3d_fullres",
        "fold": 0,
        "settings": {"epochs": 3},
        "train_cases": ("a", "b"),
        "val_cases": ("c",),
        "mirror_axes": (0, 2),
        "dataset": DatasetDescription(
            channel_names={"0": "MRI"}, labels={"background": 0, "a": 1}, file_ending=".nii.gz", name="größe"
        ),
        "plans": nnunet_plans(spacing=(1.0, 0.5, 0.5)),
    }
    return RunRecord(**{**given, **changed})


def architecture(**changed: Any) -> Architecture:
    plain: dict[str, Any] = {
        "input_channels": 1,
        "outputs": 2,
        "features_per_stage": (4, 8),
        "strides": ((1, 1, 1), (2, 2, 2)),
        "kernel_sizes": ((3, 3, 3), (3, 3, 3)),
        "blocks_per_stage": (1, 1),
        "blocks_per_stage_decoder": (1,),
    }
    return Architecture(**{**plain, **changed})


def cascade_records() -> tuple[RunRecord, RunRecord]:
    """Of a cascade's second stage and of its first."""
    described = record().model_dump(mode="json", by_alias=True)
    configurations = described["plans"]["configurations"]
    configurations["3d_lowres"] = {**configurations["3d_fullres"], "next_stage": "3d_cascade_fullres"}
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    first, second = (
        RunRecord.model_validate({**described, "configuration": name}) for name in ("3d_lowres", "3d_cascade_fullres")
    )
    return second, first


def cascade_bundle(path: Path) -> Path:
    """Two folds of a cascade and two of its previous stage; fold 1 was trained with fold 1 of that alone."""
    second, first = cascade_records()
    weights, before = (
        [(fold, {name: tensor + fold + more for name, tensor in WEIGHTS.items()}) for fold in (0, 1)]
        for more in (0, 10)
    )
    previous = PreviousStage(first, before, {0: (0, 1), 1: (1,)})
    write_bundle(path, second, weights, origin={"program": "test"}, previous=previous)
    return path


def rewrite(
    path: Path,
    change: Callable[[dict[str, bytes]], Any] = lambda _: None,
    *,
    of: Callable[[str], zipfile.ZipInfo] = zipfile.ZipInfo,
    listed: bool = True,
) -> Path:
    """Write the bundle again with other files; by default the manifest lists what there is then."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    if listed:
        manifest = json.loads(files["manifest.json"])
        manifest["files"] = {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            for name, content in files.items()
            if name != "manifest.json"
        }
        files["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(of(name), content)
    return path


def edit(name: str, **changed: Any) -> Callable[[dict[str, bytes]], None]:
    """What changes keys of a JSON file."""

    def change(files: dict[str, bytes]) -> None:
        files[name] = json.dumps({**json.loads(files[name]), **changed}).encode()

    return change


def _read_all(path: Path) -> None:
    bundle = open_bundle(path)
    for fold in bundle.folds:
        bundle.weights(fold)


def refused(path: Path, text: str) -> InputError:
    """Open it and read its weights: one of them refuses, in two lines that name the file."""
    with pytest.raises(InputError, match=re.escape(text)) as error:
        _read_all(path)
    assert str(path) in error.value.problem
    assert "\n" not in error.value.problem
    assert error.value.next_step
    return error.value


def deflated(name: str) -> zipfile.ZipInfo:
    """An entry that is compressed."""
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    return info
