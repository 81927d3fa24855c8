from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from umamba_cli.pipeline.errors import InputError, WorkError
from umamba_cli.pipeline.reporting.tensorboard import TensorBoardLog, scalars


def entry(epoch: int, **changes: Any) -> dict[str, Any]:
    good = {
        "epoch": epoch,
        "train_loss": 1.0 / epoch,
        "val_loss": 1.1 / epoch,
        "dice": {"front": 0.1 * epoch, "back": None},
        "mean_dice": 0.1 * epoch,
        "learning_rate": 0.01,
        "skipped_steps": 3,
        "seconds": 12.5,
        "waiting_share": 0.25,
        "memory_bytes": 2**31,
        "precision": "bf16",
    }
    return {**good, **changes}


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads: steps and values by name."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = accumulators.EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def test_tensorboard_reads_every_figure(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path / "tensorboard")
    assert not (tmp_path / "tensorboard").exists()
    log.add(entry(1))
    log.add(entry(2))
    log.close()
    figures = read(tmp_path / "tensorboard")
    assert figures["loss/training"] == [(1, 1.0), (2, 0.5)]
    assert figures["Dice of labels/front"] == [(1, pytest.approx(0.1)), (2, pytest.approx(0.2))]
    assert {tag: values[0][1] for tag, values in figures.items()} == pytest.approx(
        {
            "loss/training": 1.0,
            "loss/validation": 1.1,
            "Dice/mean": 0.1,
            "Dice of labels/front": 0.1,
            "learning rate": 0.01,
            "epoch/seconds": 12.5,
            "epoch/waiting share": 0.25,
            "epoch/skipped steps": 3.0,
            "epoch/memory GiB": 2.0,
        }
    )


def test_epochs_do_not_double_where_a_training_goes_on_earlier(tmp_path: Path) -> None:
    killed = TensorBoardLog(tmp_path)
    for epoch in range(1, 6):
        killed.add(entry(epoch))
    goes_on = TensorBoardLog(tmp_path)
    for epoch in range(4, 8):
        goes_on.add(entry(epoch, mean_dice=0.5))
    assert [step for step, _ in read(tmp_path)["Dice/mean"]] == [1, 2, 3, 4, 5, 6, 7]
    assert [value for _, value in read(tmp_path)["Dice/mean"]][3:] == [0.5] * 4


def test_a_record_cut_off_by_a_power_cut_costs_that_record_alone(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path)
    for epoch in (1, 2, 3):
        log.add(entry(epoch))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    TensorBoardLog(tmp_path).add(entry(3))
    assert [step for step, _ in read(tmp_path)["Dice/mean"]] == [1, 2, 3]


def test_what_is_no_finite_number_is_left_out() -> None:
    odd = entry(1, train_loss=math.nan, val_loss=None, dice=None, mean_dice=math.inf, memory_bytes=None)
    assert set(scalars(odd)) == {"learning rate", "epoch/seconds", "epoch/waiting share", "epoch/skipped steps"}
    assert scalars({"epoch": 1}) == {}


def test_without_tensorboard_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match="TensorBoard") as raised:
        TensorBoardLog(tmp_path)
    assert "pip install 'umamba[tensorboard]'" in raised.value.next_step


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match="cannot write"):
        TensorBoardLog(tmp_path / "file").add(entry(1))
