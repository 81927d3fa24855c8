"""Signals that ask a training to end: it finishes its step, keeps where it is, and ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
"""Ctrl-C; what `kill`, Docker and schedulers send; what Slurm can be told to send before the time is up
(`--signal=USR1@120`); the end of the terminal."""


class StopRequest:
    """Notes signals while it is entered, instead of letting them end the process; a second Ctrl-C ends it at once.

    In any other than the main thread, where Python allows no handlers, it notes nothing.
    """

    def __init__(self) -> None:
        self.name = ""
        """The signal that came first; empty until then."""

        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # as under nohup: it stays ignored
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = self.name or signal.Signals(number).name
