from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from numpy.typing import NDArray

from umamba_cli.pipeline.data.images import write_label_map, write_volume
from umamba_cli.pipeline.geometry import Grid
from umamba_cli.pipeline.reporting.overlay import draw_overlay, label_colour
from umamba_cli.pipeline.reporting.slices import REFERENCE, ShownCase

SHAPE = (4, 24, 20)


def grid(shape: tuple[int, ...] = SHAPE, spacing: tuple[float, ...] = (3.0, 1.0, 1.0)) -> Grid:
    return Grid(shape, spacing, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


def labels(value: int = 1, shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    found = np.zeros(shape, dtype=np.uint8)
    found[1, 6:18, 5:15] = value
    return found


def add(folder: Path, name: str, *, shape: tuple[int, ...] = SHAPE, channels: int = 1, value: int = 1) -> None:
    """A case with an image of noise in `images` and a label map in `labels`."""
    for channel in range(channels):
        voxels = np.random.default_rng(channel).normal(100, 10, shape).astype(np.float32)
        write_volume(folder / "images" / f"{name}_{channel:04d}.nii.gz", voxels, grid(shape))
    write_label_map(folder / "labels" / f"{name}.nii.gz", labels(value, shape), grid(shape))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        add(tmp_path, name)
    return tmp_path


@pytest.fixture
def overlay(umamba: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """The command on the folder's images and labels, in this process."""

    def run(*more: object) -> Any:
        return umamba("overlay", folder / "images", folder / "labels", "-o", folder / "out", "-j", 1, *more)

    return run


def picture(path: Path) -> NDArray[Any]:
    return np.asarray(imageio.imread(path))[..., :3].astype(int)


def pixels_of(shown: NDArray[Any], colour: str, tolerance: int = 12) -> int:
    wanted = [int(colour[index : index + 2], 16) for index in (1, 3, 5)]
    return int((np.abs(shown - wanted).max(axis=-1) <= tolerance).sum())


def test_a_picture_for_each_case(overlay: Callable[..., Any], folder: Path) -> None:
    done = overlay()
    assert done.code == 0
    assert "2 of 2 cases drawn" in done.out
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.png", "b.png"]
    shown = picture(folder / "out" / "a.png")
    image, drawn = np.array_split(shown[:-90], 2, axis=1)
    assert pixels_of(image, label_colour(0)) == 0
    assert pixels_of(drawn, label_colour(0)) > 300
    inside = drawn[drawn.shape[0] // 2 - 20 : drawn.shape[0] // 2 + 20, 240:260]
    assert pixels_of(inside, label_colour(0)) == 0, "an outline, not a filled area"
    assert pixels_of(shown[-90:], label_colour(0)) > 100, "the legend"


def test_names_come_from_dataset_json_and_colours_in_its_order(overlay: Callable[..., Any], folder: Path) -> None:
    add(folder, "c", value=2)
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 1, "y": 2}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    assert overlay("--dataset", folder / "dataset.json").code == 0
    assert pixels_of(picture(folder / "out" / "c.png")[:-90], label_colour(1)) > 300
    assert pixels_of(picture(folder / "out" / "c.png")[:-90], label_colour(0)) == 0
    add(folder, "d", value=9)
    done = overlay("--dataset", folder / "dataset.json")
    assert done.code == 1
    assert "d: labels holds 9, dataset.json knows 0, 1, 2" in done.err


def test_a_reference_has_a_panel_and_lies_dashed_over_the_labels(overlay: Callable[..., Any], folder: Path) -> None:
    assert overlay().code == 0
    without = picture(folder / "out" / "a.png")
    write_label_map(folder / "refs" / "a.nii.gz", np.roll(labels(), 2, axis=1), grid())
    done = overlay("--reference", folder / "refs")
    assert done.code == 0
    shown = picture(folder / "out" / "a.png")  # drawn again
    assert shown.shape[1] == without.shape[1] * 3 // 2
    assert "1 of 2 label maps have no reference and are drawn without: b" in done.err
    assert picture(folder / "out" / "b.png").shape == without.shape


def test_bad_cases_are_listed_and_the_others_drawn(overlay: Callable[..., Any], folder: Path) -> None:
    write_label_map(folder / "labels" / "b.nii.gz", labels(shape=(4, 24, 24)), grid((4, 24, 24)))
    write_label_map(folder / "labels" / "lost.nii.gz", labels(), grid())
    add(folder, "moved")
    write_label_map(folder / "labels" / "moved.nii.gz", labels(), grid(spacing=(3.0, 1.0, 2.0)))
    done = overlay()
    assert done.code == 1
    assert "3 of 4 cases could not be drawn" in done.err
    assert "b: image is 4x24x20, labels is 4x24x24" in done.err
    assert "lost: no image of it in" in done.err
    assert "moved: image and labels differ: spacing" in done.err
    assert [path.name for path in (folder / "out").iterdir()] == ["a.png"]
    document = json.loads(overlay("--json").out)
    assert sorted(document["failed"]) == ["b", "lost", "moved"]
    (folder / "labels" / "a.nii.gz").write_bytes(b"nothing")
    assert overlay().code == 2


def test_images_without_labels_are_left_alone(overlay: Callable[..., Any], folder: Path) -> None:
    (folder / "labels" / "b.nii.gz").unlink()
    done = overlay()
    assert done.code == 0
    assert "1 of 2 images have no label map and are left out: b" in done.err


def test_one_image(umamba: Callable[..., Any], folder: Path) -> None:
    done = umamba("overlay", folder / "images" / "b_0000.nii.gz", folder / "labels", "-o", folder / "out")
    assert done.code == 0
    assert [path.name for path in (folder / "out").iterdir()] == ["b.png"]


def test_a_channel_is_chosen(overlay: Callable[..., Any], folder: Path) -> None:
    add(folder, "a", channels=2)
    assert overlay().code == 0
    first = picture(folder / "out" / "a.png")
    done = overlay("--channel", 1)
    assert (picture(folder / "out" / "a.png") != first).any()
    assert done.code == 1
    assert "b: the image has 1 channel, there is no channel 1" in done.err


def test_a_window(overlay: Callable[..., Any], folder: Path) -> None:
    assert overlay("--window", "-100,0").code == 0
    image = np.array_split(picture(folder / "out" / "a.png")[100:-120], 2, axis=1)[0]
    assert (image[:, 100:400] == 255).all()
    for wrong in ("5", "5,5", "10,0", "a,b", "nan,1", "0,inf"):
        done = overlay("--window", wrong)
        assert done.code == 2
        assert "there is no window" in done.err


def test_several_slices_stand_below_one_another(overlay: Callable[..., Any], folder: Path) -> None:
    found = labels()
    found[2] = found[1]
    write_label_map(folder / "labels" / "a.nii.gz", found, grid())
    assert overlay().code == 0
    one = picture(folder / "out" / "a.png")
    assert overlay("--slices", 5).code == 0
    two = picture(folder / "out" / "a.png")
    assert 1.6 < two.shape[0] / one.shape[0] < 2
    assert pixels_of(two[:-90], label_colour(0)) == pytest.approx(2 * pixels_of(one[:-90], label_colour(0)), rel=0.1)


def test_the_label_maps_are_not_overwritten(umamba: Callable[..., Any], tmp_path: Path) -> None:
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        imageio.imwrite(tmp_path / part / "a.png", np.ones((8, 8), dtype=np.uint8))
    before = (tmp_path / "labels" / "a.png").read_bytes()
    for output in ("labels", "images", "labels/../labels"):
        done = umamba("overlay", tmp_path / "images", tmp_path / "labels", "-o", tmp_path / output)
        assert done.code == 2
        assert "is the folder of what is to be drawn" in done.err
    assert (tmp_path / "labels" / "a.png").read_bytes() == before


def test_pictures_stay_in_colour(umamba: Callable[..., Any], tmp_path: Path) -> None:
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    colours = np.zeros((40, 40, 3), dtype=np.uint8)
    colours[..., 0] = np.arange(40) * 6
    imageio.imwrite(tmp_path / "images" / "a.png", colours)
    imageio.imwrite(tmp_path / "labels" / "a.png", np.pad(np.ones((10, 10), dtype=np.uint8), 15))
    arguments = ("overlay", tmp_path / "images", tmp_path / "labels", "-o", tmp_path / "out")
    assert umamba(*arguments).code == 0
    shown = picture(tmp_path / "out" / "a.png")
    image = np.array_split(shown[150:-150], 2, axis=1)[0]
    assert np.ptp(image[:, 100:-100], axis=-1).max() > 100
    assert umamba(*arguments, "--channel", 0).code == 0
    image = np.array_split(picture(tmp_path / "out" / "a.png")[150:-150], 2, axis=1)[0]
    assert np.ptp(image, axis=-1).max() == 0


def test_folders_that_do_not_fit(umamba: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    write_label_map(tmp_path / "others" / "z.nii.gz", labels(), grid())
    done = umamba("overlay", folder / "images", tmp_path / "others", "-o", folder / "out")
    assert done.code == 2
    assert "no label map in" in done.err
    assert umamba("overlay", folder / "nowhere", folder / "labels", "-o", folder / "out").code == 2
    assert umamba("overlay", folder / "images", folder / "nowhere", "-o", folder / "out").code == 2


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((1, 1, 300), (999.0, 1.0, 1.0)), ((2, 300, 2), (1.0, 1.0, 1.0)), ((1, 3000, 2500), (1, 1, 1))],
)
def test_thin_and_huge_images(tmp_path: Path, shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    found = np.zeros(shape, dtype=np.int32)
    found[0, shape[1] // 2, shape[2] // 2] = 1
    shown = ShownCase(np.zeros(shape, np.float32), {"labels": found}, spacing, {1: "dot"})
    assert draw_overlay(tmp_path / "a.png", shown) == (0,)
    drawn = picture(tmp_path / "a.png")
    assert max(drawn.shape) < 3000
    assert pixels_of(drawn[:-90], label_colour(0), tolerance=80) > 0


@pytest.mark.parametrize(("spacing", "ratio"), [((9.0, 1.0, 2.0), 0.6), ((9.0, 2.0, 2.0), 1.2), ((1.0, 1.0, 9.0), 0.2)])
def test_pixels_keep_their_shape(tmp_path: Path, spacing: tuple[float, ...], ratio: float) -> None:
    # Seen across x where that is the coarsest axis: rows are z then, 4 of them, and columns y, 24.
    everywhere = np.ones(SHAPE, dtype=np.int32)
    shown = ShownCase(np.zeros(SHAPE, np.float32), {"labels": everywhere}, spacing, {1: "all"})
    draw_overlay(tmp_path / "a.png", shown)
    panel = np.array_split(picture(tmp_path / "a.png")[:-60], 2, axis=1)[1]
    dark = panel.max(axis=-1) < 60
    height, width = dark.any(axis=1).sum(), dark.any(axis=0).sum()
    assert height / width == pytest.approx(ratio, rel=0.25)


def test_the_slice_that_differs_most_is_drawn(tmp_path: Path) -> None:
    reference, found = labels().astype(np.int32), labels().astype(np.int32)
    found[3, 2:5, 2:5] = 1
    shown = ShownCase(np.zeros(SHAPE, np.float32), {REFERENCE: reference, "labels": found}, (3.0, 1.0, 1.0), {1: "a"})
    assert draw_overlay(tmp_path / "a.png", shown) == (3,)
    assert draw_overlay(tmp_path / "a.png", shown, count=3) == (1, 2, 3)


def test_the_reference_lies_dashed_over_the_labels(tmp_path: Path) -> None:
    reference = labels().astype(np.int32)
    maps = {REFERENCE: reference, "labels": np.roll(reference, 3, axis=2)}
    draw_overlay(tmp_path / "a.png", ShownCase(np.zeros(SHAPE, np.float32), maps, (3.0, 1.0, 1.0), {1: "a"}))
    panels = np.array_split(picture(tmp_path / "a.png")[110:-120], 3, axis=1)
    white = [pixels_of(panel[:, 60:-60], "#FFFFFF", tolerance=40) for panel in panels]
    assert white[:2] == [0, 0]
    assert white[2] > 50


def test_a_label_within_a_thin_rim_is_seen(tmp_path: Path) -> None:
    found = np.zeros((1, 40, 40), dtype=np.uint8)
    found[0, 10:30, 10:30] = 2
    found[0, 12:28, 12:28] = 1
    black = np.zeros((1, 40, 40), dtype=np.float32)
    case = ShownCase(black, {"labels": found}, (1.0, 1.0, 1.0), {1: "interior", 2: "boundary"})
    draw_overlay(tmp_path / "o.png", case, window=(0, 1))
    interior = np.array([int(label_colour(0)[i : i + 2], 16) for i in (1, 3, 5)])
    shown = picture(tmp_path / "o.png")
    filled = np.all(np.abs(shown - 0.25 * interior) < 4, axis=-1)
    assert filled.sum() > 0.05 * shown.shape[0] * shown.shape[1]


def test_names_in_any_script_and_labels_of_any_size(umamba: Callable[..., Any], tmp_path: Path) -> None:
    add(tmp_path, "病例", value=1)
    big = labels(1).astype(np.uint64) * np.uint64(2**32)
    write_volume(tmp_path / "labels" / "病例.nii.gz", big, grid())
    done = umamba("overlay", tmp_path / "images", tmp_path / "labels", "-o", tmp_path / "out", "-j", 1)
    assert done.code == 0, done.err
    shown = picture(tmp_path / "out" / "病例.png")
    assert pixels_of(shown, label_colour(0)) > 50  # 32 bits would have made 0 of it
    assert "Glyph" not in done.err
