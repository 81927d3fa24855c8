"""Both forms of the augmentation draw from the same distributions, transform by transform."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import ks_2samp, kstest, uniform

from umamba_cli.pipeline.training.augmentation import Augmentation, AugmentationPlan
from umamba_cli.pipeline.training.augmentation.draws import draw
from umamba_cli.pipeline.training.augmentation.intensity import change_intensities
from umamba_cli.pipeline.training.augmentation.spatial import cut_patches

NAMES = ("turn", "noise", "blur", "brightness", "contrast", "zoom", "gamma_inverted", "gamma", "mirrored")
SPACE, FLAT, PLANE = AugmentationPlan((10, 14, 12)), AugmentationPlan((4, 18, 16)), AugmentationPlan((22, 20))
CASES = [
    *((name, SPACE) for name in NAMES),
    *((name, plan) for plan in (FLAT, PLANE) for name in ("turn", "zoom", "mirrored")),  # these know axes apart
]
TRIES = 500


def _patch(plan: AugmentationPlan) -> tuple[np.ndarray, np.ndarray]:
    """An uneven image, so that what is turned or mirrored shows, and labels with an edge to the outside."""
    image = 4 * gaussian_filter(np.random.default_rng(0).standard_normal(plan.read_size), 1) + np.linspace(
        0, 2, plan.read_size[-1]
    )
    labels = (image > 1.5).astype(np.int64)
    labels[..., :3] = -1
    return image.astype(np.float32), labels


def _centre(image: np.ndarray, plan: AugmentationPlan) -> np.ndarray:
    start = [(n - m) // 2 for n, m in zip(image.shape, plan.patch_size, strict=True)]
    return image[tuple(slice(a, a + m) for a, m in zip(start, plan.patch_size, strict=True))]


def _theirs(plan: AugmentationPlan, name: str) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    transform: Any = Augmentation(plan).transforms[name]
    if name == "turn":
        (transform.args[0] if plan.in_plane_only else transform).order_data = 1  # ours is linear
    image, labels = _patch(plan)
    if name != "turn":
        image, labels = _centre(image, plan), _centre(labels, plan)

    def one(seed: int) -> tuple[np.ndarray, np.ndarray]:
        np.random.seed(seed)
        random.seed(seed)
        result = transform(data=image[None, None].copy(), seg=labels[None, None].astype(np.float32))
        return result["data"][0, 0], result["seg"][0, 0]

    return one


def _ours(plan: AugmentationPlan, name: str) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    image, labels = (torch.from_numpy(array)[None] for array in _patch(plan))
    one = np.ones(1)
    still: dict[str, Any] = dict.fromkeys(NAMES[2:-1], one)
    still |= {"turn": None, "mirrored": (False,) * len(plan.patch_size), "noise": 0.0, "blur": np.zeros(1)}
    del still[name]

    def one_patch(seed: int) -> tuple[np.ndarray, np.ndarray]:
        drawn = replace(draw(plan, 1, seed), **still)
        images, maps = cut_patches(image[:, None], labels, [drawn], plan.patch_size, plan.in_plane_only)
        change_intensities(images, [drawn], plan.in_plane_only)
        return images[0, 0].numpy(), maps[0].numpy()

    return one_patch


@pytest.mark.parametrize(("name", "plan"), CASES)
def test_effects_are_distributed_alike(name: str, plan: AugmentationPlan) -> None:
    """The share of patches touched, and the mean, the spread and the extremes of what is done to them."""
    before = _centre(_patch(plan)[0], plan)
    figures: list[np.ndarray] = []
    for one, first in ((_theirs(plan, name), 0), (_ours(plan, name), 10**6)):
        found = []
        for seed in range(first, first + TRIES):
            image, labels = one(seed)
            if not np.array_equal(image, before):
                effect = image - before
                found.append([
                    effect.mean(), np.log(effect.std()), np.abs(effect).max(), image.std(), image.flat[0],
                    (labels == 1).mean(), (labels == -1).mean(),
                ])  # fmt: skip
        figures.append(np.array(found))
    share = [len(found) / TRIES for found in figures]
    error = np.sqrt(2 * max(np.mean(share) * (1 - np.mean(share)), 1e-3) / TRIES)
    assert abs(share[0] - share[1]) < 4 * error
    assert len(figures[0]) > 30
    # Beyond float32, against figures that are the same in all patches; mirroring makes but 8 different ones.
    for theirs, ours in zip(figures[0].T, figures[1].T, strict=True):
        if max(np.ptp(theirs), np.ptp(ours)) > 1e-4:
            assert ks_2samp(np.round(theirs, 4), np.round(ours, 4)).pvalue > 1e-3
        else:
            assert theirs.mean() == pytest.approx(ours.mean(), abs=1e-4)


def test_parameters_are_drawn_as_stated() -> None:
    """nnU-Net's probabilities and ranges; either side of 1 equally often where batchgenerators draws so."""
    draws = [draw(PLANE, 1, seed) for seed in range(6000)]
    turns = [each.turn for each in draws if each.turn is not None]
    scales = np.array([np.sqrt(np.linalg.det(turn)) for turn in turns])
    angles = np.array([np.arctan2(turn[0, 1], turn[0, 0]) for turn in turns])
    plain = {"noise": (0.1, 0, 0.1), "blur": (0.1, 0.5, 1), "brightness": (0.15, 0.75, 1.25), "zoom": (0.125, 0.5, 1)}
    for name, (share, low, high) in plain.items():
        values = np.array([getattr(each, name) for each in draws]).ravel()
        _is_uniform(values[values != (0 if name in ("noise", "blur") else 1)], share, low, high)
    angles = angles[np.abs(angles) > 1e-9]
    _is_uniform(angles, 0.2, -np.pi, np.pi)
    sided = {"contrast": (0.15, 0.75, 1.25), "gamma_inverted": (0.1, 0.7, 1.5), "gamma": (0.3, 0.7, 1.5)}
    for name, (share, low, high) in sided.items():
        values = np.array([getattr(each, name) for each in draws]).ravel()
        _is_uniform(values[values < 1], share / 2, low, 1)
        _is_uniform(values[values > 1], share / 2, 1, high)
    _is_uniform(scales[scales < 1 - 1e-9], 0.1, 0.7, 1)
    _is_uniform(scales[scales > 1 + 1e-9], 0.1, 1, 1.4)


def _is_uniform(values: np.ndarray, share: float, low: float, high: float) -> None:
    assert len(values) / 6000 == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 6000))
    assert kstest(values, uniform(low, high - low).cdf).pvalue > 1e-3
