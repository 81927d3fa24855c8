from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from umamba_cli.pipeline.errors import InputError, WorkError
from umamba_cli.pipeline.parallel import for_each_case
from umamba_cli.pipeline.progress import Progress

FATAL, HUNGRY, WRONG = 3, 5, 7


def double(number: int) -> int:
    return 2 * number


def double_or_die(number: int) -> int:
    if number == FATAL:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == HUNGRY:
        raise MemoryError
    if number == WRONG:
        raise InputError("seven", next_step="take another")
    return 2 * number


def die_once(path: Path) -> str:
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return path.name


def test_results_come_in_the_order_of_the_items() -> None:
    seen: list[Progress] = []
    results = for_each_case(double, range(20), task="double", name=str, workers=2, on_progress=seen.append)
    assert results == list(range(0, 40, 2))
    assert [report.done for report in seen] == list(range(21))
    assert sorted(report.step for report in seen[1:]) == sorted(map(str, range(20)))


@pytest.mark.parametrize("workers", [1, 2])
def test_cases_that_run_out_of_memory_are_named_and_the_others_finish(workers: int) -> None:
    items = [number for number in range(7) if number != FATAL or workers > 1]
    seen: list[Progress] = []
    with pytest.raises(WorkError) as caught:
        for_each_case(
            double_or_die,
            items,
            task="double",
            name=str,
            describe=lambda number: f"case {number} (36x50x35)",
            workers=workers,
            on_progress=seen.append,
        )
    lost = [number for number in items if number in (FATAL, HUNGRY)]
    assert caught.value.details == tuple(f"case {number} (36x50x35)" for number in lost)
    assert f"in {len(lost)} of {len(items)} cases" in caught.value.problem
    assert (f"fewer --workers (it had {workers})" in caught.value.next_step) == (workers > 1)
    done = sorted(int(report.step.split()[0]) for report in seen[1:])
    assert done == [number for number in items if number not in lost]


def test_a_case_that_can_be_done_alone_is_done(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(5)]
    for path in paths[1:]:
        path.touch()
    seen: list[Progress] = []
    results = for_each_case(
        die_once, paths, task="die", name=lambda path: path.name, workers=2, on_progress=seen.append
    )
    assert results == ["0", "1", "2", "3", "4"]
    assert any(report.step.startswith("0 (once more and alone: a worker process was killed") for report in seen)


def always_die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_workers_that_never_finish_anything_are_given_up_soon() -> None:
    with pytest.raises(WorkError, match="before they have finished any of 100 cases") as caught:
        for_each_case(always_die, range(100), task="die", name=str, workers=2)
    assert caught.value.details == ("0", "1", "2", "3")


def test_any_other_error_ends_the_work() -> None:
    with pytest.raises(InputError, match="seven"):
        for_each_case(double_or_die, [1, 2, WRONG, 4], task="double", name=str, workers=2)
