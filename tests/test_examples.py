"""The examples do what they say, run as a user would."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from umamba_cli.pipeline.runs.checkpoint import read_checkpoint

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_ci_smoke(tmp_path: Path) -> None:
    done = run("ci_smoke.sh", tmp_path / "smoke")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "umamba works here" in done.stdout
    assert (tmp_path / "smoke/predictions/summary.json").is_file()


@pytest.mark.slow
def test_ci_smoke_fails_where_umamba_does(tmp_path: Path) -> None:
    (tmp_path / "umamba").write_text("#!/bin/sh\nexit 2\n")
    (tmp_path / "umamba").chmod(0o755)
    environment = {**ENVIRONMENT, "PATH": f"{tmp_path}:{ENVIRONMENT['PATH']}"}
    command = ["bash", str(EXAMPLES / "ci_smoke.sh"), str(tmp_path / "smoke")]
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 2


@pytest.mark.slow
def test_cron_predict_is_silent_logs_and_skips_what_is_done(
    trained_workspace: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    model = trained_workspace / "runs/umamba-bot__3d_fullres"
    inbox, outbox = tmp_path / "in box", tmp_path / "out box"
    inbox.mkdir()
    assert run("cron_predict.sh", model, inbox, outbox).returncode == 0
    assert "nothing in" in (outbox / "cron_predict.log").read_text()

    (image,) = (tiny_dataset / "imagesTs").iterdir()
    shutil.copy(image, inbox)
    done = run("cron_predict.sh", model, inbox, outbox)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (prediction,) = outbox.glob("*.nii.gz")
    before = prediction.stat().st_mtime_ns
    assert run("cron_predict.sh", model, inbox, outbox).returncode == 0
    assert prediction.stat().st_mtime_ns == before

    (inbox / "bad_0000.nii.gz").write_text("no image")
    done = run("cron_predict.sh", model, inbox, outbox)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    log = (outbox / "cron_predict.log").read_text()
    assert "bad_0000.nii.gz cannot be read" in log
    assert "end, exit code 1" in log
    assert "Traceback" not in log


def test_cron_predict_does_not_run_twice_at_a_time(tmp_path: Path) -> None:
    with (tmp_path / ".cron_predict.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began = time.monotonic()
        assert run("cron_predict.sh", "model", tmp_path, tmp_path).returncode == 75
        assert time.monotonic() - began < 10
    assert "still going on" in (tmp_path / "cron_predict.log").read_text()
    assert run("cron_predict.sh", "model").returncode == 2


@pytest.mark.slow
def test_five_folds(own_workspace: Path) -> None:
    options = ("--epochs", 1, "--iterations", 1, "--device", "cpu", "-j", 0)
    done = run("five_folds.sh", own_workspace, "3d_fullres", "unet", *options)
    assert done.returncode == 0, done.stderr
    assert "umamba predict" in done.stdout
    assert len(list(own_workspace.glob("runs/unet__3d_fullres/fold_*/validation/summary.json"))) == 5
    table = json.loads((own_workspace / "runs/unet__3d_fullres/cross_validation.json").read_text())
    assert table["missing_folds"] == []


def test_a_slurm_job_goes_back_into_the_queue_when_its_time_is_up(tmp_path: Path) -> None:
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$@" > "$TOLD"; exit "$CODE"\n')
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" >> "$TOLD"\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    told = tmp_path / "told"
    slurm = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "77", "TOLD": str(told)}
    for code, expected in (("130", ["requeue 77_3"]), ("0", []), ("2", [])):
        environment = {**ENVIRONMENT, **slurm, "CODE": code, "PATH": f"{tmp_path}:{ENVIRONMENT['PATH']}"}
        command = ["bash", str(EXAMPLES / "slurm_train.sh"), "work", "-m", "unet"]
        assert subprocess.run(command, env=environment, check=False).returncode == int(code)
        assert told.read_text().splitlines() == ["umamba train work -m unet -f 3", *expected]


@pytest.mark.slow
def test_own_parts(own_workspace: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "own_parts.py"), str(own_workspace), "2", "3"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "epoch 2: loss" in done.stdout
    assert "mean Dice" in done.stdout
    weights = read_checkpoint(own_workspace / "runs/own__3d_fullres/fold_0/checkpoint_final.safetensors").weights
    assert "body.0.weight" in weights
