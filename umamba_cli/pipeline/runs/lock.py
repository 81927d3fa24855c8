"""One training at a time in a run's folder: who is at work there is told to everybody else.

A file lock of the operating system says whether somebody is; it ends with its process, however that dies. Beside it
`running.json` says who, and where the training is. Where the folder lies on a network file system that has no locks
between machines, a `running.json` of another machine that was written a moment ago counts as one.
"""

from __future__ import annotations

import os
import platform
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import filelock

from umamba_cli.pipeline.data.files import read_json, write_json
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.errors import InputError, UmambaError, WorkError

_SECONDS_BETWEEN_NOTES = 5.0
_ALIVE_FOR_S = 120.0
_PATIENCE_S = 1.0  # `umamba status` holds a lock for a moment, to see whether it is free


class RunBusyError(InputError):
    """Another process trains in this folder."""


def lock_file(run: Run) -> Path:
    """What is locked; it stays when the training is over, because removing it would let two in."""
    return run.folder / "run.lock"


def running_file(run: Run) -> Path:
    """Who trains, and where the training is."""
    return run.folder / "running.json"


class RunLock:
    """Held while a process trains in a run's folder, inside a `with`."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._lock = filelock.FileLock(lock_file(run))
        self._started = _now()
        self._noted = -_SECONDS_BETWEEN_NOTES

    def __enter__(self) -> RunLock:
        """Take the lock.

        Raises:
            RunBusyError: another process has it; its machine and number are named.
            WorkError: the folder cannot be written to.
        """
        other = _alive_elsewhere(self._run)
        if other:
            raise _busy(self._run, other)
        try:
            self._run.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=_PATIENCE_S)
        except filelock.Timeout as error:
            raise _busy(self._run, _note_of(self._run) or {}) from error
        except OSError as error:
            raise WorkError(
                f"cannot write {lock_file(self._run)}: {error.strerror or error}",
                next_step="make room or get write permission there, then run the same command again",
            ) from error
        self.note("start")
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            running_file(self._run).unlink(missing_ok=True)
        self._lock.release()

    def note(self, stage: str, **where: Any) -> None:
        """Write down where the training is, but at most every few seconds; what cannot be written is left out.

        Args:
            stage: `start`, `train` or `validate`.
            where: epoch, epochs, iteration, iterations, seconds_left.
        """
        if time.monotonic() - self._noted < _SECONDS_BETWEEN_NOTES:
            return
        self._noted = time.monotonic()
        note = {
            "host": platform.node(),
            "process": os.getpid(),
            "started": self._started,
            "updated": _now(),
            "stage": stage,
            **where,
        }
        with suppress(UmambaError):  # a full disk must not end a training before it has anything to keep
            write_json(running_file(self._run), note)


def holder(run: Run) -> dict[str, Any] | None:
    """What `running.json` says, where somebody trains in the run's folder now; otherwise None."""
    other = _alive_elsewhere(run)
    if other:
        return other
    if not lock_file(run).is_file():
        return None
    try:
        with filelock.FileLock(lock_file(run), timeout=0):
            return None
    except filelock.Timeout:
        return _note_of(run) or {}
    except OSError:  # no right to write there: the note alone must tell
        note = _note_of(run)
        return note if note and abs(_age_s(note)) < _ALIVE_FOR_S else None


def _alive_elsewhere(run: Run) -> dict[str, Any] | None:
    note = _note_of(run)
    return note if note and note.get("host") != platform.node() and abs(_age_s(note)) < _ALIVE_FOR_S else None


def _note_of(run: Run) -> dict[str, Any] | None:
    try:
        note = read_json(running_file(run))
    except InputError:
        return None
    return note if isinstance(note, dict) else None


def _age_s(note: dict[str, Any]) -> float:
    """Seconds since a note was written; negative where the other machine's clock is ahead."""
    try:
        updated = datetime.fromisoformat(note["updated"])
        return (datetime.now(timezone.utc) - updated).total_seconds()
    except (KeyError, TypeError, ValueError):
        return float("inf")


def _busy(run: Run, note: dict[str, Any]) -> RunBusyError:
    return RunBusyError(
        f"{run.folder} is being trained by process {note.get('process', '?')} on {note.get('host', '?')}, "
        f"since {note.get('started', '?')}",
        next_step="wait for it (`umamba status` shows how far it is), stop it, or train apart from it with --tag NAME",
    )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
