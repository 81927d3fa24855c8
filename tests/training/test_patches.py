from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from umamba_cli.pipeline.data.store import Store
from umamba_cli.pipeline.preprocessing.case import sample_class_voxels
from umamba_cli.pipeline.training.patches import PatchSampler


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Cases whose voxels hold their own index, so that a patch tells where it was cut."""
    store = Store(tmp_path)
    for name, shape in (("a", (12, 30, 34)), ("b", (12, 30, 34)), ("thin", (3, 30, 34)), ("empty", (12, 30, 34))):
        image = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(1, *shape)
        labels = np.zeros((1, *shape), dtype=np.int16)
        if name != "empty":
            labels[0, 1, 2, 3] = 1
            labels[0, -1, -5:, -5:] = 2
        voxels = sample_class_voxels(labels[0], (1, 2), name)
        store.write(name, image, labels, voxels, {"digest": ""}, patch_size=(8, 16, 16))
    return store


@pytest.fixture
def sampler(store: Store) -> PatchSampler:
    return PatchSampler(store, ("a", "b"), (8, 16, 16), (8, 16, 16), 1 / 3, seed=5, purpose="training")


def test_a_patch_is_cut_where_it_says(sampler: PatchSampler) -> None:
    patch, _ = sampler.draw(0)
    assert patch.image.shape == (1, 8, 16, 16)
    assert patch.labels.shape == (8, 16, 16)
    first = int(patch.image[0, 0, 0, 0]) - 1
    z, y, x = np.unravel_index(first, (12, 30, 34))
    whole = sampler.store.case(sampler.identifier(0)).image[0]
    np.testing.assert_array_equal(patch.image[0], whole[z : z + 8, y : y + 16, x : x + 16])


def test_a_third_of_the_patches_holds_foreground_and_every_class_is_met(sampler: PatchSampler) -> None:
    rare = replace(sampler, read_size=(2, 4, 4), network_size=(2, 4, 4))
    seen = [set(np.unique(rare.draw(index)[0].labels)) & {1, 2} for index in range(120)]
    forced = [labels for index, labels in enumerate(seen) if index % 3 == 2]
    assert all(forced)
    assert Counter(label for labels in forced for label in labels)[1] > 8
    assert sum(bool(labels) for labels in seen) < 70


def test_the_share_of_forced_patches_can_be_chosen(sampler: PatchSampler) -> None:
    small = replace(sampler, read_size=(1, 1, 1), network_size=(1, 1, 1))
    every = replace(small, foreground_share=1.0)
    never = replace(small, foreground_share=0.0)
    assert all(every.draw(index)[0].labels > 0 for index in range(20))
    assert sum(int(never.draw(index)[0].labels.item() > 0) for index in range(200)) < 5


def test_cases_come_in_turn(sampler: PatchSampler) -> None:
    three = replace(sampler, identifiers=("a", "b", "thin"))
    for turn in range(5):
        assert sorted(three.identifier(3 * turn + i) for i in range(3)) == ["a", "b", "thin"]
    assert len({three.identifier(3 * turn) for turn in range(10)}) > 1


def test_an_index_decides_all(sampler: PatchSampler) -> None:
    first, again, other = sampler.draw(7)[0], sampler.draw(7)[0], sampler.draw(8)[0]
    np.testing.assert_array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)
    reseeded = replace(sampler, seed=6)
    assert any(not np.array_equal(sampler.draw(i)[0].image, reseeded.draw(i)[0].image) for i in range(4))
    held_back = replace(sampler, purpose="validation")
    assert any(not np.array_equal(sampler.draw(i)[0].image, held_back.draw(i)[0].image) for i in range(4))


def test_what_lies_outside_is_zero_and_minus_one(sampler: PatchSampler) -> None:
    thin = replace(sampler, identifiers=("thin",))
    patch, _ = thin.draw(0)
    inside = patch.image[0].any(axis=(1, 2))
    assert inside.tolist() == [False] * 2 + [True] * 3 + [False] * 3 or inside.sum() == 3
    assert (patch.labels[~inside] == -1).all()
    assert (patch.labels[inside] >= 0).all()


def test_a_larger_read_reaches_over_the_border_by_half_of_what_it_is_larger(sampler: PatchSampler) -> None:
    wide = replace(sampler, read_size=(8, 24, 24))
    for index in range(30):
        patch, _ = wide.draw(index)
        assert patch.image[:, :, 4:20, 4:20].all(), "the middle, which the network gets, lies within the image"


def test_slices_for_a_flat_network(sampler: PatchSampler) -> None:
    flat = replace(sampler, network_size=(16, 16), read_size=(16, 16), foreground_share=1.0)
    patch, _ = flat.draw(1)
    assert patch.image.shape == (1, 16, 16)
    assert patch.labels.shape == (16, 16)
    assert (patch.labels > 0).any()


def test_a_case_without_foreground_gives_patches_all_the_same(sampler: PatchSampler) -> None:
    patch, _ = replace(sampler, identifiers=("empty",), foreground_share=1.0).draw(0)
    assert patch.image.shape == (1, 8, 16, 16)
