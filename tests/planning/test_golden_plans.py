"""The same plans as nnU-Net's, from the same fingerprints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.planning.fingerprint import Fingerprint
from umamba_cli.pipeline.planning.planner import PlanOptions, make_plans
from umamba_cli.pipeline.planning.plans import read_plans

OPTIONS = {
    "default_8gb": PlanOptions(memory_gb=8),
    "default_24gb": PlanOptions(memory_gb=24),
    "ResEncM": PlanOptions(preset="resenc-m"),
    "ResEncL": PlanOptions(preset="resenc-l"),
}


def _differences(expected: Any, actual: Any, key: str = "") -> list[str]:
    """Keys whose expected value is not met; keys that are not expected are not looked at."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        return [line for k in expected for line in _differences(expected[k], actual.get(k), f"{key}.{k}")]
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        return [
            line
            for i, pair in enumerate(zip(expected, actual, strict=True))
            for line in _differences(*pair, f"{key}.{i}")
        ]
    if isinstance(expected, float) and isinstance(actual, int | float):
        return [] if actual == pytest.approx(expected, rel=1e-12) else [f"{key}: {expected} expected, is {actual}"]
    return [] if expected == actual else [f"{key}: {expected} expected, is {actual}"]


def _planned(golden: dict[str, Any], options: PlanOptions) -> dict[str, Any]:
    """Our plans in the goldens' form: the network's arguments directly below `architecture`."""
    fingerprint = Fingerprint.model_validate(golden["fingerprint"])
    description = DatasetDescription.model_validate(golden["dataset"])
    plans = json.loads(make_plans(fingerprint, description, "Golden", options).plans.model_dump_json(by_alias=True))
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            configuration["architecture"] = configuration["architecture"]["arch_kwargs"]
    return plans


@pytest.mark.parametrize("name", OPTIONS)
def test_plans_are_nnunets(name: str, golden_files: list[Path]) -> None:
    assert golden_files
    wrong = {}
    for file in golden_files:
        golden = json.loads(file.read_text())
        planned = _planned(golden, OPTIONS[name])
        expected = golden["plans"][name]
        found = _differences(expected, planned)
        if set(planned["configurations"]) != set(expected["configurations"]):
            found.append(f"configurations: {set(expected['configurations'])} expected")
        if found:
            wrong[file.stem] = found
    assert not wrong


def test_plans_of_real_images_are_nnunets(shared: Path) -> None:
    for folder in sorted((shared / "goldens" / "preprocessing").glob("Dataset*")):
        expected = json.loads((folder / "nnUNetPlans.json").read_text())
        golden = {
            "fingerprint": json.loads((folder / "dataset_fingerprint.json").read_text()),
            "dataset": json.loads((shared / "data" / folder.name / "dataset.json").read_text()),
        }
        planned = _planned(golden, PlanOptions())
        for name, configuration in expected["configurations"].items():
            for key in ("data_identifier", "architecture"):
                written = configuration.pop(key, None)
            assert _differences(configuration, planned["configurations"][name]) == []
            assert _differences(written["arch_kwargs"], planned["configurations"][name]["architecture"]) == []
        for key in ("transpose_forward", "transpose_backward", "original_median_shape_after_transp"):
            assert planned[key] == expected[key]


@pytest.mark.parametrize("path", ["nnunet_model/plans.json", "preprocessing/Dataset101_CineMR/nnUNetPlans.json"])
def test_nnunets_own_plans_load(shared: Path, path: str) -> None:
    file = shared / "goldens" / path
    plans = read_plans(file)
    assert _differences(json.loads(file.read_text()), json.loads(plans.model_dump_json(by_alias=True))) == []
    for name, written in json.loads(file.read_text())["configurations"].items():
        assert list(plans.configuration(name).patch_size) == written["patch_size"]
    assert plans.preset == "default"
    assert plans.training.epochs == 1000
