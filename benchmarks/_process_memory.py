"""A process and all that it starts: how long it takes, and the most memory that they have together.

Memory is the proportional set size (Pss of /proc/PID/smaps_rollup): pages that several processes share count once,
and pages of mapped files count. Linux alone tells.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from umamba_cli.pipeline.errors import InputError

EVERY_S = 0.1


@dataclass(frozen=True)
class Watched:
    """What was seen of a process."""

    began: float
    ended: float
    """On the clock of `time.monotonic`."""

    peak_bytes: int
    """Of the process and those below it, summed at the same moment."""

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def watch(command: Sequence[str]) -> Watched:
    """Run a process to its end and look at its memory every `EVERY_S`.

    Raises:
        InputError: it failed, or this system does not tell.
    """
    if not Path("/proc/self/smaps_rollup").is_file():
        raise InputError("this system has no /proc/PID/smaps_rollup", next_step="run it on Linux")
    with tempfile.TemporaryFile() as errors:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(_pss_bytes, process_tree(process.pid))))
            time.sleep(EVERY_S)
        ended = time.monotonic()
        if process.returncode:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()
            raise InputError(
                f"{Path(command[0]).name} ended with {process.returncode}: {said[-500:]}",
                next_step="run it by hand to see why",
            )
    return Watched(began, ended, peak)


def process_tree(root: int) -> list[int]:
    """A process and all below it."""
    children = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2]
            except OSError:  # it has just ended
                continue
            children[int(after_name.split()[1])].append(int(entry.name))
    found = [root]
    for process in found:
        found.extend(children[process])
    return found


def _pss_bytes(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
