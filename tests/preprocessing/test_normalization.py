from __future__ import annotations

import numpy as np
import pytest
from phantoms import nnunet_plans

from umamba_cli.pipeline.preprocessing.normalization import normalise


def _normalised(
    scheme: str, values: list[float], *, masked: bool = False, inside: list[bool] | None = None
) -> list[float]:
    plans = nnunet_plans(spacing=(1.0, 1.0, 1.0), scheme=scheme, masked=masked)
    voxels = np.array(values, dtype=np.float32).reshape(1, 1, 1, -1)
    mask = np.array(inside or [True] * len(values)).reshape(voxels.shape[1:])
    normalise(voxels, mask, plans, plans.configuration("3d_fullres"))
    return [round(float(v), 5) for v in voxels.ravel()]


def test_z_score() -> None:
    assert _normalised("ZScoreNormalization", [1, 1, 3, 3]) == [-1, -1, 1, 1]


def test_z_score_in_the_mask_leaves_what_is_outside() -> None:
    inside = [False, True, True, True, True]
    assert _normalised("ZScoreNormalization", [0, 1, 1, 3, 3], masked=True, inside=inside) == [0, -1, -1, 1, 1]


def test_ct_clips_and_uses_the_foregrounds_statistics() -> None:
    # phantoms.py: mean 50, standard deviation 20, percentiles -100 and 200
    assert _normalised("CTNormalization", [-1000, 50, 70, 3000]) == [-7.5, 0, 1, 7.5]


def test_the_others() -> None:
    assert _normalised("NoNormalization", [-3, 7]) == [-3, 7]
    assert _normalised("RescaleTo01Normalization", [10, 15, 20]) == [0, 0.5, 1]
    assert _normalised("RGBTo01Normalization", [0, 255]) == [0, 1]


@pytest.mark.parametrize("scheme", ["ZScoreNormalization", "RescaleTo01Normalization"])
@pytest.mark.parametrize("value", [7.0, 100000.3, 0.1])
def test_a_constant_image_becomes_zero(scheme: str, value: float) -> None:
    assert set(_normalised(scheme, [value] * 10_007)) == {0}
    if scheme == "ZScoreNormalization":
        inside = [False] + [True] * 10_006
        assert set(_normalised(scheme, [0.0] + [value] * 10_006, masked=True, inside=inside)) == {0}
