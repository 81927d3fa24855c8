"""One picklable function of one case, run for many cases in worker processes, here or of a cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from umamba_cli.pipeline.errors import WorkError
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress
from umamba_cli.pipeline.resources import begin_worker, default_workers, worker_context

Item = TypeVar("Item")
Result = TypeVar("Result")

_GIVE_UP_AFTER = 4
"""Cases in which workers died, when there is none in which they did not: something else is wrong than memory."""

_SECOND_TRY = " (once more and alone: a worker process was killed or short of memory; fewer --workers avoid that)"


def for_each_case(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    task: str,
    name: Callable[[Item], str],
    describe: Callable[[Item], str] | None = None,
    workers: int | None = None,
    cluster: OnCluster | None = None,
    on_progress: OnProgress = ignore_progress,
) -> list[Result]:
    """Call `function` on every item and return the results in the items' order.

    Where memory runs out (a worker process is killed, or told so), the cases that were being worked on are tried again
    one at a time, with the memory to themselves. Those that fail again are named at the end; all others are done first.

    Args:
        function: a picklable function of one picklable item.
        items: the cases; for a cluster, the paths in them are absolute.
        task: what progress reports call the work.
        name: the name of an item, for progress reports.
        describe: name and size of an item that could not be done; None: `name` serves.
        workers: processes; None means as many as the machine allows. With one, the work is done in this process.
        cluster: has its workers do it; None: it is done on this machine.
        on_progress: told after each case.

    Raises:
        WorkError: a worker process died on a case even when it was alone (most often killed because memory ran out).
        InputError: no such cluster, or its workers do not see the same files.
        Exception: whatever else `function` raised first; what has not begun by then is not begun.
    """
    workers = min(workers or default_workers(), max(len(items), 1))
    results: dict[int, Result] = {}
    on_progress(Progress(task, 0, len(items)))
    source = _unordered(function, items, workers) if cluster is None else cluster.unordered(function, items)
    with closing(source):
        for index, result, is_second_try in source:
            results[index] = result
            step = name(items[index]) + (_SECOND_TRY if is_second_try else "")
            on_progress(Progress(task, len(results), len(items), step=step))
    lost = [(describe or name)(item) for index, item in enumerate(items) if index not in results]
    if lost:
        raise _lost(lost, len(results), task, None if cluster else workers)
    return [results[index] for index in range(len(items))]


@dataclass(frozen=True)
class OnCluster:
    """A Dask cluster to have cases done by, and what all its machines must see."""

    address: str
    """Of the scheduler, such as `tcp://127.0.0.1:8786`."""

    paths: tuple[Path, ...] = ()
    """Files and folders that the cases lie in, absolute."""

    written: Path | None = None
    """A folder that workers write to."""

    def unordered(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Generator[tuple[int, Result, bool], None, None]:
        """Index and result of each item that could be done, and whether it took a second try; see `cluster.Cluster`."""
        if not items:
            return
        from umamba_cli.pipeline.cluster import connected

        with connected(self.address) as cluster:
            cluster.require_same(self.paths, written=self.written)
            yield from cluster.unordered(function, items)


def _lost(lost: Sequence[str], finished: int, task: str, workers: int | None) -> WorkError:
    """What to raise when cases could not be done.

    Args:
        lost: what to call them.
        finished: how many others are done.
        task: what was done to them.
        workers: processes there were; None: those of a cluster.
    """
    total = len(lost) + finished
    if not finished and workers != 1:
        return WorkError(
            f"memory runs out, or something else kills the worker processes of {task}, "
            f"before they have finished any of {total} cases",
            details=lost[:_GIVE_UP_AFTER],
            next_step="compare the spacing in the plans with the images' size; take a machine with more memory",
        )
    if workers is None:
        how = "give the cluster's workers more memory and run the same command again"
    elif workers > 1:
        how = f"run the same command again with fewer --workers (it had {workers}), or on a machine with more memory"
    else:
        how = "run it on a machine with more memory"
    return WorkError(
        f"memory ran out, or something else killed a worker process, in {len(lost)} of {total} cases of {task}"
        + (f"; the other {finished} are done" if finished else ""),
        details=lost,
        next_step=f"{how}; finished cases are kept",
    )


def _unordered(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Generator[tuple[int, Result, bool], None, None]:
    """Index and result of each item that could be done, and whether it took a second try."""
    waiting = deque(range(len(items)))
    if workers == 1:
        for index in waiting:
            try:
                yield index, function(items[index]), False
            except MemoryError:
                continue
        return
    done, tried_alone = 0, 0
    while waiting:
        interrupted: list[int] = []
        for index, result in _in_pool(function, items, waiting, workers, interrupted):
            done += 1
            yield index, result, False
        for lonely in interrupted:
            tried_alone += 1
            for index, result in _in_pool(function, items, deque([lonely]), 1, []):
                done += 1
                yield index, result, True
        if not done and tried_alone >= min(_GIVE_UP_AFTER, len(items)):
            return


def _in_pool(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    waiting: deque[int],
    workers: int,
    interrupted: list[int],
) -> Iterator[tuple[int, Result]]:
    """Work until nothing waits or a worker has died, and leave in `interrupted` what ran out of memory or was cut off.

    No more cases are handed out than there are workers, so that no other can have been at fault.
    """
    working: dict[Future[Result], int] = {}
    with ProcessPoolExecutor(workers, mp_context=worker_context(), initializer=begin_worker) as pool:
        try:
            while waiting or working:
                while waiting and len(working) < workers:
                    working[pool.submit(function, items[waiting[0]])] = waiting[0]
                    waiting.popleft()
                done = wait(working, return_when=FIRST_COMPLETED).done
                for future in [future for future in done if not _died(future)]:
                    index = working.pop(future)
                    if isinstance(future.exception(), MemoryError):
                        interrupted.append(index)
                    else:
                        yield index, future.result()
                if any(_died(future) for future in working if future.done()):
                    break
        except BrokenProcessPool:  # a worker died between two cases
            pass
        finally:
            pool.shutdown(cancel_futures=True)
    interrupted += working.values()


def _died(future: Future[Result]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)
