"""The folds of cross-validation: `splits.json`, a list of {"train": [...], "val": [...]}."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from umamba_cli.pipeline.data.files import read_json, write_json
from umamba_cli.pipeline.errors import InputError

FOLDS = 5
SEED = 12345  # nnU-Net's, so that its folds are met


@dataclass(frozen=True)
class Fold:
    """Identifiers of the cases trained on and of those held back."""

    train: tuple[str, ...]
    val: tuple[str, ...]


def make_folds(identifiers: Sequence[str], *, group_by: str | None = None) -> list[Fold]:
    """Five folds of shuffled cases, the same ones that nnU-Net makes; fewer for fewer cases, and none for a single one.

    Args:
        identifiers: the cases.
        group_by: a regular expression; cases whose identifiers match it with the same text stay in one fold. The text
            is the first group where the expression has one, otherwise the whole match.

    Raises:
        InputError: the expression is none, does not match every case, or puts all of them into one group.

    Source: nnU-Net's `generate_crossval_split`: the sorted cases, shuffled with seed 12345, in five parts of equal
    size, as scikit-learn's KFold makes them (which takes a second to import).
    """
    groups = groups_of(sorted(identifiers), group_by)
    names = sorted(groups)
    if len(names) < 2 and group_by is not None:
        raise InputError(
            f"--group-by {group_by!r} puts all cases into one group, which cannot be split into folds",
            next_step="give an expression that tells the patients apart",
        )
    if len(names) < 2:
        return []
    parts = np.array_split(np.random.RandomState(SEED).permutation(len(names)), min(FOLDS, len(names)))
    held_back = [set(part.tolist()) for part in parts]
    return [
        Fold(
            train=tuple(case for index, name in enumerate(names) if index not in val for case in groups[name]),
            val=tuple(case for index, name in enumerate(names) if index in val for case in groups[name]),
        )
        for val in held_back
    ]


def groups_of(identifiers: Sequence[str], group_by: str | None) -> dict[str, list[str]]:
    """Which cases belong together, of one patient for instance; each alone where `group_by` is None.

    Arguments and errors as for `make_folds`, but for a single group, which is allowed.
    """
    if group_by is None:
        return {name: [name] for name in identifiers}
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise InputError(
            f"--group-by {group_by!r} is no regular expression: {error}", next_step="correct it"
        ) from error
    groups: dict[str, list[str]] = defaultdict(list)
    unmatched = []
    for name in identifiers:
        match = pattern.search(name)
        if match is None:
            unmatched.append(name)
        else:
            groups[match.group(1) if pattern.groups else match.group()].append(name)
    if unmatched:
        raise InputError(
            f"--group-by {group_by!r} matches {len(identifiers) - len(unmatched)} of {len(identifiers)} cases",
            details=unmatched,
            next_step="give an expression that finds the patient in every identifier",
        )
    return dict(groups)


def write_folds(path: Path, folds: Sequence[Fold]) -> None:
    """Write `splits.json`."""
    write_json(path, [{"train": fold.train, "val": fold.val} for fold in folds])


def read_folds(path: Path) -> list[Fold]:
    """Read `splits.json`; nnU-Net's `splits_final.json` has the same form.

    Raises:
        InputError: the file does not hold folds, a fold trains on nothing, or trains on a case that it holds back.
    """
    content = read_json(path, next_step="run `umamba plan` first")
    try:
        folds = [Fold(tuple(map(str, fold["train"])), tuple(map(str, fold["val"]))) for fold in content]
    except (TypeError, KeyError) as error:
        raise InputError(
            f'{path} does not hold folds: a list of {{"train": [...], "val": [...]}} is expected',
            next_step="correct the file, or remove it and run `umamba plan` again",
        ) from error
    for number, fold in enumerate(folds):
        if both := sorted(set(fold.train) & set(fold.val)):
            raise InputError(
                f"{path}: fold {number} trains on {len(both)} of the cases that it holds back",
                details=both,
                next_step="correct the file",
            )
        if not fold.train:
            raise InputError(f"{path}: fold {number} has no case to train on", next_step="correct the file")
    return folds


def fold_notes(folds: Sequence[Fold], identifiers: Sequence[str]) -> tuple[str, ...]:
    """What a person should know of folds that were kept although the cases may have changed, in short phrases."""
    named = {name for fold in folds for name in (*fold.train, *fold.val)}
    gone, new = sorted(named.difference(identifiers)), sorted(set(identifiers) - named)
    notes = []
    if gone:
        notes.append(f"splits.json names {len(gone)} cases that are not in the dataset, {gone[0]} among them")
    if new:
        notes.append(f"splits.json does not name {len(new)} of the cases, {new[0]} among them")
    return tuple(notes)


def choose_fold(folds: Sequence[Fold], fold: int | str, identifiers: Sequence[str]) -> Fold:
    """One fold by number; `all` trains on every case and holds none back.

    Raises:
        InputError: there is no such fold.
    """
    if fold == "all":
        return Fold(tuple(sorted(identifiers)), ())
    if not folds:
        raise InputError("there are no folds, a single case cannot be split", next_step="train with -f all")
    if not isinstance(fold, int) or not 0 <= fold < len(folds):
        raise InputError(f"there is no fold {fold}", next_step=f"choose one of 0 to {len(folds) - 1}, or all")
    return folds[fold]
