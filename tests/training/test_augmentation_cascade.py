"""The previous stage's labels on their way into the second stage's image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage
from skimage import morphology

from umamba_cli.pipeline.training.augmentation import Augmentation, AugmentationPlan, cascade, with_previous
from umamba_cli.pipeline.training.patches import Patch


def _blobs(size: tuple[int, ...]) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(size), 2) > 0.08


@pytest.mark.parametrize("size", [(20, 24, 18), (40, 36)])
@pytest.mark.parametrize("radius", [1, 3, 8])
@pytest.mark.parametrize("name", ["dilation", "erosion", "opening", "closing"])
def test_operators_are_scipys_with_a_ball(size: tuple[int, ...], radius: int, name: str) -> None:
    mask = _blobs(size)
    ball = morphology.ball(radius, dtype=bool) if len(size) == 3 else morphology.disk(radius, dtype=bool)

    def dilation(mask: np.ndarray) -> np.ndarray:
        return ndimage.binary_dilation(mask, ball)

    def erosion(mask: np.ndarray) -> np.ndarray:
        return ndimage.binary_erosion(mask, ball, border_value=1)

    steps: dict[str, list[Callable[[np.ndarray], np.ndarray]]] = {
        "dilation": [dilation], "erosion": [erosion], "opening": [erosion, dilation], "closing": [dilation, erosion],
    }  # fmt: skip
    expected = mask
    for step in steps[name]:
        expected = step(expected)
    np.testing.assert_array_equal(getattr(cascade, name)(mask, radius), expected)


@pytest.mark.parametrize("name", ["dilation", "erosion", "opening", "closing"])
def test_empty_and_full_masks_stay(name: str) -> None:
    for mask in (np.zeros((5, 6, 7), dtype=bool), np.ones((5, 6, 7), dtype=bool)):
        np.testing.assert_array_equal(getattr(cascade, name)(mask, 2.5), mask)


def _two_labels() -> np.ndarray:
    channels = np.zeros((2, 24, 24, 24), dtype=np.float32)
    channels[0, 2:10, 4:20, 4:20] = 1
    channels[1, 12:20, 4:20, 4:20] = 1
    channels[1, 22, 22, 22] = 1
    return channels


def test_labels_never_overlap_and_often_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cascade, "P_REMOVAL", 0.0)
    changed = 0
    for seed in range(200):
        channels = _two_labels()
        cascade.corrupt(channels, np.random.default_rng(seed))
        assert set(np.unique(channels)) <= {0, 1}
        assert channels.sum(0).max() <= 1
        changed += not np.array_equal(channels, _two_labels())
    assert 30 < changed < 65  # 0.4 of the patches, 3 of 4 times some label; an opening or closing may change nothing


def test_small_components_go_and_large_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cascade, "P_OPERATOR", 0.0)
    large = np.zeros((1, 10, 10, 10), dtype=np.float32)
    large[0, :2] = 1  # a fifth of the patch
    large[0, 8, 8, 7:9] = 1
    large[0, 7, 7, 6] = 1  # a corner's neighbour: the same component
    large[0, 5, 2, 2] = 1
    seen = {2: 0, 3: 0}
    for seed in range(300):
        channels = large.copy()
        cascade.corrupt(channels, np.random.default_rng(seed))
        assert channels[0, :2].all()
        gone = int((large - channels).sum())
        assert gone in (0, 1, 3)
        if gone:
            assert channels[0, 5, 2, 2] == (gone == 3)
            seen[2 if gone == 1 else 3] += 1
    assert 15 < sum(seen.values()) < 45  # 0.2 of the patches, half of the labels
    assert min(seen.values()) > 3


def _patch(plan: AugmentationPlan) -> Patch:
    """A previous stage that is perfect, and an image that shows it."""
    labels = np.zeros(plan.read_size, dtype=np.int16)
    labels[tuple(slice(n // 3, n // 2) for n in plan.read_size)] = 1
    labels[tuple(slice(n // 2, 2 * n // 3) for n in plan.read_size)] = 2
    return Patch(labels[None].astype(np.float32), labels, previous=labels.copy())


@pytest.mark.parametrize("size", [(16, 20, 18), (6, 24, 28), (24, 24)])
def test_the_previous_stage_moves_with_the_labels(size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cascade, "P_OPERATOR", 0.0)
    monkeypatch.setattr(cascade, "P_REMOVAL", 0.0)
    plan = AugmentationPlan(size, previous_labels=(2, 1))
    for seed in range(12):
        patch = _patch(plan)
        result = Augmentation(plan)(patch, np.random.default_rng(seed))
        assert result.previous is None
        assert result.image.shape == (3, *size)
        assert result.image.dtype == np.float32
        np.testing.assert_array_equal(result.image[1], result.labels == 2)
        np.testing.assert_array_equal(result.image[2], result.labels == 1)
        np.testing.assert_array_equal(patch.previous, patch.labels)


def test_corruption_reaches_the_channels_and_repeats() -> None:
    plan = AugmentationPlan((16, 20, 18), previous_labels=(1, 2))
    augment = Augmentation(plan)
    differ = 0
    for seed in range(40):
        result = augment(_patch(plan), np.random.default_rng(seed))
        again = augment(_patch(plan), np.random.default_rng(seed))
        np.testing.assert_array_equal(result.image, again.image)
        differ += not np.array_equal(result.image[1] > 0, result.labels == 1)
    assert differ > 8


def test_validation_appends_the_channels_unchanged() -> None:
    plan = AugmentationPlan((16, 16), previous_labels=(1, 2))
    patch = _patch(plan)
    result = with_previous(patch, plan.previous_labels)
    np.testing.assert_array_equal(result.image[0], patch.image[0])
    np.testing.assert_array_equal(result.image[1:], [patch.labels == 1, patch.labels == 2])
    assert result.previous is None
    assert with_previous(patch, ()).image.shape == patch.image.shape
    with pytest.raises(ValueError, match="previous"):
        with_previous(Patch(patch.image, patch.labels), (1,))
