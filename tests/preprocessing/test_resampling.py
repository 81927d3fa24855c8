from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from umamba_cli.pipeline.preprocessing.resampling import resample_image, resample_labels, thick_axis


def test_numbers_are_those_of_nnunet(shared: Path) -> None:
    cases = json.loads((shared / "goldens/preprocessing/resampling.json").read_text())
    with np.load(shared / "goldens/preprocessing/resampling.npz") as goldens:
        for case in cases:
            number, shape = case["case"], tuple(case["input_shape"])
            z, y, x = np.indices(shape).astype(float)
            image = np.sin(0.61 * z + 0.3) + np.cos(0.37 * y) * np.sin(0.23 * x + 1)
            image = (image + 0.1 * np.sin(2.1 * z + 1.7 * y + 2.9 * x)).astype(np.float32)[None]
            radius = np.sqrt(sum(((i - n / 2) / (n / 2)) ** 2 for i, n in zip((z, y, x), shape, strict=True)))
            labels = (radius < 0.9).astype(int) + (radius < 0.6) + (radius < 0.3)
            grids = (tuple(case["output_shape"]), case["current_spacing"], case["new_spacing"])
            for order in (1, 3):
                expected = goldens[f"case{number}_data_order{order}"]
                ours = resample_image(image, *grids, order=order)
                np.testing.assert_allclose(ours.squeeze(), expected.squeeze(), rtol=0, atol=1e-4)
            expected = goldens[f"case{number}_seg_order1"]
            np.testing.assert_array_equal(resample_labels(labels, *grids), expected.squeeze())


@pytest.mark.parametrize(
    ("old", "new", "axis"),
    [
        ((1, 1, 1), (1, 1, 1), None),
        ((5, 1, 1), (1, 1, 1), 0),
        ((1, 1, 5), (1, 1, 1), 2),
        ((1, 1, 1), (4, 1, 1), 0),
        ((3, 1, 1), (1, 1, 1), None),  # three times is not more than three times
        ((0.2, 1, 1), (1, 1, 1), None),  # two equally coarse axes
    ],
)
def test_which_axis_is_resampled_apart(old: tuple[float, ...], new: tuple[float, ...], axis: int | None) -> None:
    assert thick_axis(old, new) == axis


def test_thick_slices_are_repeated_and_not_blended() -> None:
    image = np.zeros((1, 2, 4, 4), dtype=np.float32)
    image[0, 1] = 1
    resampled = resample_image(image, (6, 4, 4), (6, 1, 1), (2, 1, 1))
    assert resampled[0, :, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_the_same_shape_is_left_alone() -> None:
    image = np.random.default_rng(0).standard_normal((1, 3, 4, 5)).astype(np.float32)
    assert resample_image(image, (3, 4, 5), (1, 1, 1), (1.01, 1, 1)) is image
