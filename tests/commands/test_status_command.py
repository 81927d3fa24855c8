from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from umamba_cli.commands import status as command


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "workspace.json").write_text(json.dumps({"format": 1, "dataset": "/somewhere"}))
    return tmp_path


def add_run(workspace: Path, fold: int, *, damaged: bool = False) -> Path:
    folder = workspace / "runs" / "umamba-bot__3d_fullres" / f"fold_{fold}"
    folder.mkdir(parents=True)
    record = {"model": "umamba-bot", "configuration": "3d_fullres", "fold": fold, "settings": {"epochs": 100}}
    (folder / "run.json").write_text("{" if damaged else json.dumps(record))
    line = {"epoch": 7, "train_loss": 0.5, "mean_dice": 0.8125, "seconds": 60.0}
    (folder / "log.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def test_a_row_for_each_run(umamba: Callable, workspace: Path) -> None:
    add_run(workspace, 0)
    damaged = add_run(workspace, 1, damaged=True)
    done = umamba("status", workspace)
    assert done.code == 0
    first, second = (line.split() for line in done.out.splitlines() if line.startswith(" umamba-bot"))
    assert first[:9] == ["umamba-bot", "3d_fullres", "0", "stopped", "7/100", "0.812", "(7)", "-", "1:33:00"]
    assert "damaged" in second
    assert f"{damaged}: run.json is no valid JSON" in done.out
    assert done.err == ""


def test_json(umamba: Callable, workspace: Path) -> None:
    folder = add_run(workspace, 0)
    (run,) = json.loads(umamba("status", workspace, "--json").out)["runs"]
    assert run["run"] == str(folder)
    assert (run["state"], run["epoch"], run["epochs"], run["best_dice"]) == ("stopped", 7, 100, 0.8125)
    assert datetime.fromisoformat(run["moved"]).tzinfo
    assert umamba("status", workspace, "--quiet").out == ""


def test_a_workspace_without_runs_says_what_to_do(umamba: Callable, workspace: Path, tmp_path: Path) -> None:
    assert "next: umamba train" in umamba("status", workspace).out
    assert json.loads(umamba("status", workspace, "--json").out)["runs"] == []
    done = umamba("status", tmp_path / "nowhere")
    assert done.code == 2
    assert "no workspace" in done.err


@pytest.mark.parametrize("arguments", [(), ("--json",), ("--quiet",)])
def test_watching_needs_a_terminal(umamba: Callable, workspace: Path, arguments: tuple[str, ...]) -> None:
    done = umamba("status", workspace, "--watch", *arguments)
    assert done.code == 2
    assert done.err.splitlines()[0] == "error: --watch needs a terminal, and neither --json nor --quiet"


def test_watching_follows_until_ctrl_c(workspace: Path) -> None:
    pty = pytest.importorskip("pty")
    add_run(workspace, 0)
    parent, child = pty.openpty()
    command_line = [sys.executable, "-m", "umamba_cli", "status", str(workspace), "--watch"]
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}
    process = subprocess.Popen(command_line, stdin=child, stdout=child, stderr=child, env=environment)
    os.close(child)
    shown, added = "", False
    ends = time.monotonic() + 60
    try:
        while time.monotonic() < ends and shown.count("stopped") < 3:
            if select.select([parent], [], [], 0.1)[0]:
                shown += os.read(parent, 65536).decode(errors="replace")
            if "stopped" in shown and not added:
                add_run(workspace, 1)
                added = True
        assert shown.count("stopped") >= 3, shown  # one run at the first look, two at the second
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(parent)


def test_how_long_ago() -> None:
    now = datetime.now(timezone.utc)
    past = [(-5, "0 s"), (0, "0 s"), (59, "59 s"), (61, "1 min"), (7300, "2 h"), (200_000, "2 d")]
    for seconds, text in past:
        assert command._since(now - timedelta(seconds=seconds)) == text
    assert command._since(None) == "-"
