"""What a comparison says, in one sentence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from umamba_cli.pipeline.evaluation.statistics import holm

if TYPE_CHECKING:
    from umamba_cli.pipeline.evaluation.comparison_results import PairDifference

LEVEL = 0.05
"""A difference is shown where its adjusted p-value is below this."""

_MOST_CLAUSES = 3
"""Of a sentence; more are told in short, and are in the tables."""

WITHOUT_MAMBA = "umamba-none"
WITH_MAMBA = ("umamba-bot", "umamba-enc")
"""Variants too, such as `umamba-bot+mamba2-both`, but for those of `NOT_MAMBA`."""

NOT_MAMBA = "s4d"
"""The mixer that is no Mamba: it selects nothing."""


@dataclass(frozen=True)
class Repetitions:
    """How often every fold of every model was trained."""

    fewest: int
    most: int

    folds: bool
    """There are folds; otherwise there are folders of predictions, one for each training."""

    def text(self) -> str:
        """For example "2 trainings a fold"."""
        number = {1: "one"}.get(self.most, str(self.most))
        if self.fewest < self.most:
            number = f"{self.fewest} to {self.most}"
        return f"{number} training{'s' if self.most > 1 else ''} a {'fold' if self.folds else 'model'}"


def metric_verdict(
    metric: str, models: Sequence[str], pairs: Sequence[PairDifference], repetitions: Repetitions, margin: float
) -> str:
    """Which models do better than which in a metric; holds "no difference shown" where no pair's difference is.

    Args:
        metric: its name in a sentence.
        models: all of them.
        pairs: all pairs of them.
        repetitions: see there.
        margin: what a difference must reach where the spread over trainings is not known.
    """
    shown = [pair for pair in pairs if pair.shown]
    notes = "; ".join(_notes(pairs, repetitions, margin))
    if not shown:
        return f"No difference shown in {metric} between {listed(models)} ({notes})."
    which = "In these trainings, " if _spread_is_unknown(shown) else ""
    return f"{which}{_better(shown, metric)}{_others([pair for pair in pairs if not pair.shown])}, over {notes}."


def labels_verdict(metric: str, labels: Mapping[str, Sequence[PairDifference]]) -> str | None:
    """Single labels in which one model does better than another; None where there are none.

    Args:
        metric: its name in a sentence.
        labels: the pairs of every label, by its name; judged as one table.
    """
    shown = {label: [pair for pair in pairs if pair.shown] for label, pairs in labels.items()}
    found = [f"{label}: {_better(pairs, metric)}" for label, pairs in shown.items() if pairs]
    return f"Of single labels, {'; '.join(found)}." if found else None


def mamba_verdict(metric: str, pairs: Sequence[PairDifference]) -> str | None:
    """Whether Mamba helps: the models with it against the same network without it; None where either is missing."""
    pairs = [
        pair
        for pair in pairs
        if WITHOUT_MAMBA in (pair.first, pair.second) and (_has_mamba(pair.first) or _has_mamba(pair.second))
    ]
    if not pairs:
        return None
    shown = [pair for pair in pairs if pair.shown]
    rivals = " or ".join(pair.first if pair.second == WITHOUT_MAMBA else pair.second for pair in pairs)
    if not shown:
        return (
            f"No difference shown in {metric} between {WITHOUT_MAMBA}, the same network without Mamba, and {rivals}: "
            "that Mamba helps is not shown on this data."
        )
    harmful = [pair for pair in shown if pair.better == WITHOUT_MAMBA]
    if len(harmful) == len(pairs):
        opening = "Mamba does harm on this data"
    elif len(harmful) == len(shown):
        opening = "That Mamba helps is not shown on this data, and one way of using it does harm"
    elif harmful:
        opening = "Whether Mamba helps on this data depends on how it is used"
    else:
        opening = "Mamba helps on this data"
    rest = _others([pair for pair in pairs if not pair.shown])
    doubt = (
        " It rests on one training of each, which may differ as much by chance." if _spread_is_unknown(shown) else ""
    )
    return f"{opening}: {_better(shown, metric)}{rest}; {WITHOUT_MAMBA} is the same network without Mamba.{doubt}"


def _has_mamba(name: str) -> bool:
    model, _, choices = name.partition("+")
    return model in WITH_MAMBA and NOT_MAMBA not in choices.split("-")


def listed(names: Sequence[str]) -> str:
    """The names in a sentence: "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _notes(pairs: Sequence[PairDifference], repetitions: Repetitions, margin: float) -> list[str]:
    """What the verdict rests on, and why a difference that a reader may see in the table is not shown."""
    fewest, most = min(pair.cases for pair in pairs), max(pair.cases for pair in pairs)
    cases = f"{fewest} to {most}" if fewest < most else str(most)
    notes = [f"{cases} case{'' if most == 1 else 's'}, {repetitions.text()}"]
    shown = any(pair.shown for pair in pairs)
    if len(pairs) * 2 * 0.5**most >= LEVEL:  # what Wilcoxon's test gives at best, Holm-corrected
        notes.append("too few cases to show any")
    elif _spread_is_unknown(pairs):
        counts = any(pair.p_adjusted < LEVEL for pair in pairs)
        more = f": these trainings may differ and not the models; a difference below {margin:g} counts as that"
        notes.append(f"the spread between trainings is not known{more if counts else ''}")
    elif not shown and any(p < LEVEL for p in holm([pair.p_cases for pair in pairs])):
        notes.append("what differs over the cases may be what trainings of one model differ by")
    return notes


def _spread_is_unknown(pairs: Sequence[PairDifference]) -> bool:
    """Whether for some pair there is nothing to tell how much trainings of one model differ."""
    return any(math.isnan(pair.p_trainings) for pair in pairs)


def _others(pairs: Sequence[PairDifference]) -> str:
    if not pairs:
        return ""
    if len(pairs) == 1:
        return f"; no difference is shown between {pairs[0].first} and {pairs[0].second}"
    return f"; no difference is shown for the other {len(pairs)} pairs"


def _better(pairs: Sequence[PairDifference], metric: str) -> str:
    """Who does better than whom, and by how much; winners that beat the same models share a clause."""
    beaten: dict[str, list[str]] = {}
    for pair in pairs:
        beaten.setdefault(pair.better, []).append(pair.first if pair.better == pair.second else pair.second)
    winners: dict[frozenset[str], list[str]] = {}
    for winner, losers in beaten.items():
        winners.setdefault(frozenset(losers), []).append(winner)
    if len(winners) > _MOST_CLAUSES:
        return _in_short(pairs, metric)
    clauses: list[str] = []
    for names in winners.values():
        mine = [pair for pair in pairs if pair.better in names]
        where = "" if clauses else f" in {metric}"
        clauses.append(f"{listed(names)} {_does(names)} better than {listed(beaten[names[0]])}{where} by {_by(mine)}")
    return listed(clauses) if len(clauses) < 3 else "; ".join(clauses)


def _in_short(pairs: Sequence[PairDifference], metric: str) -> str:
    """How many pairs differ, and which models win and lose most often."""
    wins = Counter(pair.better for pair in pairs)
    losses = Counter(pair.first if pair.better == pair.second else pair.second for pair in pairs)
    most, fewest = max(wins.values()), max(losses.values())
    best, worst = (
        [name for name in found if found[name] == count] for found, count in ((wins, most), (losses, fewest))
    )
    return (
        f"{len(pairs)} pairs differ in {metric} by {_by(pairs)}: {listed(best)} {_does(best)} better than {most} "
        f"others, {listed(worst)} worse than {fewest}"
    )


def _does(names: Sequence[str]) -> str:
    return "does" if len(names) == 1 else "do"


def _by(pairs: Sequence[PairDifference]) -> str:
    """The size of one difference with its interval, or the range of several."""
    if len(pairs) > 1:
        sizes = [abs(pair.difference) for pair in pairs]
        largest = _p_text(max(pair.p_adjusted for pair in pairs), "at most")
        smallest_to_largest = dict.fromkeys(f"{size:.3f}" for size in (min(sizes), max(sizes)))
        return f"{' to '.join(smallest_to_largest)} ({largest})"
    (pair,) = pairs
    ends = (pair.interval.low, pair.interval.high)
    low, high = ends if pair.difference > 0 else (-ends[1], -ends[0])
    return f"{abs(pair.difference):.3f} ({low:.3f} to {high:.3f}; {_p_text(pair.p_adjusted, '=')})"


def _p_text(p: float, relation: str) -> str:
    return "p < 0.001" if p < 0.001 else f"p {relation} {p:.3f}"
