"""A task of the Medical Segmentation Decathlon, and where it is converted to."""

from __future__ import annotations

from pathlib import Path

import pytest
from msd_tasks import make_task


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return make_task(tmp_path / "Task04_Phantom")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return tmp_path / "Dataset004_Phantom"
