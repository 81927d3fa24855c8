"""ComparedScores of trainings, by hand and by chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from umamba_cli.pipeline.evaluation.comparison import ComparedScores, Training

NAN = math.nan
ONE = {"1": "organ"}
TWO = {"1": "organ", "2": "tumour"}


def score(dice: float, **sizes: tuple[int, int]) -> ComparedScores:
    return ComparedScores(dice=dice, surface_dice=dice / 2, lesion_f1=NAN, sizes=sizes)


def training(
    model: str, dice: Sequence[float] | Sequence[Sequence[float]], seed: int = 0, fold: int | str = ""
) -> Training:
    """A training whose cases a, b, ... have these Dice: of label 1, or of labels 1, 2, ..."""
    rows = [list(np.atleast_1d(row)) for row in dice]
    names = [f"{fold}{chr(97 + index)}" for index in range(len(rows))]
    cases = {
        name: {str(label): score(value) for label, value in enumerate(row, 1)}
        for name, row in zip(names, rows, strict=True)
    }
    return Training(model, seed, fold, cases)


def simulated(
    generator: np.random.Generator,
    *,
    models: Sequence[str] = ("one", "other"),
    seeds: int = 2,
    folds: int = 2,
    cases: int = 40,
    offset: float = 0.01,
    gains: Mapping[str, float] | None = None,
) -> list[Training]:
    """Trainings whose scores share the difficulty of the case and the luck of the training, and scatter by 0.01."""
    difficulty = generator.normal(0.8, 0.05, size=cases)
    trainings = []
    for model in models:
        for seed in range(seeds):
            for fold in range(folds):
                luck = generator.normal(0, offset) + (gains or {}).get(model, 0)
                scores = difficulty + luck + generator.normal(0, 0.01, size=cases)
                found = {f"case{case:03d}": {"1": score(scores[case])} for case in range(fold, cases, folds)}
                trainings.append(Training(model, seed, fold, found))
    return trainings
