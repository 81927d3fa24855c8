from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from numpy.typing import NDArray

from umamba_cli.pipeline.reporting.overlay import draw_side_by_side, label_colour, richest_slice

NAMES = {1: "front", 2: "back"}
SHAPE = (3, 40, 40)


def labels_with(value: int = 1, *, z: int = 1, rows: slice = slice(10, 30)) -> NDArray[np.int64]:
    labels = np.zeros(SHAPE, dtype=np.int64)
    labels[z, rows, 10:30] = value
    return labels


def drawn(
    path: Path,
    reference: NDArray[Any],
    prediction: NDArray[Any],
    *,
    image: NDArray[Any] | None = None,
    spacing_mm: tuple[float, ...] = (3.0, 1.0, 1.0),
    names: dict[int, str] = NAMES,
) -> NDArray[Any]:
    if image is None:
        image = np.random.default_rng(0).normal(100, 10, reference.shape).astype(np.float32)
    draw_side_by_side(
        path, image, reference, prediction, spacing_mm=spacing_mm, label_names=names, title="case: a title"
    )
    return np.asarray(imageio.imread(path))[..., :3].astype(int)


def colourful(picture: NDArray[Any]) -> NDArray[Any]:
    """True where a pixel is not grey."""
    return np.asarray(np.ptp(picture, axis=-1) > 20)


def panels(picture: NDArray[Any]) -> list[NDArray[Any]]:
    """Image, reference, prediction: the legend's and the title's rows are cut off."""
    return np.array_split(picture[100:-100], 3, axis=1)


def test_labels_lie_on_the_second_and_third_panel_only(tmp_path: Path) -> None:
    picture = drawn(tmp_path / "overlay.png", labels_with(1), labels_with(1))
    assert picture.shape[1] == 1512
    image, reference, prediction = (colourful(panel) for panel in panels(picture))
    assert not image.any()
    # The label covers a quarter of the slice; panels have margins.
    assert 0.15 < reference.mean() < 0.3
    assert reference.mean() == pytest.approx(prediction.mean(), rel=0.05)
    assert not list(tmp_path.glob(".*"))


def test_the_image_is_seen(tmp_path: Path) -> None:
    picture = drawn(tmp_path / "overlay.png", labels_with(1), labels_with(1))
    assert panels(picture)[0][100:300, 100:400].std() > 30


def test_the_prediction_is_drawn_from_the_prediction(tmp_path: Path) -> None:
    reference = labels_with(1)
    picture = drawn(tmp_path / "overlay.png", reference, labels_with(1, rows=slice(10, 20)))
    _, larger, smaller = (colourful(panel).mean() for panel in panels(picture))
    assert smaller == pytest.approx(larger / 2, rel=0.1)
    other = drawn(tmp_path / "other.png", reference, labels_with(2))
    assert (panels(picture)[1] == panels(other)[1]).mean() > 0.99
    centre = panels(other)[2].shape[0] // 2, panels(other)[2].shape[1] // 2
    orange, blue = panels(other)[1][centre], panels(other)[2][centre]
    assert orange[0] > orange[2] + 20
    assert blue[2] > blue[0] + 20


@pytest.mark.parametrize("names", [NAMES, {}])
def test_no_label_at_all_still_gives_a_picture(tmp_path: Path, names: dict[int, str]) -> None:
    nothing = np.zeros(SHAPE, dtype=np.int64)
    picture = drawn(tmp_path / "overlay.png", nothing, nothing, names=names)
    assert not any(colourful(panel).any() for panel in panels(picture))


@pytest.mark.parametrize(("spacing_y", "ratio"), [(0.5, 0.5), (1.0, 1.0), (2.0, 2.0)])
def test_pixels_have_their_shape(tmp_path: Path, spacing_y: float, ratio: float) -> None:
    everywhere = np.ones(SHAPE, dtype=np.int64)
    picture = drawn(tmp_path / "overlay.png", everywhere, everywhere, spacing_mm=(3.0, spacing_y, 1.0), names={1: "a"})
    middle = colourful(picture[:, 504:1008])[: -int(0.1 * len(picture))]
    height, width = np.ptp(np.nonzero(middle.any(1))[0]), np.ptp(np.nonzero(middle.any(0))[0])
    assert height / width == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros(SHAPE, dtype=np.float32),
        np.full(SHAPE, 7, dtype=np.int16),
        np.where(np.indices(SHAPE)[2] > 35, np.nan, 1.0),
        np.full(SHAPE, np.nan),
    ],
)
def test_images_without_contrast_or_with_gaps(tmp_path: Path, image: NDArray[Any]) -> None:
    picture = drawn(tmp_path / "overlay.png", labels_with(1), labels_with(1), image=image)
    assert colourful(panels(picture)[1]).any()


def test_a_few_bright_voxels_do_not_darken_the_image(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32)
    image[1, 0, 0] = 1e6
    picture = drawn(tmp_path / "overlay.png", labels_with(1), labels_with(1), image=image)
    assert panels(picture)[0][100:300, 100:400].std() > 30


def test_a_picture_of_one_slice_and_a_line_of_pixels(tmp_path: Path) -> None:
    flat = np.ones((1, 30, 50), dtype=np.uint8)
    assert colourful(drawn(tmp_path / "flat.png", flat, flat, spacing_mm=(999.0, 1.0, 1.0))).any()
    line = np.tile(np.arange(2, dtype=np.uint8), (1, 1, 20))
    assert colourful(drawn(tmp_path / "line.png", line, line, spacing_mm=(999.0, 1.0, 1.0))).any()


def test_values_without_a_name_are_drawn(tmp_path: Path) -> None:
    picture = drawn(tmp_path / "overlay.png", labels_with(7), labels_with(7))
    assert colourful(panels(picture)[1]).any()


def test_the_slice_with_most_labels_wins_then_the_fullest() -> None:
    reference = np.zeros((5, 4, 4), dtype=int)
    reference[1] = 1
    reference[3, 0, :2] = [1, 2]
    assert richest_slice(reference, np.zeros_like(reference)) == 3
    reference[0] = reference[3]
    reference[0, 1, 0] = 1
    assert richest_slice(reference, np.zeros_like(reference)) == 0
    prediction = np.zeros_like(reference)
    prediction[3, 2:] = 1
    assert richest_slice(reference, prediction) == 3
    empty = np.zeros_like(reference)
    assert richest_slice(empty, empty) == 2


def test_colours_differ_however_many_labels_there_are() -> None:
    assert len({label_colour(index) for index in range(60)}) == 60


def test_shapes_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="differ"):
        drawn(tmp_path / "overlay.png", labels_with(1), labels_with(1)[:2])
