from __future__ import annotations

import numpy as np
import pytest
from phantoms import nnunet_plans

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.data.images import Image
from umamba_cli.pipeline.geometry import Grid
from umamba_cli.pipeline.inference.export import labels_on_image_grid, probabilities_on_image_grid
from umamba_cli.pipeline.preprocessing.case import preprocess

OBLIQUE = (0.8, 0.0, 0.6, 0.0, -1.0, 0.0, 0.6, 0.0, -0.8)
LABELS = DatasetDescription(channel_names={"0": "MR"}, labels={"background": 0, "a": 1, "b": 2}, file_ending=".nii.gz")
REGIONS = DatasetDescription(
    channel_names={"0": "MR"},
    labels={"background": 0, "whole": (1, 2, 3), "core": (2, 3), "enhancing": 3},
    regions_class_order=(1, 2, 3),
    file_ending=".nii.gz",
)
GRID = Grid((12, 20, 30), (2.5, 0.9, 0.7), (4.0, 5.0, 6.0), OBLIQUE)


def _image_with_a_bright_spot(at: tuple[int, int, int]) -> Image:
    voxels = np.zeros((1, *GRID.shape), dtype=np.float32)
    voxels[0, 2:11, 3:18, 4:29] = 1  # the rest is cropped away
    voxels[(0, *(slice(i - 1, i + 2) for i in at))] = 100
    return Image(voxels, GRID)


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("new_spacing", [(2.5, 0.9, 0.7), (1.3, 1.1, 0.6)])
def test_a_prediction_lands_on_the_right_voxel(transpose: tuple[int, ...], new_spacing: tuple[float, ...]) -> None:
    spot = (4, 14, 9)
    plans = nnunet_plans(spacing=tuple(new_spacing[axis] for axis in transpose), transpose=transpose)
    configuration = plans.configuration("3d_fullres")
    case = preprocess(_image_with_a_bright_spot(spot), None, plans, configuration)
    network_says = (case.image[0] > 0.5 * case.image.max()).astype(np.float32)
    logits = np.stack([1 - network_says, network_says]) * 10
    labels = labels_on_image_grid(logits, case.geometry, configuration, LABELS)
    assert labels.shape == GRID.shape
    assert labels[spot] == 1
    centre = np.argwhere(labels == 1).mean(0)
    np.testing.assert_allclose(centre, spot, atol=0.6)
    assert case.geometry.grid == GRID


def test_probabilities_agree_with_the_labels_and_add_up() -> None:
    plans = nnunet_plans(spacing=(2.0, 1.0, 1.0), transpose=(2, 0, 1))
    configuration = plans.configuration("3d_fullres")
    case = preprocess(_image_with_a_bright_spot((5, 9, 12)), None, plans, configuration)
    logits = np.random.default_rng(0).standard_normal((3, *case.image.shape[1:])).astype(np.float32)
    probabilities = probabilities_on_image_grid(logits, case.geometry, configuration, LABELS)
    assert probabilities.shape == (3, *GRID.shape)
    np.testing.assert_allclose(probabilities.sum(0), 1, rtol=1e-5)
    labels = labels_on_image_grid(logits, case.geometry, configuration, LABELS)
    np.testing.assert_array_equal(probabilities.argmax(0), labels)
    assert probabilities[0, 0, 0, 0] == 1


def test_regions_are_written_one_over_the_other_in_their_order() -> None:
    plans = nnunet_plans(spacing=GRID.spacing_mm)
    configuration = plans.configuration("3d_fullres")
    case = preprocess(_image_with_a_bright_spot((5, 9, 12)), None, plans, configuration)
    inside, (z, y, x) = case.image.shape[1:], case.geometry.crop.start
    logits = np.full((3, *inside), -1.0, dtype=np.float32)
    logits[0, 0, 0, :4] = 1  # the whole
    logits[1, 0, 0, 2:5] = 1  # the core, also where nothing of the whole was found
    logits[2, 0, 0, 3] = 1e-3
    labels = labels_on_image_grid(logits, case.geometry, configuration, REGIONS)
    assert labels[z, y, x : x + 6].tolist() == [1, 1, 2, 3, 2, 0]
    assert np.count_nonzero(labels) == 5
    backwards = REGIONS.model_copy(update={"regions_class_order": (3, 2, 1)})
    labels = labels_on_image_grid(logits, case.geometry, configuration, backwards)
    assert labels[z, y, x : x + 6].tolist() == [3, 3, 2, 1, 2, 0]


def test_probabilities_of_regions_are_sigmoids_and_nothing_outside_the_crop() -> None:
    plans = nnunet_plans(spacing=(2.0, 1.0, 1.0), transpose=(2, 0, 1))
    configuration = plans.configuration("3d_fullres")
    case = preprocess(_image_with_a_bright_spot((5, 9, 12)), None, plans, configuration)
    logits = np.full((3, *case.image.shape[1:]), -200, dtype=np.float32)  # whose exponential float32 cannot hold
    logits[0], logits[1] = 0, 2
    probabilities = probabilities_on_image_grid(logits, case.geometry, configuration, REGIONS)
    assert probabilities.shape == (3, *GRID.shape)
    assert probabilities.dtype == np.float32
    assert probabilities[:, 5, 9, 12] == pytest.approx([0.5, 1 / (1 + np.exp(-2)), 0])
    assert probabilities[:, 0, 0, 0].tolist() == [0, 0, 0]
