"""Watching a folder: predicting what is put there once it has come whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from umamba_cli.pipeline.data.files import file_state
from umamba_cli.pipeline.data.inputs import Found, InputCase
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.inference.export import Wanted
from umamba_cli.pipeline.inference.predict import PredictionResult, Segmenter, open_output, predict_cases
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress

_State = tuple[object, ...]


def watch(
    segmenter: Segmenter[Any],
    look: Callable[[], Found],
    output: Path,
    *,
    wanted: Wanted,
    every_s: float,
    on_progress: OnProgress = ignore_progress,
    wait: Callable[[float], None] = time.sleep,
) -> PredictionResult:
    """Predict what comes, until KeyboardInterrupt.

    A case whose files are the same at two looks is whole. One that fails is told of at once, and tried again when its
    files change, for instance because a channel that was missing has come.

    Args:
        segmenter: what predicts.
        look: what is there now; an InputError is told of, and looked at again.
        output: see `predict_cases`.
        wanted: see `predict_cases`.
        every_s: seconds between looks.
        on_progress: told after each case.
        wait: waits for so many seconds.

    Returns:
        What was done in all.

    Raises:
        InputError, WorkError: see `predict_cases`; InputError also where the first look finds that it cannot go on.
    """
    first = look().cases
    folder = open_output(segmenter, first, output, wanted=wanted, overwrite=False)
    arrivals, told = Arrivals(), ""
    skipped = [case.identifier for case in first if folder.is_done(case)]
    sums: dict[str, str] = {}
    failed: dict[str, str] = {}
    ready: list[InputCase] = []
    on_progress(Progress("predict", 0, 0, note=f"watching; {len(skipped)} cases are predicted already"))
    try:
        while True:
            try:
                found = look()
                there, problem = found.cases, "; ".join(found.notes)
            except (InputError, OSError) as error:  # a network drive may be gone for a while
                there, problem = (), str(error)
            if problem and problem != told:
                on_progress(Progress("predict", 0, 0, warning=problem))
            told = problem
            ready = arrivals.whole([case for case in there if not folder.is_done(case)])
            present = {case.identifier for case in there}
            failed = {name: why for name, why in failed.items() if name in present or problem}
            if ready:
                result = predict_cases(segmenter, ready, output, wanted=wanted, on_progress=on_progress)
                sums |= result.sums
                failed = {name: why for name, why in failed.items() if name not in sums} | dict(result.failed)
                for name, why in result.failed.items():
                    on_progress(Progress("predict", 0, 0, warning=f"{name}: {why}"))
            wait(every_s)
    except KeyboardInterrupt:  # how it is meant to end; what was not finished is not there
        sums = {**{case.identifier: "" for case in ready if folder.is_done(case)}, **sums}
    return PredictionResult(tuple(sums), tuple(skipped), failed, sums)


class Arrivals:
    """Tells of images that were put into a folder once nobody writes to them any more."""

    def __init__(self) -> None:
        """Nothing has been seen yet."""
        self._seen: dict[str, _State] = {}
        self._told: dict[str, _State] = {}

    def whole(self, cases: Sequence[InputCase]) -> list[InputCase]:
        """The cases whose files are the same as at the last look; each once, and again where its files change."""
        now = {case.identifier: _state(case) for case in cases}
        ready = [
            case
            for case in cases
            if now[case.identifier] == self._seen.get(case.identifier) != self._told.get(case.identifier)
        ]
        self._seen = now
        self._told |= {case.identifier: now[case.identifier] for case in ready}
        return ready


def _state(case: InputCase) -> _State:
    try:
        return tuple((path, file_state(path)) for path in case.files)
    except OSError:  # gone between two looks
        return ()
