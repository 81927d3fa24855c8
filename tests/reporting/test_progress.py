from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from numpy.typing import NDArray

from umamba_cli.pipeline.reporting.overlay import label_colour
from umamba_cli.pipeline.reporting.progress import draw_progress

RED, BLUE = "#D55E00", "#0072B2"  # validation loss (and learning rate), training loss (and time)


def epoch(number: int, **changes: Any) -> dict[str, Any]:
    good = {
        "epoch": number,
        "train_loss": 1.0 - 0.1 * number,
        "val_loss": 1.1 - 0.1 * number,
        "dice": {"front": 0.1 * number, "back": 0.05 * number},
        "mean_dice": 0.075 * number,
        "learning_rate": 0.01 - 0.001 * number,
        "seconds": 10.0 + number % 2,
    }
    return {**good, **changes}


def drawn(path: Path, epochs: list[dict[str, Any]]) -> NDArray[Any]:
    draw_progress(path, epochs)
    return np.asarray(imageio.imread(path))[..., :3]


def pixels_of(picture: NDArray[Any], colour: str) -> int:
    wanted = [int(colour[index : index + 2], 16) for index in (1, 3, 5)]
    return int(np.count_nonzero((np.abs(picture.astype(int) - wanted) <= 2).all(axis=-1)))


def panel(picture: NDArray[Any], index: int) -> NDArray[Any]:
    third = len(picture) // 3
    return picture[index * third : (index + 1) * third]


def test_three_panels_hold_their_lines(tmp_path: Path) -> None:
    picture = drawn(tmp_path / "progress.png", [epoch(number) for number in range(9)])
    assert picture.shape == (1100, 1000, 3)
    losses, dice, times = (panel(picture, index) for index in range(3))
    for part in (losses, times):
        assert pixels_of(part, RED) > 100
        assert pixels_of(part, BLUE) > 100
    for index in (0, 1):
        assert pixels_of(dice, label_colour(index)) > 100
        assert pixels_of(losses, label_colour(index)) == 0
    assert not list(tmp_path.glob(".*"))


def test_one_epoch_is_seen(tmp_path: Path) -> None:
    picture = drawn(tmp_path / "progress.png", [epoch(0)])
    assert pixels_of(panel(picture, 1), label_colour(0)) > 10
    assert pixels_of(panel(picture, 0), RED) > 10


def test_a_training_without_held_back_cases_has_no_validation(tmp_path: Path) -> None:
    entries = [epoch(number, val_loss=None, dice={}, mean_dice=None) for number in range(3)]
    picture = drawn(tmp_path / "progress.png", entries)
    assert pixels_of(panel(picture, 0), RED) == 0
    assert pixels_of(panel(picture, 0), BLUE) > 100
    assert pixels_of(panel(picture, 1), label_colour(0)) == 0


def test_values_may_be_missing(tmp_path: Path) -> None:
    entries = [
        epoch(0, val_loss=None, dice={"front": None, "back": 0.1}, mean_dice=0.1),
        epoch(1, train_loss=math.nan, dice=None, mean_dice=None),
        {"epoch": 2, "train_loss": 0.5},
        epoch(3, dice={"front": 0.4, "back": None}),
    ]
    picture = drawn(tmp_path / "progress.png", entries)
    assert pixels_of(panel(picture, 1), label_colour(0)) > 10
    assert pixels_of(panel(picture, 1), label_colour(1)) > 10


def test_many_epochs_and_many_labels(tmp_path: Path) -> None:
    names = [f"label {index}" for index in range(30)]
    entries = [epoch(number, dice=dict.fromkeys(names, 0.01 * number)) for number in range(60)]
    picture = drawn(tmp_path / "progress.png", entries)
    assert picture.shape == (1100, 1000, 3)


def test_later_epochs_change_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "progress.png"
    before = drawn(path, [epoch(0), epoch(1)])
    after = drawn(path, [epoch(0), epoch(1), epoch(2)])
    assert (before != after).any()


def test_no_epoch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no epoch"):
        draw_progress(tmp_path / "progress.png", [])


def test_pyplot_and_its_global_state_are_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    draw_progress(tmp_path / "progress.png", [epoch(0)])
    assert "matplotlib.pyplot" not in sys.modules
