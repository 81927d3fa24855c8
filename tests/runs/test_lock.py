"""One training at a time in a run's folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.runs.lock import RunBusyError, RunLock, holder, running_file


def _hold(folder: Path, connection: Connection) -> None:
    with RunLock(Run(folder)):
        connection.send(os.getpid())
        connection.recv()


@contextmanager
def held_by_another_process(folder: Path) -> Iterator[Any]:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=_hold, args=(folder, theirs))
    process.start()
    ours.recv()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def test_the_second_is_refused_with_the_firsts_host_and_process(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with held_by_another_process(run.folder) as other:
        with pytest.raises(RunBusyError, match=f"process {other.pid} on {platform.node()}"), RunLock(run):
            pass
        found = holder(run)
        assert found is not None
        assert found["process"] == other.pid
    with RunLock(run):  # the kill let it go
        assert holder(run) is not None
    assert holder(run) is None
    assert not running_file(run).exists()


def test_a_killed_trainings_note_does_not_count(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with held_by_another_process(run.folder):
        pass
    assert running_file(run).exists()
    assert holder(run) is None


@pytest.mark.parametrize(("seconds_ago", "is_alive"), [(10, True), (1000, False), (-30, True), (-100_000, False)])
def test_another_machines_note_counts_while_it_is_fresh(tmp_path: Path, seconds_ago: int, is_alive: bool) -> None:
    """Not every network file system has locks between machines."""
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    updated = datetime.now(timezone.utc) - timedelta(seconds=seconds_ago)
    note = {"host": "elsewhere", "process": 7, "started": "then", "updated": updated.isoformat()}
    running_file(run).write_text(json.dumps(note))
    assert (holder(run) is not None) == is_alive
    if is_alive:
        with pytest.raises(RunBusyError, match="process 7 on elsewhere"), RunLock(run):
            pass
    else:
        with RunLock(run):
            pass


def test_looking_changes_nothing(tmp_path: Path) -> None:
    assert holder(Run(tmp_path / "run")) is None
    assert not list(tmp_path.iterdir())


def test_where_the_training_is_can_be_read(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with RunLock(run) as lock:
        lock._noted = float("-inf")
        lock.note("train", epoch=3, epochs=10)
        lock.note("train", epoch=4, epochs=10)  # a moment later: not written again
        found = json.loads(running_file(run).read_text())
    assert (found["stage"], found["epoch"], found["epochs"]) == ("train", 3, 10)


def test_a_torn_note_is_none(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    running_file(run).write_text('{"host": "else')
    assert holder(run) is None
    with RunLock(run):
        pass
