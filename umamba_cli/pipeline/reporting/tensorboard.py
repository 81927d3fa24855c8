"""A training's figures as TensorBoard reads them. TensorBoard is an extra; nothing else needs it."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from umamba_cli.pipeline.errors import InputError, WorkError

_FILE_VERSION = "brain.Event:2"
_GIBIBYTE = 1024**3


class TensorBoardLog:
    """Writes the lines of a `log.jsonl` to an event file, epochs as steps.

    The first line makes a file of its own, which tells TensorBoard to forget what earlier files hold of that epoch and
    later ones: where a training goes on from an earlier epoch, no epoch is seen twice. Between two lines no file is
    open, so a training that is killed leaves every epoch that it wrote.

    Args:
        folder: where the event files lie; made with the first line.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import tensorboard.compat.proto.event_pb2
            import tensorboard.summary.writer.record_writer  # noqa: F401
        except ImportError as error:
            raise InputError(
                f"--tensorboard needs TensorBoard, which cannot be loaded: {error}",
                next_step="pip install 'umamba[tensorboard]', or leave --tensorboard out",
            ) from error
        self._folder = folder
        self._file: Path | None = None

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write the figures of an epoch; those that are missing, None or not finite are left out.

        Args:
            entry: a line of `log.jsonl`.

        Raises:
            WorkError: the file cannot be written.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        step, events = int(entry["epoch"]), []
        if self._file is None:
            # Names are read in their order.
            self._file = self._folder / f"events.out.tfevents.{time.time_ns()}.{platform.node()}.{os.getpid()}"
            events = [
                Event(file_version=_FILE_VERSION),
                Event(step=step, session_log=SessionLog(status=SessionLog.START)),
            ]
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(entry).items()]
        events.append(Event(step=step, summary=Summary(value=values)))
        self._append(self._file, events)

    def close(self) -> None:
        """The next line would begin a new file."""
        self._file = None

    def _append(self, path: Path, events: list[Any]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                writer = RecordWriter(file)
                for event in events:
                    event.wall_time = time.time()
                    writer.write(event.SerializeToString())
        except OSError as error:
            raise WorkError(
                f"cannot write {path}: {error.strerror or error}",
                next_step="make room or get write permission there, then run the same command again",
            ) from error


def scalars(entry: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line of `log.jsonl`, under the names that TensorBoard shows and groups them by."""
    memory = entry.get("memory_bytes")
    named = {
        "loss/training": entry.get("train_loss"),
        "loss/validation": entry.get("val_loss"),
        "Dice/mean": entry.get("mean_dice"),
        **{f"Dice of labels/{name}": value for name, value in (entry.get("dice") or {}).items()},
        "learning rate": entry.get("learning_rate"),
        "epoch/seconds": entry.get("seconds"),
        "epoch/waiting share": entry.get("waiting_share"),
        "epoch/skipped steps": entry.get("skipped_steps"),
        "epoch/memory GiB": None if memory is None else memory / _GIBIBYTE,
    }
    return {tag: float(value) for tag, value in named.items() if value is not None and math.isfinite(value)}
