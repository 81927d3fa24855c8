"""What several tests share: where real data lies, and small phantoms."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def _shared_folder() -> Path | None:
    named = os.environ.get("UMAMBA_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    return folder if (folder / "goldens").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and goldens; tests that need it skip where it is absent."""
    folder = _shared_folder()
    if folder is None:
        pytest.skip("no real data: neither ../shared nor the folder that UMAMBA_SHARED names is there")
    return folder
