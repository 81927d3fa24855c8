from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from batchgenerators.augmentations.utils import resize_segmentation
from skimage.transform import resize

from umamba_cli.pipeline.errors import InputError
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


SHAPES = [
    ((20, 31, 17), (25, 22, 40)),
    ((12, 12, 12), (24, 6, 12)),  # even factors: every boundary voxel ties
    ((7, 9, 1), (14, 18, 3)),
    ((1, 30, 41), (1, 60, 33)),
    ((2, 3, 130), (5, 2, 90)),  # more than one block of rows
]


@pytest.mark.parametrize(("shape", "new_shape"), SHAPES)
@pytest.mark.parametrize("order", [0, 1, 3])
def test_images_have_the_numbers_of_scikit_image(
    shape: tuple[int, ...], new_shape: tuple[int, ...], order: int
) -> None:
    image = 50 * np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    ours = resample_image(image, new_shape, (1, 1, 1), (1, 1, 1), order=order)
    for channel, result in zip(image, ours, strict=True):
        theirs = resize(channel, new_shape, order=order, mode="edge", anti_aliasing=False)
        np.testing.assert_allclose(result, theirs, rtol=0, atol=1e-4)
        assert result.min() >= channel.min()
        assert result.max() <= channel.max()


@pytest.mark.parametrize(("shape", "new_shape"), SHAPES)
@pytest.mark.parametrize("labels", [2, 3, 9])
@pytest.mark.parametrize("order", [0, 1])
def test_label_maps_are_those_of_batchgenerators(
    shape: tuple[int, ...], new_shape: tuple[int, ...], labels: int, order: int
) -> None:
    noise = np.random.default_rng(0).integers(-1, labels - 1, shape).astype(np.int16)
    ours = resample_labels(noise, new_shape, (1, 1, 1), (1, 1, 1), order=order)
    assert ours.dtype == noise.dtype
    np.testing.assert_array_equal(ours, resize_segmentation(noise, new_shape, order=order))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_axis_can_be_the_thick_one(axis: int) -> None:
    """The volume turned, so that another axis is thick, comes out as the result turned."""
    rng = np.random.default_rng(0)
    image, labels = rng.standard_normal((1, 5, 14, 11)).astype(np.float32), rng.integers(0, 4, (5, 14, 11))
    grids = ((8, 9, 13), (5.0, 1.0, 1.0), (3.0, 1.5, 0.8))
    order = np.insert([1, 2], axis, 0)
    turned = [tuple(np.array(values)[order].tolist()) for values in grids]
    expected = resample_image(image, *grids).transpose(0, *(order + 1))
    np.testing.assert_array_equal(resample_image(image.transpose(0, *(order + 1)), *turned), expected)
    expected_labels = resample_labels(labels, *grids).transpose(order)
    np.testing.assert_array_equal(resample_labels(labels.transpose(order), *turned), expected_labels)


def test_the_plans_can_force_an_axis_apart_or_forbid_it() -> None:
    image = np.zeros((1, 2, 4, 4), dtype=np.float32)
    image[0, 1] = 1
    apart = resample_image(image, (6, 4, 4), (2, 1, 1), (1, 1, 1), separate=True)
    assert set(apart.ravel().tolist()) == {0, 1}
    blended = resample_image(image, (6, 4, 4), (6, 1, 1), (2, 1, 1), separate=False)
    assert len(set(blended.ravel().tolist())) > 2


def test_an_order_that_cannot_be_resampled_with_is_refused() -> None:
    with pytest.raises(InputError, match="order 2"):
        resample_image(np.zeros((1, 2, 2, 2), dtype=np.float32), (3, 3, 3), (1, 1, 1), (1, 1, 1), order=2)
    with pytest.raises(InputError, match="order 3"):
        resample_labels(np.zeros((2, 2, 2), dtype=np.int16), (3, 3, 3), (1, 1, 1), (1, 1, 1), order=3)
