"""Small datasets to plan for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.planning.fingerprint import Fingerprint
from umamba_cli.pipeline.planning.planner import PlanOptions, make_plans

INTENSITIES = {
    "max": 9.0,
    "mean": 4.0,
    "median": 4.0,
    "min": 0.0,
    "percentile_00_5": 0.5,
    "percentile_99_5": 8.5,
    "std": 2.0,
}


@pytest.fixture(scope="session")
def fingerprint_of() -> Callable[..., Fingerprint]:
    """Builds the fingerprint of equal cases of a spacing and a shape."""

    def build(
        spacing: tuple[float, ...],
        shape: tuple[int, ...],
        *,
        cases: int = 20,
        channels: int = 1,
        relative_size: float = 1.0,
    ) -> Fingerprint:
        return Fingerprint.model_validate(
            {
                "spacings": [spacing] * cases,
                "shapes_after_crop": [shape] * cases,
                "foreground_intensity_properties_per_channel": {str(index): INTENSITIES for index in range(channels)},
                "median_relative_size_after_cropping": relative_size,
            }
        )

    return build


@pytest.fixture(scope="session")
def description_of() -> Callable[..., DatasetDescription]:
    """Builds a dataset.json with one foreground label and these channels."""

    def build(*channels: str) -> DatasetDescription:
        return DatasetDescription.model_validate(
            {
                "channel_names": {str(index): name for index, name in enumerate(channels or ("MR",))},
                "labels": {"background": 0, "organ": 1},
                "file_ending": ".nii.gz",
            }
        )

    return build


@pytest.fixture
def written_plans(
    fingerprint_of: Callable[..., Fingerprint], description_of: Callable[..., DatasetDescription]
) -> dict[str, Any]:
    """Plans as a JSON file holds them, with 2d, 3d_fullres, 3d_lowres and 3d_cascade_fullres."""
    fingerprint = fingerprint_of((1.0, 1.0, 1.0), (400, 400, 400))
    plans = make_plans(fingerprint, description_of(), "Dataset001_Test", PlanOptions()).plans
    content: dict[str, Any] = json.loads(plans.model_dump_json(by_alias=True))
    return content


@pytest.fixture(scope="session")
def golden_files(shared: Path) -> list[Path]:
    """What nnU-Net planned for ten fingerprints."""
    return sorted((shared / "goldens" / "plans").glob("*.json"))
