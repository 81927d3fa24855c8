"""How the library tells what it is doing: it calls a function with a frozen value, and prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """One step done of a known number of steps."""

    task: str
    """What is going on: `preprocess`, `train`, ... One task is one bar."""

    done: int
    """Steps finished, from 0 (the start) to `total`."""

    total: int
    """Steps there will be."""

    step: str = ""
    """What was just finished: a case, an epoch."""

    figures: Mapping[str, str] = field(default_factory=dict)
    """Figures to show beside the bar, already formatted."""

    within: float = 0.0
    """Share (0 to 1) of the next step that is done; such a report moves a bar and prints no line."""

    note: str = ""
    """What is good to know once: how a training begins, ..."""

    warning: str = ""
    """What the user must know although the work goes on; shown even where progress is not."""


OnProgress = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """For callers who do not want to know."""
