"""The batched augmentation as a whole: repeatable, each patch for itself, nothing lost, nothing invented."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from umamba_cli.pipeline.training.augmentation import (
    AugmentationPlan,
    BatchedAugmentation,
    batched,
    default_augmentation,
    intensity,
    spatial,
)
from umamba_cli.pipeline.training.augmentation.draws import Draw, draw, turn_matrix
from umamba_cli.pipeline.training.augmentation.spatial import cut_patches

PLANS = [
    AugmentationPlan((16, 20, 12)),
    AugmentationPlan((5, 24, 20)),
    AugmentationPlan((24, 20)),
    AugmentationPlan((32, 16), mask_channels=(1,)),
]
SEEDS = list(range(24))


def _batch(plan: AugmentationPlan, count: int = len(SEEDS)) -> tuple[Tensor, Tensor]:
    generator = np.random.default_rng(0)
    labels = generator.choice([0, 0, 0, 1, 3], (count, *[n // 4 + 1 for n in plan.read_size]))
    for axis, n in enumerate(plan.read_size):
        labels = labels.repeat(4, axis + 1).take(range(n), axis + 1)
    labels[..., : plan.read_size[-1] // 3] = -1
    images = generator.standard_normal((count, 2, *plan.read_size)) + labels[:, None]
    return torch.from_numpy(images.astype(np.float32)), torch.from_numpy(labels)


def _still(dimensions: int) -> Draw:
    one = np.ones(1)
    return Draw(None, (False,) * dimensions, 0.0, 0, np.zeros(1), one, one, one, one, one)


def _centre(array: Tensor, size: tuple[int, ...]) -> Tensor:
    first = array.dim() - len(size)
    for axis, n in enumerate(size):
        array = array.narrow(first + axis, (array.shape[first + axis] - n) // 2, n)
    return array


@pytest.mark.parametrize("plan", PLANS)
def test_the_network_gets_its_patch_with_known_labels(plan: AugmentationPlan) -> None:
    images, labels = _batch(plan)
    before = images.clone(), labels.clone()
    new_images, new_labels = BatchedAugmentation(plan)(images, labels, SEEDS)
    assert new_images.shape == (len(SEEDS), 2, *plan.patch_size)
    assert new_labels.shape == (len(SEEDS), *plan.patch_size)
    assert (new_images.dtype, new_labels.dtype) == (torch.float32, torch.int64)
    assert new_images.isfinite().all()
    assert set(new_labels.unique().tolist()) == {-1, 0, 1, 3}
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])
    changed = (new_images != _centre(images, plan.patch_size)).flatten(1).any(1)
    assert changed.sum() > len(SEEDS) / 2


@pytest.mark.parametrize("plan", PLANS)
def test_a_patch_depends_on_its_content_and_seed_alone(plan: AugmentationPlan) -> None:
    """Bit for bit: repeated, in another order, by itself, in another memory format."""
    augment = BatchedAugmentation(plan)
    images, labels = _batch(plan)
    new_images, new_labels = augment(images, labels, SEEDS)
    order = np.random.default_rng(1).permutation(len(SEEDS))
    layout = torch.channels_last if images.dim() == 4 else torch.channels_last_3d
    moved = augment(images[order].to(memory_format=layout), labels[order], [SEEDS[i] for i in order])
    assert torch.equal(moved[0], new_images[order])
    assert torch.equal(moved[1], new_labels[order])
    for i in SEEDS:
        alone = augment(images[i : i + 1], labels[i : i + 1], [SEEDS[i]])
        assert torch.equal(alone[0][0], new_images[i])
        assert torch.equal(alone[1][0], new_labels[i])
    assert not torch.equal(augment(images, labels, [seed + 100 for seed in SEEDS])[0], new_images)


@pytest.mark.parametrize("plan", PLANS)
def test_all_at_once_as_on_a_gpu_equals_one_by_one(plan: AugmentationPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = _batch(plan)
    one_by_one = BatchedAugmentation(plan)(images, labels, SEEDS)
    calls = []

    def together(numbers: np.ndarray, _: torch.device) -> list[np.ndarray]:
        calls.append(numbers.size)
        return [numbers] if numbers.size else []

    monkeypatch.setattr(spatial, "parts", together)
    monkeypatch.setattr(intensity, "parts", together)
    at_once = BatchedAugmentation(plan)(images, labels, SEEDS)
    assert max(calls) > 5
    torch.testing.assert_close(at_once[0], one_by_one[0], atol=1e-3, rtol=0)
    assert (at_once[1] == one_by_one[1]).float().mean() > 0.9999


def test_threads_do_not_change_what_is_turned() -> None:
    plan = PLANS[0]
    images, labels = _batch(plan, 1)
    still = replace(_still(3), turn=turn_matrix(np.array([0.3, 0.2, -0.4]), 1.2))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            results.append(cut_patches(images, labels, [still], plan.patch_size, False))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0])
        assert torch.equal(result[1], results[0][1])


@pytest.mark.parametrize("plan", PLANS)
def test_nothing_drawn_is_the_centre(plan: AugmentationPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    still = _still(len(plan.patch_size))
    still = replace(still, **{name: getattr(still, name).repeat(2) for name in CHANNEL_FIELDS})
    monkeypatch.setattr(batched, "draw", lambda *_: still)
    images, labels = _batch(plan)
    new_images, new_labels = BatchedAugmentation(plan)(images, labels, SEEDS)
    assert torch.equal(new_labels, _centre(labels, plan.patch_size))
    expected = _centre(images, plan.patch_size).clone()
    for channel in plan.mask_channels:
        expected[:, channel][new_labels < 0] = 0
    assert torch.equal(new_images, expected)


CHANNEL_FIELDS = ("blur", "brightness", "contrast", "zoom", "gamma_inverted", "gamma")


def test_a_quarter_turn_by_hand() -> None:
    """About the first axis, new[z, y, x] is old[z, x, 4 - y]; at scale 2 every second voxel is seen."""
    images = torch.arange(7**3, dtype=torch.float32).view(1, 1, 7, 7, 7)
    labels = torch.arange(7**3).view(1, 7, 7, 7) % 6 - 1
    quarter = replace(_still(3), turn=turn_matrix(np.array([np.pi / 2, 0, 0]), 1.0))
    new_images, new_labels = cut_patches(images, labels, [quarter], (5, 5, 5), False)
    old_image, old_labels = images[0, 0, 1:6, 1:6, 1:6], labels[0, 1:6, 1:6, 1:6]
    for z, y, x in itertools.product(range(5), repeat=3):
        assert new_images[0, 0, z, y, x] == pytest.approx(float(old_image[z, x, 4 - y]), abs=1e-2)
        assert new_labels[0, z, y, x] == old_labels[z, x, 4 - y]
    doubled = replace(_still(3), turn=turn_matrix(np.zeros(3), 2.0))
    new_images, new_labels = cut_patches(images, labels, [doubled], (3, 3, 3), False)
    torch.testing.assert_close(new_images[0, 0], images[0, 0, 1::2, 1::2, 1::2], atol=1e-3, rtol=0)
    assert torch.equal(new_labels[0], labels[0, 1::2, 1::2, 1::2])


def test_a_quarter_turn_in_the_plane_and_mirrored_slices() -> None:
    images, labels = _batch(PLANS[1], 1)
    read = labels[:, :, :7, :7], images[..., :7, :7]
    turned = replace(_still(3), turn=turn_matrix(np.array([np.pi / 2]), 1.0), mirrored=(True, False, False))
    new_images, new_labels = cut_patches(read[1], read[0], [turned], (5, 5, 5), True)
    expected = torch.rot90(_centre(read[0], (5, 5, 5)).flip(1), 1, (2, 3))
    assert torch.equal(new_labels, expected)
    expected_images = torch.rot90(_centre(read[1], (5, 5, 5)).flip(2), 1, (3, 4))
    torch.testing.assert_close(new_images, expected_images, atol=1e-4, rtol=0)


@pytest.mark.parametrize("plan", PLANS[:3])
def test_mirroring_a_turned_patch_is_mirroring_the_result(plan: AugmentationPlan) -> None:
    images, labels = _batch(plan, 1)
    angles = np.array([0.2, 0.3, -0.1]) if len(plan.turned_size) == 3 else np.array([0.7])
    plain = replace(_still(len(plan.patch_size)), turn=turn_matrix(angles, 0.9))
    flips = tuple(axis % 2 == 0 for axis in range(len(plan.patch_size)))
    axes = [axis for axis, flip in enumerate(flips) if flip]
    one = cut_patches(images, labels, [plain], plan.patch_size, plan.in_plane_only)
    other = cut_patches(images, labels, [replace(plain, mirrored=flips)], plan.patch_size, plan.in_plane_only)
    torch.testing.assert_close(other[0], one[0].flip([2 + axis for axis in axes]), atol=1e-4, rtol=0)
    assert (other[1] == one[1].flip([1 + axis for axis in axes])).float().mean() > 0.999


def test_beyond_what_was_read_is_outside_and_zero() -> None:
    images, labels = torch.ones(1, 1, 8, 8), torch.ones(1, 8, 8, dtype=torch.int64)
    far = replace(_still(2), turn=turn_matrix(np.array([0.0]), 3.0))
    new_images, new_labels = cut_patches(images, labels, [far], (6, 6), False)
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[2:4, 2:4] = True  # -7.5, -4.5, -1.5, 1.5, ... from the centre; what was read ends at 3.5
    assert torch.equal(new_labels[0] == 1, inside)
    assert torch.equal(new_labels[0] == -1, ~inside)
    assert torch.equal(new_images[0, 0], inside.float())


def test_many_labels_are_all_kept() -> None:
    """More than are sampled at once; doubling the size keeps every one where its voxel was."""
    labels = torch.arange(144).view(1, 12, 12) - 1
    larger = replace(_still(2), turn=turn_matrix(np.array([0.0]), 1 / 3))
    new_labels = cut_patches(torch.zeros(1, 1, 12, 12), labels, [larger], (30, 30), False)[1]
    torch.testing.assert_close(new_labels[0, 1::3, 1::3], labels[0, 1:11, 1:11])


def test_masked_channels_are_zero_outside() -> None:
    plan = PLANS[3]
    new_images, new_labels = BatchedAugmentation(plan)(*_batch(plan), SEEDS)
    assert not new_images[:, 1][new_labels < 0].any()
    assert new_images[:, 0][new_labels < 0].any()


def test_channels_are_drawn_apart_where_batchgenerators_does() -> None:
    draws = [draw(PLANS[0], 2, seed) for seed in range(3000)]
    for name, neutral in (("brightness", 1), ("contrast", 1), ("gamma", 1), ("gamma_inverted", 1)):
        values = np.array([getattr(each, name) for each in draws])
        touched = values != neutral
        assert (touched[:, 0] == touched[:, 1]).all()
        assert (values[touched[:, 0], 0] != values[touched[:, 0], 1]).all()
    for name, neutral, share in (("blur", 0, 0.2), ("zoom", 1, 0.25)):
        touched = np.array([getattr(each, name) for each in draws]) != neutral
        assert touched.all(1).mean() == pytest.approx(share / 4, abs=0.015)
        assert (touched.sum(1) == 1).mean() == pytest.approx(share / 2, abs=0.02)


def test_a_cascade_is_refused() -> None:
    with pytest.raises(ValueError, match="cascade"):
        BatchedAugmentation(AugmentationPlan((8, 8, 8), previous_labels=(1,)))


def test_the_default_is_decided_by_device_and_plan_alone() -> None:
    plan, cascade = AugmentationPlan((8, 8, 8)), AugmentationPlan((8, 8, 8), previous_labels=(1,))
    assert [default_augmentation(device, plan)[0] for device in ("cuda", "cpu", "mps")] == [
        "batched",
        "batched",
        "workers",
    ]
    assert {default_augmentation(device, cascade)[0] for device in ("cuda", "cpu", "mps")} == {"workers"}
