from __future__ import annotations

import math
import random

import numpy as np
import pytest

from umamba_cli.pipeline.training.augmentation import Augmentation, AugmentationPlan
from umamba_cli.pipeline.training.patches import Patch

PLANS = [
    AugmentationPlan((16, 24, 20)),
    AugmentationPlan((6, 32, 28)),
    AugmentationPlan((32, 32)),
    AugmentationPlan((48, 24)),
]


def _patch(plan: AugmentationPlan) -> Patch:
    generator = np.random.default_rng(0)
    labels = np.zeros(plan.read_size, dtype=np.int16)
    labels[tuple(slice(n // 3, n // 2) for n in plan.read_size)] = 2
    return Patch(generator.standard_normal((2, *plan.read_size)).astype(np.float32) + 3 * labels, labels)


@pytest.mark.parametrize("plan", PLANS)
def test_the_network_gets_its_patch_with_known_labels(plan: AugmentationPlan) -> None:
    augment = Augmentation(plan)
    changed = 0
    for index in range(12):
        result = augment(_patch(plan), np.random.default_rng(index))
        assert result.image.shape == (2, *plan.patch_size)
        assert result.labels.shape == plan.patch_size
        assert result.image.dtype == np.float32
        assert result.labels.dtype == np.int16
        assert np.isfinite(result.image).all()
        assert set(np.unique(result.labels)) <= {-1, 0, 2}
        changed += not np.array_equal(result.image, _centre(_patch(plan).image, plan.patch_size))
    assert changed > 8


def _centre(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    start = [(n - s) // 2 for n, s in zip(image.shape[1:], size, strict=True)]
    return image[(slice(None), *(slice(a, a + s) for a, s in zip(start, size, strict=True)))]


def test_a_generator_decides_all_and_the_global_ones_are_left_alone() -> None:
    augment = Augmentation(PLANS[0])
    np.random.seed(1)
    random.seed(1)
    expected_numpy, expected_python = np.random.random(), random.random()
    np.random.seed(1)
    random.seed(1)
    first = augment(_patch(PLANS[0]), np.random.default_rng(3))
    again = augment(_patch(PLANS[0]), np.random.default_rng(3))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert np.random.random() == expected_numpy
    assert random.random() == expected_python


def test_image_and_labels_move_together() -> None:
    """Where the label is, the image is brighter, whatever was done to both."""
    plan = AugmentationPlan((24, 24, 24))
    augment = Augmentation(plan)
    for index in range(10):
        patch = _patch(plan)
        patch.image[:] = 3 * patch.labels
        result = augment(patch, np.random.default_rng(index))
        if (result.labels == 2).sum() > 20:
            inside = result.image[0][result.labels == 2].mean()
            assert inside > result.image[0][result.labels == 0].mean() + 1


def test_slices_stay_apart_in_a_flat_patch() -> None:
    plan = AugmentationPlan((6, 32, 28))
    assert plan.in_plane_only
    assert plan.read_size[0] == 6
    augment = Augmentation(plan)
    patch = _patch(plan)
    patch.labels[:] = np.arange(6)[:, None, None]
    for index in range(10):
        result = augment(patch, np.random.default_rng(index))
        for layer in result.labels:
            assert len(set(np.unique(layer)) - {-1}) <= 1


def test_angles_follow_the_shape_of_the_patch() -> None:
    assert [round(math.degrees(plan.largest_angle)) for plan in PLANS] == [30, 180, 180, 15]


def test_what_is_read_holds_the_turned_patch() -> None:
    plan = AugmentationPlan((32, 32))
    assert plan.read_size == (int(math.hypot(32, 32) / 0.85),) * 2
    assert AugmentationPlan((48, 24)).read_size[0] < 2 * 48


def test_masked_channels_are_zero_outside_again() -> None:
    plan = AugmentationPlan((16, 16, 16), mask_channels=(1,))
    for index in range(10):
        patch = _patch(plan)
        patch.labels[:, : plan.read_size[1] // 2] = -1
        result = Augmentation(plan)(patch, np.random.default_rng(index))
        assert not result.image[1][result.labels < 0].any()
        assert result.image[0][result.labels < 0].any()
