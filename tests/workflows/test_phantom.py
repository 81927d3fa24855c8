from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from umamba_cli.pipeline.data.checks import check_dataset
from umamba_cli.pipeline.data.dataset import find_images
from umamba_cli.pipeline.data.images import read_image, read_label_map
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Grid
from umamba_cli.pipeline.workflows.phantom import LABELS, draw_phantom_dataset, phantom_case

Drawn = tuple[NDArray[Any], NDArray[np.uint8], Grid]


@pytest.fixture(scope="module")
def drawn() -> list[Drawn]:
    return [phantom_case(np.random.default_rng(seed)) for seed in range(16)]


def best_dice_by_intensity(values: NDArray[Any], target: NDArray[np.bool_]) -> float:
    """The Dice of the best classifier of single intensities there can be: fitted to the very voxels it is tried on.

    Intensities are binned; the best set of bins is a prefix of the bins by their share of target voxels.
    """
    low, high = np.percentile(values, [0.1, 99.9])
    bins = np.clip((values - low) / (high - low) * 300, 0, 299).astype(int)
    voxels, hits = np.bincount(bins, minlength=300), np.bincount(bins, weights=target, minlength=300)
    order = np.argsort(-hits / np.maximum(voxels, 1))
    dice = 2 * np.cumsum(hits[order]) / (np.cumsum(voxels[order]) + target.sum())
    return float(dice.max())


def test_the_intensity_classifier_of_these_tests_is_no_straw_man() -> None:
    values = np.array([1.0, 2.0, 5.0, 6.0, 9.0])
    assert best_dice_by_intensity(values, np.array([False, True, False, True, False])) == 1


def test_intensity_alone_does_not_segment(drawn: list[Drawn]) -> None:
    values = np.concatenate([((v - v.mean(dtype=float)) / v.std(dtype=float)).ravel() for v, _, _ in drawn])
    labels = np.concatenate([labels.ravel() for _, labels, _ in drawn])
    assert best_dice_by_intensity(values, labels > 0) < 0.6
    for value in range(1, 5):
        assert best_dice_by_intensity(values, labels == value) < 0.65


def test_intensity_alone_does_not_segment_a_single_case(drawn: list[Drawn]) -> None:
    # Not even where the classifier is fitted to each case, which takes its intensity scale and bias out of the game.
    dice = [best_dice_by_intensity(voxels.astype(float).ravel(), labels.ravel() > 0) for voxels, labels, _ in drawn]
    assert np.mean(dice) < 0.6


def test_every_label_is_in_every_case(drawn: list[Drawn]) -> None:
    for _, labels, _ in drawn:
        assert np.unique(labels).tolist() == sorted(LABELS.values())


def test_lesions_are_few_not_tiny_and_touch_nothing_but_the_liver(drawn: list[Drawn]) -> None:
    counts = []
    for _, labels, _ in drawn:
        parts, count = ndimage.label(labels == LABELS["lesion"])
        counts.append(count)
        assert 1 <= count <= 4
        assert np.bincount(parts.ravel())[1:].min() >= 40
        mostly = labels[ndimage.binary_dilation(parts > 0) & (parts == 0)]
        assert np.mean(mostly == LABELS["liver"]) > 0.7
    assert len(set(counts)) > 1


def test_labels_lie_where_the_organs_were_drawn(drawn: list[Drawn]) -> None:
    for voxels, labels, _ in drawn:
        liver, kidneys, vessel, lesion = (float(np.median(voxels[labels == value])) for value in range(1, 5))
        assert lesion < 0.7 * liver
        assert liver < kidneys < 0.95 * vessel


def test_scales_number_types_grids_differ_between_cases(drawn: list[Drawn]) -> None:
    assert {voxels.dtype.name for voxels, _, _ in drawn} == {"int16", "uint16", "float32"}
    brightness = [np.percentile(voxels, 99) for voxels, _, _ in drawn]
    assert max(brightness) > 30 * min(brightness)
    grids = [grid for _, _, grid in drawn]
    assert len({grid.shape for grid in grids}) > 4
    assert len({grid.direction for grid in grids}) > 2
    for voxels, labels, grid in drawn:
        assert voxels.shape == labels.shape == grid.shape
        np.testing.assert_allclose(grid.shape, (20, 56, 56), atol=3)
        np.testing.assert_allclose(grid.spacing_mm, (3.0, 1.2, 1.2), rtol=0.05)


def test_a_case_follows_from_its_random_numbers() -> None:
    voxels, labels, grid = phantom_case(np.random.default_rng(5))
    again, labels_again, grid_again = phantom_case(np.random.default_rng(5))
    other, _, _ = phantom_case(np.random.default_rng(6))
    np.testing.assert_array_equal(voxels, again)
    np.testing.assert_array_equal(labels, labels_again)
    assert grid == grid_again
    assert other.shape != voxels.shape or (other != voxels).any()


def test_other_shapes_and_spacings_hold_the_same_anatomy() -> None:
    _, labels, grid = phantom_case(np.random.default_rng(0), shape=(12, 28, 32), spacing_mm=(5.0, 2.0, 2.0))
    assert np.unique(labels).tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(grid.spacing_mm, (5.0, 2.0, 2.0), rtol=0.05)


def test_a_dataset_passes_the_check_and_holds_what_was_drawn(tmp_path: Path) -> None:
    dataset = draw_phantom_dataset(tmp_path / "Dataset900_Phantom", cases=3, seed=7)
    assert [case.identifier for case in dataset.cases] == ["phantom_000", "phantom_001", "phantom_002"]
    assert dataset.description.labels == LABELS
    assert check_dataset(dataset, workers=1).problems == {}
    voxels, labels, grid = phantom_case(np.random.default_rng([7, 0, 1]))
    case = dataset.cases[1]
    image = read_image(case.images)
    np.testing.assert_array_equal(image.voxels[0], voxels)
    assert image.grid.differences(grid) == []
    assert case.label is not None
    np.testing.assert_array_equal(read_label_map(case.label).labels, labels)


def test_the_same_seed_draws_the_same_dataset_and_more_cases_only_add(tmp_path: Path) -> None:
    few = draw_phantom_dataset(tmp_path / "few", cases=1, seed=3)
    more = draw_phantom_dataset(tmp_path / "more", cases=2, seed=3)
    other = draw_phantom_dataset(tmp_path / "other", cases=1, seed=4)
    assert few.cases[0].images[0].read_bytes() == more.cases[0].images[0].read_bytes()
    assert few.cases[0].images[0].read_bytes() != other.cases[0].images[0].read_bytes()


def test_cases_to_predict_are_others_than_those_to_train_on(tmp_path: Path) -> None:
    dataset = draw_phantom_dataset(tmp_path, cases=1, test_cases=2)
    test_images = find_images(tmp_path / "imagesTs", ".nii.gz")
    assert sorted(test_images) == ["phantom_001", "phantom_002"]
    assert sorted(path.name for path in (tmp_path / "labelsTs").iterdir()) == [
        "phantom_001.nii.gz",
        "phantom_002.nii.gz",
    ]
    trained = read_image(dataset.cases[0].images).voxels
    for paths in test_images.values():
        held_back = read_image(paths).voxels
        assert held_back.shape != trained.shape or (held_back != trained).any()


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 and 0 cases"):
        draw_phantom_dataset(tmp_path, cases=0)
    with pytest.raises(InputError, match="shape"):
        phantom_case(np.random.default_rng(0), shape=(4, 56, 56))
    with pytest.raises(InputError, match="shape"):
        phantom_case(np.random.default_rng(0), shape=(56, 56))
