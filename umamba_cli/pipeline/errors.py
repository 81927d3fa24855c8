"""The errors that umamba raises on purpose.

Every one says what is wrong, which file and value, and what to do next. `cli.py` turns it into the two lines that a
person sees and into the exit code; Python users catch `UmambaError`.
"""

from __future__ import annotations

from collections.abc import Sequence


class UmambaError(Exception):
    """Something umamba knows how to explain.

    Args:
        problem: what is wrong, one sentence without a full stop, naming file and value.
        details: further lines, one for each bad case or value.
        next_step: what to do about it, one sentence.
    """

    exit_code = 1

    def __init__(self, problem: str, *, next_step: str, details: Sequence[str] = ()) -> None:
        super().__init__(problem, tuple(details), next_step)
        self.problem = problem
        self.details = tuple(details)
        self.next_step = next_step

    def __reduce__(self) -> tuple[object, ...]:
        # Worker processes hand their errors over by pickle, which knows positional arguments alone.
        return _rebuild, (type(self), self.problem, self.details, self.next_step)

    def __str__(self) -> str:
        return "\n".join([self.problem, *(f"  {line}" for line in self.details)])


def _rebuild(kind: type[UmambaError], problem: str, details: tuple[str, ...], next_step: str) -> UmambaError:
    return kind(problem, details=details, next_step=next_step)


class InputError(UmambaError):
    """The arguments or the input are wrong; nothing was done. Exit code 2."""

    exit_code = 2


class WorkError(UmambaError):
    """The input was accepted but the work failed. Exit code 1."""


class Stopped(UmambaError):
    """A signal ended the work, which was kept; the same command goes on. Exit code 130."""

    exit_code = 130
