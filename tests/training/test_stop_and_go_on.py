"""A training repeats itself bit for bit, also when it was stopped or killed in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.runs.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

SETTINGS = ("--epochs", "4", "--iterations", "3", "--device", "cpu", "--threads", "1", "-m", "unet")


def _process(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "umamba_cli", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def _kill_once(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """SIGKILL the process and its workers as soon as something is there."""
    deadline = time.monotonic() + 90
    while not ready():
        assert process.poll() is None, f"it ended before it could be killed: {process.communicate()[0]}"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _same(first: Path, second: Path) -> None:
    for kind in ("final", "best", "latest"):
        one, other = (read_checkpoint(folder / f"checkpoint_{kind}.safetensors") for folder in (first, second))
        assert one.epoch == other.epoch
        assert one.best_dice == other.best_dice
        for name, tensor in one.weights.items():
            assert torch.equal(tensor, other.weights[name]), name
    logs = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (first, second)
    ]
    for entries in logs:
        assert [entry["epoch"] for entry in entries] == [1, 2, 3, 4]
        for entry in entries:
            for measured in ("seconds", "waiting_share", "memory_bytes"):
                del entry[measured]
    assert logs[0] == logs[1]
    summaries = [json.loads((folder / "validation/summary.json").read_text()) for folder in (first, second)]
    assert summaries[0] == summaries[1]


@pytest.mark.slow
def test_killed_in_the_middle_it_ends_as_if_nothing_had_been(umamba: Callable, own_workspace: Path) -> None:
    run = own_workspace / "runs/unet__3d_fullres/fold_0"
    process = _process("train", own_workspace, *SETTINGS, "-j", 1)
    latest = run / "checkpoint_latest.safetensors"
    _kill_once(process, latest.is_file)
    assert not (run / "checkpoint_final.safetensors").exists()
    assert umamba("train", own_workspace, *SETTINGS, "-j", 0).code == 0

    assert umamba("train", own_workspace, *SETTINGS, "-j", 0, "--tag", "undisturbed").code == 0
    _same(run, own_workspace / "runs/unet__3d_fullres__undisturbed/fold_0")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_end_with_a_parent_that_was_killed(own_workspace: Path) -> None:
    """Orphans would keep memory, and whoever waits for the end of a pipe, for ever."""
    process = _process("train", own_workspace, *SETTINGS, "--epochs", 1000, "-j", 1)
    latest = own_workspace / "runs/unet__3d_fullres/fold_0/checkpoint_latest.safetensors"
    deadline = time.monotonic() + 90
    while not latest.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.communicate(timeout=30)  # the pipe closes once nobody holds it


@pytest.mark.slow
def test_preprocessing_that_was_killed_goes_on(umamba: Callable, own_workspace: Path) -> None:
    store = own_workspace / "preprocessed/3d_fullres"
    for path in store.iterdir():
        path.unlink()
    process = _process("preprocess", own_workspace, "-c", "3d_fullres", "-j", 1)
    _kill_once(process, lambda: any(store.glob("[!.]*.json")))
    done = umamba("preprocess", own_workspace, "-c", "3d_fullres", "-j", 1, "--json")
    assert done.code == 0, done.err
    (result,) = json.loads(done.out)["configurations"]
    assert 1 <= result["kept"] <= result["cases"] == 5
    assert umamba("train", own_workspace, "--device", "cpu", "--epochs", 1, "--iterations", 1, "-j", 0).code == 0


def test_a_finished_training_is_left_as_it_is(umamba: Callable, trained_workspace: Path) -> None:
    run = trained_workspace / "runs/umamba-bot__3d_fullres/fold_0"
    before = (run / "checkpoint_final.safetensors").stat().st_mtime_ns
    done = umamba("train", trained_workspace, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["epochs"] == 2
    assert (run / "checkpoint_final.safetensors").stat().st_mtime_ns == before


def test_other_settings_are_refused_and_restart_starts_over(umamba: Callable, own_workspace: Path) -> None:
    quick = ("--iterations", 1, "--device", "cpu", "-m", "unet", "-j", 0)
    assert umamba("train", own_workspace, *quick, "--epochs", 1).code == 0
    refused = umamba("train", own_workspace, *quick, "--epochs", 2)
    assert refused.code == 2
    assert "epochs is 1, asked for is 2" in refused.err
    assert "--restart" in refused.err
    assert umamba("train", own_workspace, *quick, "--epochs", 2, "--restart").code == 0
    assert len((own_workspace / "runs/unet__3d_fullres/fold_0/log.jsonl").read_text().splitlines()) == 2


def test_another_seed_is_another_training(umamba: Callable, own_workspace: Path) -> None:
    quick = ("--iterations", 2, "--epochs", 1, "--device", "cpu", "-m", "unet", "-j", 0)
    losses = []
    for tag, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert umamba("train", own_workspace, *quick, "--tag", tag, "--seed", seed).code == 0
        log = own_workspace / f"runs/unet__3d_fullres__{tag}/fold_0/log.jsonl"
        losses.append(json.loads(log.read_text())["train_loss"])
    assert losses[0] == losses[1] != losses[2]


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    weights = {"a": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "b": torch.arange(3)}
    state = {"optimizer": {"state": {0: {"momentum_buffer": torch.randn(3)}}, "groups": [{"lr": 0.1, "x": None}]}}
    write_checkpoint(tmp_path / "a.safetensors", Checkpoint(3, weights, 0.5, state))
    read = read_checkpoint(tmp_path / "a.safetensors")
    assert (read.epoch, read.best_dice) == (3, 0.5)
    assert all(torch.equal(read.weights[name], tensor) for name, tensor in weights.items())
    buffer = read.state["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(buffer, state["optimizer"]["state"][0]["momentum_buffer"])  # type: ignore[index]
    assert read.state["optimizer"]["groups"] == [{"lr": 0.1, "x": None}]


@pytest.mark.parametrize("content", [b"", b"junk" * 100])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.safetensors"):
        read_checkpoint(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="does not exist"):
        read_checkpoint(tmp_path / "b.safetensors")
