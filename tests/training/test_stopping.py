"""Signals, kills, full disks and torn writes: the same training goes on, and ends as if nothing had been."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_trainings import SETTINGS, noisy, small_loop

from umamba_cli.pipeline.errors import Stopped, WorkError
from umamba_cli.pipeline.progress import Progress
from umamba_cli.pipeline.runs.checkpoint import read_checkpoint, write_checkpoint
from umamba_cli.pipeline.training.losses import SegmentationLoss

RUN = "run"
REPORTS = 1 + SETTINGS.epochs * (SETTINGS.iterations + SETTINGS.validation_iterations + 1)
"""Of progress in a whole training: at its start, after each step, each validation batch and each epoch."""


def weights(folder: Path, kind: str = "final") -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(folder / RUN / f"checkpoint_{kind}.safetensors").weights)


def log_without_times(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / RUN / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "waiting_share", "memory_bytes")} for line in lines]


def train(folder: Path, **more: Any) -> None:
    """A training with random augmentation and, for its share of torch's generator, dropout."""
    loop = small_loop(folder, augment=noisy, validates=True, **more)
    loop.network.encoder.stages[1].append(torch.nn.Dropout3d(0.3))
    loop.train()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder)
    return folder


def same(folder: Path, undisturbed: Path) -> None:
    for kind in ("final", "best", "latest"):
        ours, theirs = weights(folder, kind), weights(undisturbed, kind)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), name
    assert log_without_times(folder) == log_without_times(undisturbed)
    assert not list((folder / RUN).glob("*.partial-*"))


def signal_at(report: int, number: int) -> Callable[[Progress], None]:
    """Send this process a signal at the n-th report of progress."""
    seen = 0

    def on_progress(_: Progress) -> None:
        nonlocal seen
        seen += 1
        if seen == report:
            os.kill(os.getpid(), number)

    return on_progress


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"])
@pytest.mark.parametrize("report", [2, 8, 11])  # in the first step, in a look at validation patches, later
def test_a_signal_keeps_the_step_and_ends(name: str, report: int, tmp_path: Path, undisturbed: Path) -> None:
    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(Stopped, match=f"stopped by {name} in epoch"):
        train(tmp_path, on_progress=signal_at(report, getattr(signal, name)))
    assert signal.getsignal(getattr(signal, name)) == before
    assert not (tmp_path / RUN / "checkpoint_final.safetensors").exists()
    steps: list[Progress] = []
    train(tmp_path, on_progress=steps.append)
    same(tmp_path, undisturbed)
    assert len(steps) <= 3 + REPORTS - report  # it did not begin the epoch again, but its look at validation patches


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    def twice(report: Progress) -> None:
        if report.within:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, on_progress=twice)


def _child(folder: Path, trouble: Callable[[], None] | None) -> None:
    torch.set_num_threads(1)
    if trouble:
        trouble()
    train(folder)


def start(folder: Path, trouble: Callable[[], None] | None = None) -> Any:
    """The training in a process of its own, which comes up within a moment from a server that has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "small_trainings"])
    process = context.Process(target=_child, args=(folder, trouble))
    process.start()
    return process


@pytest.fixture(scope="module")
def undisturbed_on_one_thread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one_thread")
    process = start(folder)
    process.join()
    assert process.exitcode == 0
    return folder


@pytest.mark.slow
def test_killed_twenty_times(tmp_path: Path, undisturbed_on_one_thread: Path) -> None:
    chance = random.Random(0)
    kills = 0
    for _ in range(60):
        process = start(tmp_path)
        process.join(chance.uniform(0.02, 0.5))
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        if kills == 20 or process.exitcode == 0:
            break
    process = start(tmp_path)
    process.join()
    assert process.exitcode == 0
    assert kills >= 5  # a fast machine may be done before the twentieth
    same(tmp_path, undisturbed_on_one_thread)


def _die_in_the_third_write() -> None:
    import safetensors.torch

    write, writes = safetensors.torch.save_file, 0

    def torn(tensors: Any, path: Any, **more: Any) -> None:
        nonlocal writes
        writes += 1
        write(tensors, path, **more)
        if writes == 3:
            os.truncate(path, Path(path).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    safetensors.torch.save_file = torn


def test_killed_in_a_checkpoints_write(tmp_path: Path, undisturbed_on_one_thread: Path) -> None:
    process = start(tmp_path, _die_in_the_third_write)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = (tmp_path / RUN).glob(".*.partial-*")
    left.unlink()
    process = start(tmp_path)
    process.join()
    assert process.exitcode == 0
    same(tmp_path, undisturbed_on_one_thread)


def _no_room_for_checkpoints() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))


def test_a_disk_that_is_full_from_the_start_is_an_error(tmp_path: Path) -> None:
    process = start(tmp_path, _no_room_for_checkpoints)
    process.join()
    assert process.exitcode == 1
    assert not list((tmp_path / RUN).glob("checkpoint*"))


def test_a_disk_that_fills_up_costs_nothing_that_was_kept(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0

    def fills_up(path: Path, checkpoint: Any) -> None:
        nonlocal writes
        writes += 1
        if writes > 3:
            raise WorkError(f"cannot write {path}: {os.strerror(errno.ENOSPC)}", next_step="make room")
        write_checkpoint(path, checkpoint)

    with monkeypatch.context() as patched:
        patched.setattr("umamba_cli.pipeline.training.loop.write_checkpoint", fills_up)
        with pytest.raises(WorkError, match="No space left"):
            train(tmp_path)
    train(tmp_path)
    same(tmp_path, undisturbed)


def test_what_another_device_left_is_gone_on_from(tmp_path: Path) -> None:
    """As a GPU in float16 leaves it: a scaler's state, and a generator's that a CPU does not have."""
    train_until = signal_at(4, signal.SIGTERM)
    with pytest.raises(Stopped):
        train(tmp_path, on_progress=train_until)
    path = tmp_path / RUN / "checkpoint_latest.safetensors"
    checkpoint = read_checkpoint(path)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0).state_dict()
    state = {
        **checkpoint.state,
        "scaler": scaler,
        "random": {**checkpoint.state["random"], "cuda": torch.zeros(16, dtype=torch.uint8)},
    }
    checkpoint = type(checkpoint)(checkpoint.epoch, checkpoint.weights, checkpoint.best_dice, state)
    write_checkpoint(path, checkpoint)
    train(tmp_path)
    assert [line["epoch"] for line in log_without_times(tmp_path)] == [1, 2, 3]


def test_time_does_not_stand_still_while_waiting(tmp_path: Path) -> None:
    """A training that waits for its data says so."""

    def slow(patch: Any, generator: Any) -> Any:
        time.sleep(0.05)
        return patch

    def slow_loss(outputs: Any, labels: Any) -> torch.Tensor:
        time.sleep(0.1)
        return SegmentationLoss(batch_dice=False)(outputs, labels)

    log = small_loop(tmp_path / "data", augment=slow).train()
    assert all(entry["waiting_share"] > 0.5 for entry in log)
    log = small_loop(tmp_path / "network", loss=slow_loss).train()
    assert all(entry["waiting_share"] < 0.5 for entry in log)
