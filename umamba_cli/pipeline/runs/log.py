"""A run's `log.jsonl`: one line an epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from umamba_cli.pipeline.data.files import to_plain, write_text
from umamba_cli.pipeline.data.workspace import Run

_LARGEST = 1e100  # beyond, it is damage, and differences overflow

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


def number_of(entry: Mapping[str, Any], name: str) -> float:
    """A number of a line, or of what a line holds; NaN where there is none: whatever a log holds must stop nobody."""
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        return math.nan
    return float(value)


def write_log(run: Run, log: Sequence[EpochLog]) -> None:
    """Write a run's log, whole or not at all."""
    write_text(run.log_file, "".join(json.dumps(to_plain(entry)) + "\n" for entry in log))
