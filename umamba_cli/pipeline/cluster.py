"""Cases worked on by a Dask cluster: machines that see the same files, and a scheduler that all of them can reach.

`distributed` is an extra, and nothing of it is imported before a cluster is asked for. What a worker does when others
die is Dask's: https://distributed.dask.org/en/stable/resilience.html and https://distributed.dask.org/en/stable/killed.html.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import queue
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import umamba_cli
from umamba_cli.pipeline.errors import InputError, WorkError

if TYPE_CHECKING:
    from distributed import Client, Future

Item = TypeVar("Item")
Result = TypeVar("Result")

_ANSWER_S = 5.0
"""How long a scheduler may take to answer, and the first worker to be there."""

_WITHOUT_WORKERS_S = 60.0
"""How long work waits for a worker when the last one has gone: a nanny or a batch system may start another."""

_LOOK_EVERY_S = 1.0

_MOST_DEATHS = 3
"""Of workers while they had one case. Dask takes one more than its `scheduler.allowed-failures`, which is 3."""

_LOGS = "distributed", "distributed.client", "tornado.application"
"""What these say to standard error while a client lives is left out: what matters of it is raised."""

_SeenPath = tuple[str, int | None]
"""A path that all machines must see; of a file the bytes, by which one of the same name is told apart."""


class Cluster:
    """The connection to a scheduler; see `connected`."""

    def __init__(self, client: Client, address: str) -> None:
        self._client = client
        self._address = address
        self._needed: tuple[_SeenPath, ...] = ()
        self._workerless_since: float | None = None

    @property
    def workers(self) -> tuple[str, ...]:
        """The addresses of the workers that are there now."""
        return tuple(self._client.nthreads())

    @property
    def most_on_one_machine(self) -> int:
        """Workers on the machine that has the most of them, which must share its cores."""
        return max(Counter(urlsplit(worker).hostname for worker in self.workers).values(), default=1)

    def require_same(self, paths: Sequence[Path], *, written: Path | None = None) -> None:
        """Make sure that every worker has this version of umamba and sees the same files.

        Workers that come later are looked at before their first case.

        Args:
            paths: files and folders that the cases lie in, absolute.
            written: a folder that workers write to; it is seen to be the same one, not one of the same name.

        Raises:
            InputError: a worker has another version, or does not see a path; all are named.
            WorkError: `written` cannot be written to.
        """
        self._needed = tuple((str(path), _size(path)) for path in dict.fromkeys(paths))
        with _marker_in(written) as marker:
            needed = (*self._needed, *marker)
            answers = self._client.run(_look_around, umamba_cli.__version__, needed, on_error="return")
        problems = []
        for worker, answer in sorted(answers.items()):
            if isinstance(answer, OSError):  # it has gone since
                continue
            if isinstance(answer, BaseException):
                problems.append(f"{worker} has no umamba, or another version of it: {answer}")
            else:
                problems += [f"{worker} {problem}" for problem in answer]
        if problems:
            raise _not_alike(problems)

    def tell_all(self, function: Callable[[Item], object], item: Item) -> None:
        """Call `function` on every worker beside its work, at once: it must not wait. What fails is let be."""
        with suppress(Exception):
            self._client.run(function, item, on_error="ignore")

    def unordered(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Generator[tuple[int, Result, bool], None, None]:
        """Have `function` called on every item by some worker.

        A case whose worker dies is done by another one. Cases that several deaths have befallen, and such as ran out of
        memory, are tried again one at a time, because a case is suspected too that only waited where another one killed
        the worker. Those that fail again are not among the results.

        Args:
            function: picklable, of one picklable item; called again where a worker died, perhaps after it had finished.
            items: the cases; paths in them must be absolute.

        Yields:
            Index and result of each item as it is done, and whether it took a second try.

        Raises:
            WorkError: the scheduler has gone, or all workers.
            InputError: a worker that came later has another version, or does not see the files.
            Exception: whatever else `function` raised first; what has not begun by then is not begun.
        """
        deaths: Counter[int] = Counter()
        for index, result in self._once(function, items, range(len(items)), deaths):
            yield index, result, False
        for suspect in sorted(deaths):
            tries_left = True
            while tries_left:
                for index, result in self._once(function, items, [suspect], deaths):
                    yield index, result, True
                    tries_left = False
                tries_left = tries_left and deaths[suspect] < _MOST_DEATHS

    def _once(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        indices: Sequence[int],
        deaths: Counter[int],
    ) -> Iterator[tuple[int, Result]]:
        """Results as they come; the deaths of workers are added up for the items that none comes of."""
        ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        working: dict[Future, int] = {}
        try:
            for index in indices:
                # Pickled here, so that Dask neither looks into an item nor takes one for a result that it knows.
                task = pickle.dumps((umamba_cli.__version__, self._needed, function, items[index]))
                future = self._client.submit(do_case, task, pure=False)
                working[future] = index
                future.add_done_callback(ended.put)
            while working:
                try:
                    future = ended.get(timeout=_LOOK_EVERY_S)
                except queue.Empty:
                    self._require_workers(len(working))
                    continue
                self._workerless_since = None
                if future.status in ("pending", "lost"):  # the worker that held the result died just now
                    future.add_done_callback(ended.put)
                    continue
                error = self._error(future)
                if died := _deaths(error):
                    deaths[working.pop(future)] += died
                elif error is not None:
                    raise error
                else:
                    result: Result = self._result(future)
                    yield working.pop(future), result
        finally:
            with suppress(Exception):  # the scheduler may be what has gone
                self._client.cancel(list(working))

    def _error(self, future: Future) -> BaseException | None:
        if future.status == "cancelled":
            raise WorkError(
                f"the Dask scheduler at {self._address} has gone, or was restarted",
                next_step="start it again, and run the same command again; finished cases are kept",
            )
        error: BaseException | None = future.exception()
        return error

    def _result(self, future: Future) -> Any:
        """What was found; where the worker that holds it has died since, it is found again."""
        while True:
            try:
                return future.result(timeout=_WITHOUT_WORKERS_S)
            except (TimeoutError, asyncio.TimeoutError):
                self._require_workers(1)

    def _require_workers(self, waiting: int) -> None:
        """Do not wait for ever where the last worker has gone."""
        with suppress(OSError):  # the scheduler has gone, which is told of by the futures
            if self.workers:
                self._workerless_since = None
                return
            now = time.monotonic()
            self._workerless_since = self._workerless_since or now
            if now - self._workerless_since > _WITHOUT_WORKERS_S:
                raise WorkError(
                    f"the cluster at {self._address} has lost all its workers, cases left to do: {waiting}",
                    next_step="see their logs (memory?), start them and run the same command again; finished cases are "
                    "kept",
                )


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """The cluster of a Dask scheduler, inside a `with`; what has not begun when it ends is not begun any more.

    Args:
        address: such as `tcp://127.0.0.1:8786`.

    Raises:
        InputError: the extra is not installed, no scheduler answers there, or it has no workers.
    """
    try:
        import distributed
    except ModuleNotFoundError as error:
        raise InputError(
            f"a cluster needs the package distributed, which is not installed: {error}",
            next_step="pip install 'umamba[cluster]', on all its machines",
        ) from error

    logs = [logging.getLogger(name) for name in _LOGS]
    levels = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.CRITICAL)
        _require_scheduler(address)
        with distributed.Client(address, timeout=_ANSWER_S, set_as_default=False) as client:
            try:
                client.wait_for_workers(1, timeout=_ANSWER_S)
            except (TimeoutError, asyncio.TimeoutError) as error:
                raise InputError(
                    f"the Dask scheduler at {address} has no workers",
                    next_step=f"start some: `dask worker {address} --nthreads 1`, on machines that see the same files",
                ) from error
            yield Cluster(client, address)
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _require_scheduler(address: str) -> None:
    """Make sure that a scheduler answers: a client would wait for ever where a port is open and nothing is said.

    Raises:
        InputError: none does.
    """
    from distributed.comm import core
    from distributed.security import Security

    async def shake_hands() -> None:
        arguments = Security().get_connection_args("client")
        connection = await asyncio.wait_for(core.connect(address, timeout=_ANSWER_S, **arguments), _ANSWER_S)
        await connection.close()

    try:
        with ThreadPoolExecutor(1) as thread:  # the caller may have an event loop of its own
            thread.submit(asyncio.run, shake_hands()).result()
    except Exception as error:  # bytes of another protocol fail in many ways
        raise InputError(
            f"no Dask scheduler answers at {address}: {str(error) or type(error).__name__}",
            next_step="start one with `dask scheduler`, and give the address that it prints, such as "
            "tcp://127.0.0.1:8786",
        ) from error


def do_case(task: bytes) -> Any:
    """On a worker: do one case."""
    version, needed, function, item = pickle.loads(task)  # of a process that runs what it likes here anyway
    _require_alike(version, needed)
    return function(item)


@lru_cache(maxsize=8)
def _require_alike(version: str, needed: tuple[_SeenPath, ...]) -> None:
    if problems := _look_around(version, needed):
        from distributed import get_worker

        raise _not_alike([f"{get_worker().address} {problem}" for problem in problems])


def _look_around(version: str, needed: Sequence[_SeenPath]) -> list[str]:
    """On a worker: what it has not in common with the process that sends it work."""
    problems = [f"has umamba {umamba_cli.__version__}, this is {version}"] if umamba_cli.__version__ != version else []
    for path, size in needed:
        try:
            if Path(path).stat() and _size(Path(path)) != size:
                problems.append(f"sees another {path}")
        except OSError as error:
            problems.append(f"does not see {path}: {error.strerror or error}")
    return problems


def _not_alike(problems: Sequence[str]) -> InputError:
    return InputError(
        "not all workers of the cluster can do the work",
        details=problems,
        next_step="install the same umamba on all machines, and give paths that are the same folders on all of them",
    )


def _size(path: Path) -> int | None:
    """Bytes of a file; None of a folder, or where there is nothing."""
    return path.stat().st_size if path.is_file() else None


@contextmanager
def _marker_in(folder: Path | None) -> Iterator[list[_SeenPath]]:
    """A file with a name of its own in a folder that all should see."""
    if folder is None:
        yield []
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".seen.partial-", dir=folder)
        os.close(handle)
    except OSError as error:
        raise WorkError(
            f"cannot write to {folder}: {error.strerror or error}",
            next_step="make room or get write permission there, then run the same command again",
        ) from error
    try:
        yield [(name, 0)]
    finally:
        Path(name).unlink(missing_ok=True)


def _deaths(error: BaseException | None) -> int:
    """How many workers a case has outlived, by the error it ended with."""
    from distributed.scheduler import KilledWorker

    if isinstance(error, KilledWorker):
        return int(error.allowed_failures) + 1
    return _MOST_DEATHS if isinstance(error, MemoryError) else 0
