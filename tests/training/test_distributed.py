"""Several processes train as one would with the same global batch."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.runs.checkpoint import read_checkpoint
from umamba_cli.pipeline.training.distributed import World, require_enough_patches, this_world

TRAIN = ("--epochs", 2, "--iterations", 3, "--batch-size", 3, "--device", "cpu", "--precision", "fp32", "-j", 0)


def run(workspace: Path) -> Path:
    return workspace / "runs/umamba-bot__3d_fullres/fold_0"


def log_of(workspace: Path) -> list[dict]:
    return [json.loads(line) for line in (run(workspace) / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_as_one(umamba: Callable, own_workspace: Path) -> None:
    """A batch of three, so that one process has two patches and the other one."""
    other = Path(shutil.copytree(own_workspace, own_workspace.with_name("two")))
    assert umamba("train", own_workspace, *TRAIN, "--threads", 1).code == 0
    command = [sys.executable, "-m", "umamba_cli", "train", other, *TRAIN, "--threads", 1, "--gpus", 2, "--json"]
    done = subprocess.run([*map(str, command), "-f", "0,1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert [fold["epochs"] for fold in json.loads(done.stdout)["folds"]] == [2, 2]

    one, two = log_of(own_workspace), log_of(other)
    for alone, together in zip(one, two, strict=True):
        assert together["train_loss"] == pytest.approx(alone["train_loss"], abs=1e-5)
        assert together["val_loss"] == pytest.approx(alone["val_loss"], abs=1e-5)
    ours, theirs = (read_checkpoint(run(w) / "checkpoint_final.safetensors").weights for w in (other, own_workspace))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-5, msg=name)
    summaries = [json.loads((run(w) / "validation/summary.json").read_text()) for w in (own_workspace, other)]
    assert [case["case"] for case in summaries[0]["cases"]] == [case["case"] for case in summaries[1]["cases"]]


@pytest.mark.slow
def test_a_signal_stops_all_of_them(umamba: Callable, own_workspace: Path) -> None:
    command = [sys.executable, "-m", "umamba_cli", "train", own_workspace, *TRAIN, "--threads", 1, "--gpus", 2]
    command[command.index("--epochs") + 1] = 1000
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (run(own_workspace) / "checkpoint_best.safetensors").is_file():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert said.count("run the same command again") == 1
    before = read_checkpoint(run(own_workspace) / "checkpoint_latest.safetensors").epoch
    assert before >= 1


def test_wrong_input_is_said_once_before_any_process_starts(umamba: Callable, own_workspace: Path) -> None:
    refused = umamba("train", own_workspace, "--gpus", 4, "--device", "cpu", "--batch-size", 3)
    assert refused.code == 2
    assert "a batch of 3 patches cannot be spread over 4 processes" in refused.err
    if not torch.cuda.is_available():
        refused = umamba("train", own_workspace, "--gpus", 2)
        assert refused.code == 2
        assert "this machine has 0" in refused.err


def test_without_a_launcher_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # a scheduler's, without the rest
    assert this_world() == World()
    for name, value in (("RANK", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert this_world() == World(rank=2, size=4, local_rank=0)
    monkeypatch.setenv("RANK", "two")
    with pytest.raises(InputError, match="RANK"):
        this_world()


def test_every_process_needs_a_patch() -> None:
    require_enough_patches(2, World(size=2))
    with pytest.raises(InputError, match="2 patches cannot be spread over 3 processes"):
        require_enough_patches(2, World(size=3))
