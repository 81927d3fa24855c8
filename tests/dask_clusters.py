"""A Dask scheduler and its workers, as processes of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_S = 60.0


class DaskProcesses:
    """A scheduler, and workers of one thread each. Their files, and what they say, are in `folder`."""

    def __init__(self, folder: Path, allowed_failures: int = 1) -> None:
        self.folder = folder
        self.held = folder / "held"
        """See `hold`."""

        self.held.mkdir(parents=True)
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent),
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(allowed_failures),
            "UMAMBA_TEST_HELD": str(self.held),
        }
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """Start the scheduler, and return its address."""
        noted = self.folder / "scheduler.json"
        here = "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"
        ends_by_itself = "--idle-timeout", "600 s"  # and with it the workers, should the tests be killed
        self.scheduler = self._run("distributed.cli.dask_scheduler", *here, *ends_by_itself, "--scheduler-file", noted)
        wait_for(noted.exists)
        self.address: str = json.loads(noted.read_text())["address"]
        return self.address

    def keep_workers(self, count: int) -> None:
        """Start workers until there are so many that live; each is one process, which nothing starts again."""
        alive = [worker for worker in self.workers if worker.poll() is None]
        self.workers += [self.start_worker("--no-nanny") for _ in range(count - len(alive))]
        wait_for(lambda: len(self.worker_names()) >= count)

    def start_worker(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a worker; it is there a little later."""
        plain = "--nworkers", "1", "--nthreads", "1", "--no-dashboard", "--memory-limit", "0"
        place = "--local-directory", self.folder / "workers", "--preload", "dask_work"
        return self._run("distributed.cli.dask_worker", self.address, *plain, *place, *arguments)

    def worker_names(self) -> list[str]:
        """The addresses of the workers that the scheduler knows."""
        from distributed import Client

        with Client(self.address, timeout=10, set_as_default=False) as client:
            return list(client.nthreads())

    def hold(self, name: str) -> Path:
        """Let the first worker that writes a file of this name wait, half done, for ever.

        Returns:
            A file that holds the process's id, once it waits.
        """
        (self.held / name).touch()
        return self.held / f"{name}.pid"

    def stop(self) -> None:
        """End all processes, whatever they are doing; a worker whose nanny has gone ends by itself."""
        running = [*self.workers, *([self.scheduler] if self.scheduler else [])]
        for process in running:
            process.kill()
        for process in running:
            process.wait()

    def _run(self, module: str, *arguments: object) -> subprocess.Popen[bytes]:
        with (self.folder / f"{module}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)],
                env=self._environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )


@contextmanager
def dask_processes(folder: Path, workers: int) -> Iterator[DaskProcesses]:
    """A scheduler with some workers, inside a `with`."""
    processes = DaskProcesses(folder)
    try:
        processes.start()
        processes.keep_workers(workers)
        yield processes
    finally:
        processes.stop()


def wait_for(happened: Callable[[], object]) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.05)
