from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from umamba_cli.pipeline.data.workspace import Run, Workspace
from umamba_cli.pipeline.runs.lock import RunLock, running_file
from umamba_cli.pipeline.workflows.status import RunStatus, run_status, survey_runs


def entry(epoch: int, **changes: Any) -> dict[str, Any]:
    good = {
        "epoch": epoch,
        "train_loss": 1.0 - 0.1 * epoch,
        "mean_dice": [0.0, 0.5, 0.8, 0.7][epoch],
        "learning_rate": 0.01 / epoch,
        "skipped_steps": 2,
        "seconds": 10.0 * epoch,
        "precision": "bf16",
    }
    return {**good, **changes}


def make_run(
    workspace: Path,
    name: str = "unet__3d_fullres",
    fold: int | str = 0,
    *,
    epochs: int = 10,
    entries: int = 3,
    trained: bool = False,
    dice: float | None = None,
) -> Run:
    run = Run(workspace / "runs" / name / f"fold_{fold}")
    run.folder.mkdir(parents=True)
    model, configuration, tag = [*name.split("__"), ""][:3]
    record = {"model": model, "configuration": configuration, "tag": tag, "fold": fold, "settings": {"epochs": epochs}}
    run.configuration_file.write_text(json.dumps({**record, "val_cases": [] if fold == "all" else ["a"]}))
    run.log_file.write_text("".join(json.dumps(entry(n + 1)) + "\n" for n in range(entries)))
    if trained:
        run.checkpoint("final").write_bytes(b"weights")
    if dice is not None:
        run.validation.mkdir()
        (run.validation / "summary.json").write_text(json.dumps({"foreground_mean": {"dice": dice}}))
    return run


def note(run: Run, **content: Any) -> None:
    """As if a process on another machine were at work there."""
    base = {"host": "gpu-7", "process": 123, "updated": datetime.now(timezone.utc).isoformat(), "stage": "train"}
    running_file(run).write_text(json.dumps({**base, **content}))


def test_a_stopped_training_says_where_and_how_long(tmp_path: Path) -> None:
    status = run_status(make_run(tmp_path, "unet__2d__seed-1", 2))
    assert (status.model, status.configuration, status.tag, status.fold) == ("unet", "2d", "seed-1", "2")
    assert status.state_text == "stopped at epoch 3 of 10"
    assert (status.epoch, status.epochs) == (3, 10)
    assert (status.best_dice, status.best_epoch) == (0.8, 2)
    assert status.train_loss == pytest.approx(0.7)
    assert status.learning_rate == pytest.approx(0.01 / 3)
    assert (status.precision, status.skipped_steps) == ("bf16", 6)
    assert status.seconds_left == 7 * 20.0  # the median of 10, 20 and 30 s
    assert status.validation_dice is None
    assert status.problem == ""


def test_a_training_at_work_says_who_and_how_long(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    note(run, epoch=3, epochs=10, seconds_left=77.5)
    status = run_status(run)
    assert status.state_text == "running on gpu-7 pid 123"
    assert status.seconds_left == 77.5
    note(run, stage="validate", seconds_left=None)
    status = run_status(run)
    assert status.state_text == "validating on gpu-7 pid 123"
    assert status.seconds_left is None


def test_a_training_that_begins_has_no_epoch_yet(tmp_path: Path) -> None:
    run = make_run(tmp_path, entries=0)
    run.configuration_file.unlink()
    run.log_file.unlink()
    note(run, stage="start")
    status = run_status(run)
    assert (status.state, status.epoch, status.epochs, status.seconds_left) == ("running", 0, None, None)
    assert (status.model, status.configuration, status.fold) == ("unet", "3d_fullres", "0")
    running_file(run).unlink()
    assert run_status(run).state_text == "stopped at epoch 0"


def hold(folder: Path, entered: Any, leave: Any) -> None:
    with RunLock(Run(folder)):
        entered.set()
        leave.wait(60)


def test_a_process_of_this_machine_is_seen_until_it_is_gone(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    spawn = multiprocessing.get_context("spawn")
    entered, leave = spawn.Event(), spawn.Event()
    process = spawn.Process(target=hold, args=(run.folder, entered, leave))
    process.start()
    assert entered.wait(60)
    status = run_status(run)
    assert (status.state, status.process) == ("running", process.pid)
    process.kill()
    process.join()
    assert running_file(run).exists()
    status = run_status(run)
    assert status.state == "stopped"
    assert status.host is None


def test_finished_and_not_evaluated(tmp_path: Path) -> None:
    assert run_status(make_run(tmp_path, "a__2d", trained=True)).state == "not evaluated"
    assert run_status(make_run(tmp_path, "a__2d", "all", trained=True)).state == "finished"
    status = run_status(make_run(tmp_path, "b__2d", trained=True, dice=0.85))
    assert (status.state, status.validation_dice, status.seconds_left) == ("finished", 0.85, None)
    imported = make_run(tmp_path, "c__2d", trained=True, entries=0)
    assert run_status(imported).epoch == 10


def test_a_run_is_dated_by_its_last_file(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for path in (run.configuration_file, run.log_file):
        os.utime(path, (1e9, 1e9))
    assert run_status(run).moved == datetime.fromtimestamp(1e9, timezone.utc)
    run.checkpoint("latest").write_bytes(b"")
    os.utime(run.checkpoint("latest"), (2e9, 2e9))
    assert run_status(run).moved == datetime.fromtimestamp(2e9, timezone.utc)


@pytest.mark.parametrize("content", [b'{"model": "un', b"", b"[1, 2]", b"\xff\xfe\x00", b"null", b"[" * 100_000])
def test_a_damaged_record_is_said_and_hides_no_other_run(tmp_path: Path, content: bytes) -> None:
    run = make_run(tmp_path)
    make_run(tmp_path, fold=1)
    run.configuration_file.write_bytes(content)
    damaged, other = survey_runs(Workspace(tmp_path))
    assert damaged.state == damaged.state_text == "damaged"
    assert damaged.problem.startswith("run.json ")
    assert (damaged.model, damaged.epoch) == ("unet", 3)
    assert other.state == "stopped"


def test_a_record_that_is_gone_is_damage_where_there_is_a_training(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.configuration_file.unlink()
    assert run_status(run).state == "damaged"


@pytest.mark.parametrize(
    "values",
    [
        {"settings": None, "val_cases": 3},
        {"settings": {"epochs": "ten"}, "model": None, "fold": []},
        {"settings": [1]},
    ],
)
def test_records_of_any_content_are_borne(tmp_path: Path, values: dict[str, Any]) -> None:
    run = make_run(tmp_path)
    run.configuration_file.write_text(json.dumps(values))
    status = run_status(run)
    assert status.epochs is None
    json.dumps({**status.to_json(), "run": None})


def test_a_torn_log_keeps_its_whole_lines(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    lines = run.log_file.read_bytes()
    odd = [
        b'{"epoch": 4, "mean_dice": 0.99, "tr',
        b"7",
        b'{"epoch": "x"}',
        b"\xff\xff",
        json.dumps(
            {**entry(3), "epoch": 5, "mean_dice": "much", "train_loss": None, "seconds": 1e400, "skipped_steps": None}
        ).encode(),
    ]
    run.log_file.write_bytes(lines + b"\n".join(odd))
    status = run_status(run)
    assert (status.epoch, status.best_dice, status.train_loss) == (5, 0.8, None)
    assert status.problem == "4 lines of log.jsonl cannot be read"
    assert status.state == "stopped"


@pytest.mark.parametrize(
    "summary", [b"", b"{", b"{}", b'{"foreground_mean": 3}', b'{"foreground_mean": {"dice": null}}']
)
def test_a_damaged_summary_is_no_result(tmp_path: Path, summary: bytes) -> None:
    run = make_run(tmp_path, trained=True, dice=0.5)
    (run.validation / "summary.json").write_bytes(summary)
    assert run_status(run).validation_dice is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"host": 3, "process": "x", "epoch": null, "seconds_left": "y"}']
)
def test_a_damaged_note_is_borne(tmp_path: Path, content: bytes) -> None:
    run = make_run(tmp_path)
    running_file(run).write_bytes(content)
    assert run_status(run).epoch == 3


def test_runs_stand_by_name_and_fold(tmp_path: Path) -> None:
    for name, fold in (("b__2d", 10), ("b__2d", 2), ("b__2d", "all"), ("a__2d", 0)):
        make_run(tmp_path, name, fold)
    for stray in ("runs/b__2d/cross_validation.json", "runs/notes.txt"):
        (tmp_path / stray).write_text("")
    (tmp_path / "runs/b__2d/other").mkdir()
    (tmp_path / "runs/.hidden/fold_0").mkdir(parents=True)
    assert [(run.model, run.fold) for run in survey_runs(Workspace(tmp_path))] == [
        ("a", "0"),
        ("b", "2"),
        ("b", "10"),
        ("b", "all"),
    ]
    assert survey_runs(Workspace(tmp_path / "empty")) == []


def test_nothing_is_written(tmp_path: Path) -> None:
    make_run(tmp_path, trained=True, dice=0.5)
    note(make_run(tmp_path, fold=1))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    survey_runs(Workspace(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_files_may_be_replaced_and_removed_meanwhile(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    good = run.log_file.read_bytes()
    stop = threading.Event()

    def disturb() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            run.log_file.unlink(missing_ok=True)
            run.log_file.write_bytes(good[: turn * 37 % len(good)])
            running_file(run).write_text("{" * (turn % 2))
            running_file(run).unlink(missing_ok=True)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        ends = time.monotonic() + 1
        looks = 0
        while time.monotonic() < ends:
            (status,) = survey_runs(Workspace(tmp_path))
            assert isinstance(status, RunStatus)
            looks += 1
    finally:
        stop.set()
        thread.join()
    assert looks > 10


def test_it_loads_no_torch() -> None:
    code = "import sys, umamba_cli.pipeline.workflows.status\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
