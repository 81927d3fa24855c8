from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from numpy.typing import NDArray

from umamba_cli.pipeline.reporting.validation_patch import draw_validation_patch

NAMES = {1: "front", 2: "back"}
GREY = 128


def labels_of(shape: tuple[int, ...], value: int = 1) -> NDArray[np.int64]:
    labels = np.zeros(shape, dtype=np.int64)
    labels[..., 10:30, 10:30] = value
    return labels


def drawn(path: Path, image: NDArray[Any], labels: NDArray[Any], prediction: NDArray[Any]) -> NDArray[Any]:
    draw_validation_patch(
        path, image, labels, prediction, spacing_mm=(1.0,) * labels.ndim, label_names=NAMES, title="epoch 3"
    )
    return np.asarray(imageio.imread(path))[..., :3].astype(int)


def panels(picture: NDArray[Any]) -> list[NDArray[Any]]:
    """Image, reference, prediction, without title and legend."""
    return np.array_split(picture[100:-100], 3, axis=1)


def colourful(picture: NDArray[Any]) -> float:
    """The share of pixels that are not grey."""
    return float((np.ptp(picture, axis=-1) > 20).mean())


def striped(picture: NDArray[Any]) -> float:
    """The share of pixels of the stripes' grey."""
    return float((picture == GREY).all(axis=-1).mean())


@pytest.mark.parametrize("shape", [(40, 40), (5, 40, 40)])
@pytest.mark.parametrize("channels", [0, 2])
def test_patches_of_two_and_three_axes_with_and_without_channels(
    tmp_path: Path, shape: tuple[int, ...], channels: int
) -> None:
    image = np.zeros((channels, *shape) if channels else shape, dtype=np.float32)
    labels = labels_of(shape)
    plain, reference, prediction = panels(drawn(tmp_path / "patch.png", image, labels, labels))
    assert colourful(plain) == 0
    assert 0.15 < colourful(reference) < 0.35
    assert colourful(reference) == pytest.approx(colourful(prediction), rel=0.05)
    assert not list(tmp_path.glob(".*"))


def test_the_first_channel_is_shown(tmp_path: Path) -> None:
    image = np.stack([np.random.default_rng(0).normal(size=(40, 40)), np.zeros((40, 40))])
    nothing = np.zeros((40, 40), dtype=np.int64)
    assert panels(drawn(tmp_path / "patch.png", image, nothing, nothing))[0].std() > 30


@pytest.mark.parametrize(("value", "hides_prediction"), [(-1, True), (3, False)])
def test_voxels_that_count_nowhere_are_striped_in_the_reference(
    tmp_path: Path, value: int, hides_prediction: bool
) -> None:
    labels = labels_of((3, 40, 40))
    prediction = labels_of((3, 40, 40))
    labels[:, 10:30, 20:] = value
    _, reference, predicted = panels(drawn(tmp_path / "patch.png", np.zeros((3, 40, 40)), labels, prediction))
    assert striped(reference) > 0.05
    assert striped(predicted) == 0
    # Half of the label is left in the reference; what is predicted outside the image is not shown.
    _, whole, _ = panels(drawn(tmp_path / "whole.png", np.zeros((3, 40, 40)), prediction, prediction))
    assert colourful(reference) == pytest.approx(colourful(whole) / 2, rel=0.15)
    assert colourful(predicted) == pytest.approx(colourful(whole) / (2 if hides_prediction else 1), rel=0.15)


def test_the_slice_shown_is_one_with_labels_not_one_without_annotation(tmp_path: Path) -> None:
    labels = np.full((6, 40, 40), 3)
    labels[4] = labels_of((40, 40), 2)
    nothing = np.zeros_like(labels)
    _, reference, _ = panels(drawn(tmp_path / "patch.png", np.zeros(labels.shape), labels, nothing))
    assert colourful(reference) > 0.15


def test_a_patch_wholly_outside_is_drawn(tmp_path: Path) -> None:
    labels = np.full((2, 40, 40), -1)
    _, reference, _ = panels(drawn(tmp_path / "patch.png", np.zeros(labels.shape), labels, np.ones_like(labels)))
    assert striped(reference) > 0.3


def test_inputs_are_not_changed(tmp_path: Path) -> None:
    labels = labels_of((2, 40, 40), -1)
    prediction = np.ones_like(labels)
    drawn(tmp_path / "patch.png", np.zeros(labels.shape), labels, prediction)
    assert (labels == labels_of((2, 40, 40), -1)).all()
    assert (prediction == 1).all()


def test_shapes_must_fit(tmp_path: Path) -> None:
    labels = labels_of((2, 40, 40))
    with pytest.raises(ValueError, match="differ"):
        drawn(tmp_path / "patch.png", np.zeros((2, 40, 40)), labels, labels[:1])
    with pytest.raises(ValueError, match="differ"):
        drawn(tmp_path / "patch.png", np.zeros((1, 2, 40, 41)), labels, labels)
