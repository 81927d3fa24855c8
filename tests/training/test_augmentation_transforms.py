"""Each batched transform gives what batchgenerators' gives with the same parameters."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from batchgenerators.augmentations.color_augmentations import augment_contrast, augment_gamma
from batchgenerators.augmentations.resample_augmentations import augment_linear_downsampling_scipy
from batchgenerators.augmentations.spatial_transformations import augment_spatial
from scipy.ndimage import gaussian_filter
from torch import Tensor

from umamba_cli.pipeline.training.augmentation import Augmentation, intensity
from umamba_cli.pipeline.training.augmentation.draws import Draw, turn_matrix
from umamba_cli.pipeline.training.augmentation.plan import AugmentationPlan
from umamba_cli.pipeline.training.augmentation.spatial import cut_patches

SIZES = [(12, 15, 10), (17, 24)]


def _image(size: tuple[int, ...]) -> np.ndarray:
    """Smooth enough that an error of place shows, rough enough that one of weight does."""
    return (10 * gaussian_filter(np.random.default_rng(0).standard_normal(size), 1)).astype(np.float32)


def _draw(turn: np.ndarray | None, mirrored: tuple[bool, ...]) -> Draw:
    one = np.ones(1)
    return Draw(turn, mirrored, 0.0, 0, np.zeros(1), one, one, one, one, one)


def _rows(*images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(images))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sigma", [0.5, 0.62, 0.63, 0.87, 0.88, 1.0])
def test_blur_is_scipys_gaussian_filter(size: tuple[int, ...], sigma: float) -> None:
    rows = _rows(_image(size))
    intensity.blur(rows, np.array([sigma]))
    np.testing.assert_allclose(rows[0], gaussian_filter(_image(size), sigma), atol=2e-6 * np.abs(_image(size)).max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("zoom", [0.5, 0.6, 0.77, 0.95])
def test_low_resolution_is_batchgenerators(size: tuple[int, ...], zoom: float) -> None:
    rows = _rows(_image(size))
    intensity.lower_resolution(rows, np.array([zoom]), [(False,) * len(size)], False)
    theirs = _lowered(_image(size), zoom, None)
    assert np.abs(theirs - _image(size)).max() > 0.1
    np.testing.assert_allclose(rows[0], theirs, atol=1e-5)


def _lowered(image: np.ndarray, zoom: float, kept_axes: tuple[int, ...] | None) -> np.ndarray:
    options = {"per_channel": True, "order_downsample": 0, "order_upsample": 3, "ignore_axes": kept_axes}
    return augment_linear_downsampling_scipy(image[None].copy(), (zoom, zoom), **options)[0]


def test_low_resolution_keeps_the_slices_of_a_flat_patch() -> None:
    rows = _rows(_image((4, 17, 14)))
    intensity.lower_resolution(rows, np.array([0.6]), [(False,) * 3], True)
    np.testing.assert_allclose(rows[0], _lowered(_image((4, 17, 14)), 0.6, (0,)), atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_low_resolution_before_mirroring_equals_that_of_the_mirrored(size: tuple[int, ...]) -> None:
    """Ours mirrors first; batchgenerators' rounding to the nearest voxel is not the same from either side."""
    for mirrored in itertools.product((False, True), repeat=len(size)):
        axes = [axis for axis, flip in enumerate(mirrored) if flip]
        rows = _rows(np.flip(_image(size), axes).copy())
        intensity.lower_resolution(rows, np.array([0.5]), [mirrored], False)
        np.testing.assert_allclose(rows[0], np.flip(_lowered(_image(size), 0.5, None), axes), atol=1e-5)


@pytest.mark.parametrize("factor", [0.75, 1.25])
def test_contrast_is_batchgenerators(factor: float) -> None:
    image = _image(SIZES[0])
    rows = _rows(image)
    intensity.change_contrast(rows, np.array([factor]))
    np.testing.assert_allclose(rows[0], augment_contrast(image[None].copy(), lambda: factor)[0], atol=1e-5)


@pytest.mark.parametrize("gamma", [0.7, 1.5])
@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_is_batchgenerators(gamma: float, inverted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    image = _image(SIZES[0])
    rows = _rows(image)
    intensity.change_gamma(rows, np.array([gamma]), inverted=inverted)
    monkeypatch.setattr(np.random, "uniform", lambda *_: gamma)
    theirs = augment_gamma(image[None].copy(), invert_image=inverted, per_channel=True, retain_stats=True)[0]
    assert np.abs(theirs - image).max() > 0.1
    np.testing.assert_allclose(rows[0], theirs, atol=2e-5)


def test_an_even_image_stays_finite() -> None:
    rows = torch.full((1, 4, 4), 2.0)
    intensity.change_gamma(rows, np.array([1.3]), inverted=True)
    intensity.change_contrast(rows, np.array([1.2]))
    assert torch.equal(rows, torch.full((1, 4, 4), 2.0))


def test_intensities_change_in_batchgenerators_order() -> None:
    image = _image(SIZES[0])
    drawn = Draw(None, (False,) * 3, 0.0, 0, *(np.array([value]) for value in (0.8, 1.2, 0.8, 0.6, 1.4, 0.8)))
    images = torch.from_numpy(image.copy())[None, None]
    intensity.change_intensities(images, [drawn], False)
    expected = _rows(image)
    intensity.blur(expected, drawn.blur)
    expected *= 1.2
    intensity.change_contrast(expected, drawn.contrast)
    intensity.lower_resolution(expected, drawn.zoom, [drawn.mirrored], False)
    intensity.change_gamma(expected, drawn.gamma_inverted, inverted=True)
    intensity.change_gamma(expected, drawn.gamma, inverted=False)
    torch.testing.assert_close(images[0], expected)
    names = list(Augmentation(AugmentationPlan(SIZES[0])).transforms)
    assert names == ["turn", "noise", "blur", "brightness", "contrast", "zoom", "gamma_inverted", "gamma", "mirrored"]


@pytest.mark.parametrize("change", ["blur", "low", "contrast", "gamma"])
def test_several_rows_at_once_as_on_a_gpu_equal_each_alone(change: str) -> None:
    images = [_image((9, 12, 10)), _image((9, 12, 10))[::-1].copy(), _image((9, 12, 10)) + 1]
    values = np.array([0.55, 0.7, 0.9])
    mirrored = [(False, True, True), (True, False, True), (False, False, False)]

    def do(rows: Tensor, which: slice) -> Tensor:
        if change == "blur":
            intensity.blur(rows, values[which])
        elif change == "low":
            intensity.lower_resolution(rows, values[which], mirrored[which], False)
        elif change == "contrast":
            intensity.change_contrast(rows, values[which])
        else:
            intensity.change_gamma(rows, values[which], inverted=True)
        return rows

    together = do(_rows(*images), slice(0, 3))
    for i, image in enumerate(images):
        torch.testing.assert_close(together[i], do(_rows(image), slice(i, i + 1))[0], atol=1e-5, rtol=1e-5)


CASES: list[tuple[tuple[int, ...], list[float], float]] = [
    ((12, 16, 14), [0.4, -0.3, 0.5], 1.0),
    ((12, 16, 14), [0.0, 0.0, 0.0], 1.37),
    ((12, 16, 14), [-0.5, 0.2, 0.1], 0.7),
    ((20, 24), [2.0], 0.8),
    ((5, 20, 24), [-1.2], 1.4),
]


@pytest.mark.parametrize(("patch_size", "angles", "scale"), CASES)
def test_turning_is_batchgenerators(
    patch_size: tuple[int, ...], angles: list[float], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With linear interpolation there too; its labels go the same way."""
    plan = AugmentationPlan(patch_size)
    image, labels = _image(plan.read_size), np.clip(np.round(_image(plan.read_size) / 2), -1, 2).astype(np.int64)
    flat = plan.in_plane_only
    data, seg = (a[None] if flat else a[None, None] for a in (image, labels.astype(np.float32)))
    drawn = iter([0.0, *(number for angle in angles for number in (0.0, angle)), 0.0, scale])
    monkeypatch.setattr(np.random, "uniform", lambda *_: next(drawn))
    options: dict[str, Any] = {"order_data": 1, "border_mode_data": "constant", "order_seg": 1, "border_cval_seg": -1}
    theirs = augment_spatial(
        data, seg, plan.turned_size, do_elastic_deform=False, random_crop=False, **options
    )  # fmt: skip
    turn = turn_matrix(np.array(angles), scale)
    mine = cut_patches(
        torch.from_numpy(image)[None, None], torch.from_numpy(labels)[None],
        [_draw(turn, (False,) * len(patch_size))], patch_size, flat,
    )  # fmt: skip
    # Float32 here, float64 there: a voxel on the very edge of what was read may fall to either side.
    close = np.isclose(mine[0][0, 0].numpy(), theirs[0].reshape(patch_size), atol=2e-3)
    assert close.mean() > 0.999
    assert (mine[1][0].numpy() == theirs[1].reshape(patch_size)).mean() > 0.999
    assert set(np.unique(mine[1])) >= {0, 1, 2}
