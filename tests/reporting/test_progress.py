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

RED, BLUE = "#D55E00", "#0072B2"  # validation loss (and waiting), training loss (and rate and time)
MAGENTA = "#CC79A7"  # skipped steps
# Rows of the picture in which each panel and its legend lie.
LOSSES, DICE, RATE, TIMES = slice(0, 340), slice(340, 745), slice(770, 935), slice(965, 1200)


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


def test_four_panels_hold_their_lines(tmp_path: Path) -> None:
    picture = drawn(tmp_path / "progress.png", [epoch(number) for number in range(9)])
    assert picture.shape == (1200, 1000, 3)
    for rows in (LOSSES, RATE, TIMES):
        assert pixels_of(picture[rows], BLUE) > 100
        assert pixels_of(picture[rows], label_colour(0)) == 0
    assert pixels_of(picture[LOSSES], RED) > 100
    for index in (0, 1):
        assert pixels_of(picture[DICE], label_colour(index)) > 100
    assert not list(tmp_path.glob(".*"))


def test_waiting_is_shown_where_there_was_any(tmp_path: Path) -> None:
    for share in (None, 0.0, math.nan):
        without = drawn(tmp_path / "without.png", [epoch(n, waiting_share=share) for n in range(1, 9)])
        assert pixels_of(without[TIMES], RED) == 0
    picture = drawn(tmp_path / "with.png", [epoch(n, waiting_share=0.01 * n) for n in range(1, 9)])
    assert pixels_of(picture[TIMES], RED) > 100


def test_skipped_steps_are_marked_where_there_were_any(tmp_path: Path) -> None:
    without = drawn(tmp_path / "without.png", [epoch(n, skipped_steps=0) for n in range(1, 9)])
    assert pixels_of(without[LOSSES], MAGENTA) == 0
    picture = drawn(tmp_path / "with.png", [epoch(n, skipped_steps=n % 2) for n in range(1, 9)])
    assert pixels_of(picture[LOSSES], MAGENTA) > 30


def test_a_change_of_precision_is_marked_with_what_it_was(tmp_path: Path) -> None:
    def dark(name: str, precisions: list[str | None]) -> int:
        entries = [epoch(number + 1, precision=precision) for number, precision in enumerate(precisions)]
        picture = drawn(tmp_path / name, entries)
        return int(np.count_nonzero(picture[60:330, 100:780].max(axis=-1) < 60))

    without = dark("without.png", ["fp16"] * 4 + [None] + ["fp16"] * 3)
    assert dark("with.png", ["fp16"] * 4 + ["fp32"] * 4) > without + 200
    dark("many.png", ["fp16", "fp32"] * 30)


def test_a_few_huge_losses_do_not_flatten_the_others(tmp_path: Path) -> None:
    def height(name: str, entries: list[dict[str, Any]]) -> int:
        """Rows from the highest to the lowest loss of the first epochs."""
        part = drawn(tmp_path / name, entries).astype(int)[60:330, 84:400]
        rows = np.nonzero((part[..., 2] - part[..., 0] > 40).any(axis=1))[0]
        return int(rows.max() - rows.min())

    entries = [epoch(n, train_loss=math.exp(-n / 10), val_loss=None) for n in range(200)]
    plain = height("plain.png", entries)
    entries[150]["train_loss"] = 1e6
    assert height("outlier.png", entries) > plain / 2


def test_one_epoch_is_seen(tmp_path: Path) -> None:
    picture = drawn(tmp_path / "progress.png", [epoch(1)])
    assert pixels_of(picture[DICE], label_colour(0)) > 10
    assert pixels_of(picture[LOSSES], RED) > 10


def test_a_training_without_held_back_cases_has_no_validation(tmp_path: Path) -> None:
    entries = [epoch(number, val_loss=None, dice={}, mean_dice=None) for number in range(3)]
    picture = drawn(tmp_path / "progress.png", entries)
    assert pixels_of(picture[LOSSES], RED) == 0
    assert pixels_of(picture[LOSSES], BLUE) > 100
    assert pixels_of(picture[DICE], label_colour(0)) == 0


def test_values_may_be_missing(tmp_path: Path) -> None:
    entries = [
        epoch(0, val_loss=None, dice={"front": None, "back": 0.1}, mean_dice=0.1),
        epoch(1, train_loss=math.nan, dice=None, mean_dice=None),
        {"epoch": 2, "train_loss": 0.5},
        epoch(3, dice={"front": 0.4, "back": None}),
    ]
    picture = drawn(tmp_path / "progress.png", entries)
    assert pixels_of(picture[DICE], label_colour(0)) > 10
    assert pixels_of(picture[DICE], label_colour(1)) > 10


def test_many_epochs_and_many_labels(tmp_path: Path) -> None:
    names = [f"label {index}" for index in range(30)]
    entries = [epoch(number, dice=dict.fromkeys(names, 0.01 * number)) for number in range(60)]
    picture = drawn(tmp_path / "progress.png", entries)
    assert picture.shape == (1200, 1000, 3)


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
