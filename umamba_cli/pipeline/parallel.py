"""One picklable function of one case, run for many cases in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from umamba_cli.pipeline.errors import WorkError
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress
from umamba_cli.pipeline.resources import begin_worker, default_workers, worker_context

Item = TypeVar("Item")
Result = TypeVar("Result")


def for_each_case(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    task: str,
    name: Callable[[Item], str],
    workers: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> list[Result]:
    """Call `function` on every item and return the results in the items' order.

    Args:
        function: a picklable function of one picklable item.
        items: the cases.
        task: what progress reports call the work.
        name: the name of an item, for progress reports.
        workers: processes; None means as many as the machine allows. With one, the work is done in this process.
        on_progress: told after each case.

    Raises:
        WorkError: a worker process died (most often killed because memory ran out).
        Exception: whatever `function` raised first; what has not begun by then is not begun.
    """
    workers = min(workers or default_workers(), max(len(items), 1))
    results: dict[int, Result] = {}
    on_progress(Progress(task, 0, len(items)))
    for index, result in _unordered(function, items, workers, task):
        results[index] = result
        on_progress(Progress(task, len(results), len(items), step=name(items[index])))
    return [results[index] for index in range(len(items))]


def _unordered(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, task: str
) -> Iterator[tuple[int, Result]]:
    if workers == 1:
        for index, item in enumerate(items):
            yield index, function(item)
        return
    with ProcessPoolExecutor(workers, mp_context=worker_context(), initializer=begin_worker) as pool:
        futures: dict[Future[Result], int] = {pool.submit(function, item): i for i, item in enumerate(items)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise WorkError(
                f"a worker process of {task} died, most likely because memory ran out",
                next_step="run the same command again with fewer --workers; finished cases are kept",
            ) from error
        finally:
            for future in futures:
                future.cancel()
