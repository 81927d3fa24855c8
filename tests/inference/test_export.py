from __future__ import annotations

import numpy as np
import pytest
from phantoms import nnunet_plans

from umamba_cli.pipeline.data.images import Image
from umamba_cli.pipeline.geometry import Grid
from umamba_cli.pipeline.inference.export import labels_on_image_grid, probabilities_on_image_grid
from umamba_cli.pipeline.preprocessing.case import preprocess

OBLIQUE = (0.8, 0.0, 0.6, 0.0, -1.0, 0.0, 0.6, 0.0, -0.8)
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
    labels = labels_on_image_grid(logits, case.geometry, configuration)
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
    probabilities = probabilities_on_image_grid(logits, case.geometry, configuration)
    assert probabilities.shape == (3, *GRID.shape)
    np.testing.assert_allclose(probabilities.sum(0), 1, rtol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(0), labels_on_image_grid(logits, case.geometry, configuration))
    assert probabilities[0, 0, 0, 0] == 1
