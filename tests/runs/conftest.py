"""A bundle of two folds."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import WEIGHTS, record

from umamba_cli.pipeline.runs.bundle import write_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of two folds."""
    path = tmp_path / "model.zip"
    folds = ((fold, {name: tensor + fold for name, tensor in WEIGHTS.items()}) for fold in (0, 1))
    write_bundle(path, record(), folds, origin={"program": "test"}, validation={"dice": 0.9})
    return path
