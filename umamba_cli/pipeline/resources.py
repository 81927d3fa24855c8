"""What this process may use: cores, memory and disk."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import threading
from multiprocessing.context import BaseContext
from pathlib import Path
from types import FrameType

from umamba_cli.pipeline.errors import InputError

_MIB, _GIB = 1024**2, 1024**3
_GRACE_S = 10.0


def usable_cores() -> int:
    """Cores that this process may use, its affinity and its cgroup's quota counted."""
    import joblib

    return int(joblib.cpu_count())


def free_memory_bytes() -> int:
    """Memory that can be taken without swapping: what the machine has free, or what the cgroup still allows."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such cgroup, or the limit is "max"
            continue
    return max(free, 0)


def most_memory_bytes() -> int:
    """Memory that this process could have were it alone: all of the machine's, or what its cgroup allows; no swap."""
    import psutil

    most = int(psutil.virtual_memory().total)
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            most = min(most, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such cgroup, or the limit is "max"
            continue
    return most


def process_memory_bytes() -> int:
    """Memory of this process that lies in RAM."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def out_of_memory_kills() -> int | None:
    """How many processes the system has killed because memory ran out; None where it does not tell.

    Those of this process's cgroup where it has one of its own, otherwise those of the machine.
    """
    for path in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return None


def default_workers(bytes_each: float = _GIB) -> int:
    """Worker processes that fit the cores and, at `bytes_each`, the free memory; at least one."""
    return max(1, min(usable_cores(), int(free_memory_bytes() / max(bytes_each, 1))))


def require_disk(folder: Path, needed_bytes: float) -> None:
    """Make sure that `needed_bytes` are free where `folder` is or will be.

    Raises:
        InputError: they are not.
    """
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise InputError(
            f"{folder} needs about {needed_bytes / _MIB:,.6g} MiB, the disk has {free / _MIB:.0f} MiB free",
            next_step="make room, or choose a folder on another disk",
        )


def begin_worker() -> None:
    """In a worker process: compute on one thread, leave signals to the parent, and end when the parent has died.

    A worker is the child of a server process, which would let it live on for ever after a kill of the real parent.
    Schedulers send their signals to all processes of a job: the parent needs its workers a little longer, to finish
    what it is doing.
    """
    import threadpoolctl

    for name in ("SIGINT", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_soon)
    threadpoolctl.threadpool_limits(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_soon(_number: int, _frame: FrameType | None) -> None:
    timer = threading.Timer(_GRACE_S, os._exit, args=(1,))
    timer.daemon = True
    timer.start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def prepare_workers(workers: int | None, *modules: str) -> None:
    """Start what worker processes come from, so that it imports what they will need while this process does the same.

    Args:
        workers: how many there will be; for a single one the work is done in this process, and nothing is started.
        modules: to import there; none may start threads as it is imported.
    """
    context = worker_context()
    if workers != 1 and context.get_start_method() == "forkserver":
        from multiprocessing import forkserver

        context.set_forkserver_preload(list(modules))
        forkserver.ensure_running()


def worker_context() -> BaseContext:
    """How worker processes are started: from a clean server process where the system has one, otherwise afresh.

    A plain fork of this process would inherit its threads' locks (OpenMP's above all) and could hang.
    """
    return multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
