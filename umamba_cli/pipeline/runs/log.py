"""A run's `log.jsonl`: one line an epoch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from umamba_cli.pipeline.data.files import to_plain, write_text
from umamba_cli.pipeline.data.workspace import Run

EpochLog = dict[str, Any]
"""A line: `epoch`, from 1, and what there is to tell of it."""


def read_log(run: Run) -> tuple[list[EpochLog], int]:
    """The epochs of a run's log, and how many lines are none; nothing where there is no log yet.

    Damage costs the lines that it is in: what goes on from a log needs none of it.
    """
    try:
        lines = run.log_file.read_bytes().splitlines()
    except OSError:
        return [], 0
    entries: list[EpochLog] = []
    bad = 0
    for line in lines:
        try:
            entry = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            entry = ()
        if isinstance(entry, dict) and type(entry.get("epoch")) is int:
            entries.append(entry)
        elif entry is not None:
            bad += 1
    return entries, bad


def write_log(run: Run, log: Sequence[EpochLog]) -> None:
    """Write a run's log, whole or not at all."""
    write_text(run.log_file, "".join(json.dumps(to_plain(entry)) + "\n" for entry in log))
