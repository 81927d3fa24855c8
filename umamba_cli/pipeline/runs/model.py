"""What a MODEL argument means: a run's folder, the folder above its folds, or a bundle."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.runs.bundle import Bundle
from umamba_cli.pipeline.runs.record import RunRecord


def refuse_foreign(model: Path) -> None:
    """Say what to do with a model of nnU-Net's, which must be imported first."""
    checkpoints = "*.pth", "fold_*/*.pth"
    if model.suffix in (".pth", ".pt") or any(next(model.glob(pattern), None) for pattern in checkpoints):
        raise InputError(
            f"{model} is a model of nnU-Net or the released U-Mamba",
            next_step=f"make a bundle of it: `umamba import {model} -o model.zip`",
        )


def choose_folds(bundle: Bundle, folds: Sequence[int | str]) -> Sequence[int | str]:
    """The folds of a bundle: those asked for, or the numbered ones, or `all` where it is the only one."""
    return folds or [fold for fold in bundle.folds if fold != "all"] or bundle.folds


def choose_runs(model: Path, folds: Sequence[int | str]) -> list[Run]:
    """The finished runs that a MODEL argument and folds mean; see `load_predictor`.

    Raises:
        InputError: there is none, or one asked for is not finished.
    """
    if not model.is_dir():
        raise InputError(
            f"{model} is no folder and no bundle",
            next_step="give a run's folder, WORKSPACE/runs/MODEL__CONFIGURATION, or a bundle",
        )
    if Run(model).configuration_file.is_file():
        if folds and [model.name] != [f"fold_{fold}" for fold in folds]:
            raise InputError(f"{model} is one fold already", next_step="give the folder above it, or leave -f out")
        runs = [Run(model)]
    elif folds:
        runs = [Run(model / f"fold_{fold}") for fold in folds]
    else:
        finished = [Run(path) for path in sorted(model.glob("fold_*")) if Run(path).is_finished]
        runs = [run for run in finished if re.fullmatch(r"fold_\d+", run.folder.name)] or finished
    if not runs:
        raise InputError(f"{model} holds no finished training", next_step="train first: `umamba train WORKSPACE`")
    if unfinished := [run for run in runs if not run.is_finished]:
        raise InputError(
            f"{len(unfinished)} of {len(runs)} folds are not trained to the end",
            details=[str(run.folder) for run in unfinished],
            next_step="finish them with `umamba train`, or choose others with -f",
        )
    return runs


def made_of(record: RunRecord) -> tuple[object, ...]:
    """What folds to be averaged must have in common."""
    return record.variant, record.configuration, record.architecture, record.plans
