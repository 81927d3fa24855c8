from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from umamba_cli.pipeline.data.store import Store, write_array
from umamba_cli.pipeline.preprocessing.case import sample_annotated_voxels, sample_class_voxels
from umamba_cli.pipeline.training.patches import PatchSampler, PreviousStage

FIRST_DRAWS = [12200, 8908, 2636, 8152, 11220, 3060, 11924, 11116, 9100, 10865, 2777, 12240]


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


def test_plain_draws_are_what_they_always_were(sampler: PatchSampler) -> None:
    """A training that goes on, and one that is repeated, meet the same patches."""
    all_cases = replace(sampler, identifiers=("a", "b", "thin", "empty"), read_size=(8, 20, 20))
    drawn = [all_cases.draw(index)[0] for index in range(12)]
    assert [int(patch.image.max()) for patch in drawn] == FIRST_DRAWS
    assert all(patch.previous is None for patch in drawn)


@pytest.fixture
def regions(tmp_path: Path) -> PatchSampler:
    """Regions (1, 2, 3) and (3,) and (4,) in cases that hold 1 once, 2 a hundred times, 3 ten times, and 4 in one."""
    store = Store(tmp_path / "regions")
    for name in ("three", "four"):
        labels = np.zeros((1, 6, 30, 30), dtype=np.int16)
        labels[0, 0, 0, 0] = 1
        labels[0, 2, :10, :10] = 2
        labels[0, 4, 5, :10] = 3
        labels[0, 5, 5, :10] = 4 * (name == "four")
        counts = np.bincount(labels.ravel(), minlength=5)
        voxels = sample_class_voxels(labels[0], (1, 2, 3, 4), name)
        image = np.zeros((1, *labels.shape[1:]), dtype=np.float32)
        store.write(name, image, labels, voxels, {"class_counts": counts}, patch_size=labels.shape[1:])
    one = (1, 1, 1)
    return PatchSampler(store, ("three",), one, one, 1.0, seed=1, purpose="training", regions=((1, 2, 3), (3,), (4,)))


def test_regions_are_met_alike_and_their_labels_by_size(regions: PatchSampler) -> None:
    met = Counter(int(regions.draw(index)[0].labels.item()) for index in range(600))
    # Two regions are there: the first one's 300 draws fall on 111 voxels, 10 of them label 3.
    assert 300 < met[3] < 360
    assert 240 < met[2] < 300
    assert met[1] < 12
    assert met[0] == met[4] == 0
    met = Counter(int(replace(regions, identifiers=("four",)).draw(index)[0].labels.item()) for index in range(600))
    assert 170 < met[4] < 230


IGNORED = 3


def sparse(folder: Path, *, annotated: bool = True, foreground: bool = True) -> PatchSampler:
    """Cases in which nearly all is ignored."""
    store = Store(folder)
    labels = np.full((1, 10, 30, 30), IGNORED, dtype=np.int16)
    if annotated:
        labels[0, 4, 10:12] = 0
    if foreground:
        labels[0, 4, 10, 20] = 1
    noted = sample_class_voxels(labels[0], (1, 2), "case")
    voxels = sample_annotated_voxels(labels[0], IGNORED, "case")
    image = np.zeros((1, *labels.shape[1:]), dtype=np.float32)
    store.write("case", image, labels, noted, {}, patch_size=labels.shape[1:], annotated_voxels=voxels)
    one = (1, 1, 1)
    return PatchSampler(store, ("case",), one, one, 1 / 3, seed=1, purpose="training")


def test_every_patch_of_sparse_labels_is_centred_on_an_annotated_voxel(tmp_path: Path) -> None:
    sampler = sparse(tmp_path)
    met = [int(sampler.draw(index)[0].labels.item()) for index in range(90)]
    assert met[2::3] == [1] * 30
    assert Counter(met)[0] > 50
    assert IGNORED not in met


def test_without_foreground_a_forced_patch_falls_on_an_annotated_voxel(tmp_path: Path) -> None:
    sampler = sparse(tmp_path, foreground=False)
    assert {int(sampler.draw(index)[0].labels.item()) for index in range(90)} == {0}


def test_where_all_is_ignored_patches_fall_anywhere(tmp_path: Path) -> None:
    sampler = sparse(tmp_path, annotated=False, foreground=False)
    assert {int(sampler.draw(index)[0].labels.item()) for index in range(20)} == {IGNORED}


@pytest.mark.parametrize("flat", [False, True])
def test_the_previous_stage_is_cut_at_the_same_place(sampler: PatchSampler, tmp_path: Path, flat: bool) -> None:
    """Its label map holds the image's own numbers, so that both must agree wherever there is an image."""
    files = {}
    for name in ("a", "b", "thin"):
        files[name] = tmp_path / f"previous_{name}.b2nd"
        image = sampler.store.case(name).image[:]
        write_array(files[name], (image % 100 + 1).astype(np.int8), (8, 16, 16), {})
    narrow, size = ((16, 16), (24, 24)) if flat else ((8, 16, 16), (8, 24, 24))
    stage = PreviousStage(files)
    cascade = replace(sampler, identifiers=tuple(files), network_size=narrow, read_size=size, previous=stage)
    for index in range(9):
        patch, _ = cascade.draw(index)
        assert patch.previous is not None
        assert patch.previous.dtype == np.int16
        assert patch.previous.shape == size
        inside = patch.image[0] > 0
        np.testing.assert_array_equal(patch.previous[inside], patch.image[0][inside].astype(int) % 100 + 1)
        assert not patch.previous[~inside].any()
        plain, _ = replace(cascade, previous=None).draw(index)
        np.testing.assert_array_equal(plain.image, patch.image)
