"""Doing one thing while another goes on: reading the next case while the network works, writing the last one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")
_END = object()


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, of which the next one is made in a thread while the present one is used.

    An error that comes instead of an item is raised in its place.
    """
    source = iter(items)
    with ThreadPoolExecutor(1) as thread:
        coming: Future[object] = thread.submit(next, source, _END)
        while (item := coming.result()) is not _END:
            coming = thread.submit(next, source, _END)
            yield item  # type: ignore[misc]


class InBackground:
    """Calls functions one after the other in a thread, inside a `with`; few wait at a time."""

    def __init__(self, most_waiting: int = 2) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()
        self._most = most_waiting
        self.failed = False
        """Whether a function raised something."""

    def __enter__(self) -> InBackground:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._wait_for(0)
        finally:  # after an error what waits is not begun; what has begun ends whole
            self._thread.shutdown(cancel_futures=True)

    def call(self, function: Callable[[], None]) -> None:
        """Have a function called; an error of an earlier one is raised here, or at the end of the block."""
        self._wait_for(self._most - 1)
        self._waiting.append(self._thread.submit(function))

    def _wait_for(self, left: int) -> None:
        while len(self._waiting) > left:
            try:
                self._waiting.popleft().result()
            except BaseException:
                self.failed = True
                raise
