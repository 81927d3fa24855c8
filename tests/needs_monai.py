"""For tests of models that need the extra `monai`."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

NEEDS_MONAI = pytest.mark.skipif(
    find_spec("monai") is None or find_spec("einops") is None, reason="needs the extra monai"
)
