"""The best of a workspace's models, or of two of them averaged, by cross-validation."""

from __future__ import annotations

import itertools
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import umamba_cli
from umamba_cli.pipeline.data.dataset import composed
from umamba_cli.pipeline.data.files import write_json
from umamba_cli.pipeline.data.splits import Fold, read_folds
from umamba_cli.pipeline.data.workspace import Run, Workspace
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.inference.postprocessing import postprocessing_file, read_postprocessing
from umamba_cli.pipeline.networks.architecture import ModelVariant
from umamba_cli.pipeline.progress import OnProgress, ignore_progress
from umamba_cli.pipeline.runs.record import read_record
from umamba_cli.pipeline.workflows.cross_validation import CrossValidation, cross_validate
from umamba_cli.pipeline.workflows.variants import variant_in

if TYPE_CHECKING:
    from umamba_cli.pipeline.workflows.pairs import Dices

LEAST_GAIN = 1e-4
"""Of the mean Dice by which a pair must do better than the best model alone: it takes twice the time."""


@dataclass(frozen=True)
class Candidate:
    """How a model, or two of them averaged, did on the held-back cases."""

    models: tuple[str, ...]
    """Names of folders under runs/."""

    dice: float
    """The mean over the labels of `labels`, as nnU-Net has it."""

    labels: Mapping[str, float]
    """The mean Dice of each label over the cases where it is a number."""

    @property
    def name(self) -> str:
        """`unet__2d`, or `unet__2d + unet__3d_fullres`."""
        return " + ".join(self.models)


@dataclass(frozen=True)
class LeftOut:
    """A model that was not compared."""

    model: str
    why: str
    command: str = ""
    """What trains what is missing."""


@dataclass(frozen=True)
class Selection:
    """What `select_model` found."""

    file: Path
    folds: tuple[int, ...]
    """Whose cases were compared."""

    all_folds: int
    """How many folds splits.json has."""

    cases: int
    label_names: Mapping[str, str]
    candidates: tuple[Candidate, ...]
    """The best first."""

    left_out: tuple[LeftOut, ...]
    to_train: tuple[str, ...]
    """What trains the folds that compared models lack."""

    chosen: Candidate
    reason: str
    """Why it is not the first candidate; empty where it is."""

    commands: tuple[str, ...]
    """What predicts with the chosen one, to be run one after the other."""

    @property
    def is_complete(self) -> bool:
        """Whether the models have all folds."""
        return len(self.folds) == self.all_folds

    @property
    def singles(self) -> tuple[Candidate, ...]:
        """The models alone, the best first."""
        return tuple(each for each in self.candidates if len(each.models) == 1)

    def to_json(self) -> dict[str, Any]:
        """The content of `select.json`; NaN becomes null when it is written."""
        return {
            "chosen": self.chosen.models,
            "reason": self.reason,
            "commands": self.commands,
            "candidates": [asdict(each) for each in self.candidates],
            "left_out": [asdict(each) for each in self.left_out],
            "to_train": self.to_train,
            "folds": self.folds,
            "all_folds": self.all_folds,
            "cases": self.cases,
            "label_names": dict(self.label_names),
            "version": umamba_cli.__version__,
        }


def selection_file(workspace: Workspace) -> Path:
    """Where the result lies."""
    return workspace.folder / "select.json"


def select_model(
    workspace: Workspace,
    *,
    models: Sequence[str] = (),
    pairs: bool = True,
    device: str = "auto",
    precision: str = "auto",
    on_progress: OnProgress = ignore_progress,
) -> Selection:
    """Find what does best on the cases that the folds held back, and write `select.json`.

    Compared are the models of which all folds of splits.json are trained and evaluated; where there is none, those that
    have the same ones, on these. A model's own Dice is that of its folds' validation. Pairs are predicted, see
    `pairs.dices_of_pairs`, which keeps its results. A single model is chosen where no pair is better by `LEAST_GAIN`.

    Args:
        workspace: that the models are trained in.
        models: names of folders under runs/; none means all.
        pairs: look at pairs too.
        device: see `choose_compute`.
        precision: see `choose_compute`.
        on_progress: told after each case.

    Raises:
        InputError: no model has a fold that is trained and evaluated, or cases to predict are not preprocessed.
        WorkError: a file cannot be written.
    """
    field = _field(workspace, models)
    candidates = _alone(field)
    if pairs and len(field.models) > 1:
        candidates += _in_pairs(workspace, field, device, precision, on_progress)
    candidates.sort(key=lambda each: -_known(each.dice))
    chosen, reason = choose(candidates)
    selection = Selection(
        file=selection_file(workspace),
        folds=field.folds,
        all_folds=len(field.splits),
        cases=sum(len(field.splits[fold].val) for fold in field.folds),
        label_names=field.models[chosen.models[0]].label_names,
        candidates=tuple(candidates),
        left_out=field.left_out,
        to_train=field.to_train,
        chosen=chosen,
        reason=reason,
        commands=_commands(workspace, chosen, field),
    )
    write_json(selection.file, selection.to_json())
    return selection


@dataclass(frozen=True)
class _Field:
    """The models to be compared, and on what."""

    models: Mapping[str, CrossValidation]
    folds: tuple[int, ...]
    splits: Sequence[Fold]
    left_out: tuple[LeftOut, ...]
    to_train: tuple[str, ...]


def _field(workspace: Workspace, models: Sequence[str]) -> _Field:
    splits = read_folds(workspace.splits_file)
    count = len(splits)
    if not count:
        raise InputError(
            f"{workspace.splits_file} holds no folds: no case is held back that models could be compared on",
            next_step="remove it and run `umamba plan` again, which makes folds of two cases or more",
        )
    found, left_out = _survey(workspace, models, splits)
    folds = common_folds(found, count)
    compared = {name: result for name, result in found.items() if set(folds) <= result.folds.keys()}
    unfinished = {name: _unfinished(workspace, name, result.folds, count) for name, result in found.items()}
    left_out += [unfinished[name] for name in found if name not in compared]
    if not folds:
        train = ["umamba", "train", str(workspace.folder), "-f", _folds_text(range(count))]
        raise InputError(
            f"{workspace.runs} holds no model with a fold that is trained and evaluated",
            details=[f"{each.model}: {each.why}" for each in left_out],
            next_step=f"train one first: `{shlex.join(train)}`",
        )
    return _Field(
        models=compared,
        folds=folds,
        splits=splits,
        left_out=tuple(sorted(left_out, key=lambda each: each.model)),
        to_train=tuple(unfinished[name].command for name in compared if unfinished[name].command),
    )


def common_folds(found: Mapping[str, CrossValidation], count: int) -> tuple[int, ...]:
    """The folds to compare models on.

    All, where a model has them all; otherwise as many as two models have in common, and those of most models among as
    many; where no two have any in common, those of the model that has most.

    Args:
        found: the models' results.
        count: how many folds there are.
    """
    have = [frozenset(fold for fold in result.folds if fold < count) for result in found.values()]
    if any(len(folds) == count for folds in have):
        return tuple(range(count))
    common = [one & other for one, other in itertools.combinations(have, 2)]

    def worth(folds: frozenset[int]) -> tuple[int, int, list[int]]:
        return len(folds), sum(folds <= each for each in have), [-fold for fold in sorted(folds)]

    best = max(filter(None, common), key=worth, default=None) or max(have, key=worth, default=frozenset())
    return tuple(sorted(best))


def choose(candidates: Sequence[Candidate]) -> tuple[Candidate, str]:
    """The best of candidates, of which the best is first, and why it is not that one."""
    best = candidates[0]
    single = next(each for each in candidates if len(each.models) == 1)
    if single is best or _known(best.dice) - _known(single.dice) > LEAST_GAIN:
        return best, ""
    return single, f"{best.name} is better by less than {LEAST_GAIN:g} and takes twice the time"


def _survey(
    workspace: Workspace, models: Sequence[str], splits: Sequence[Fold]
) -> tuple[dict[str, CrossValidation], list[LeftOut]]:
    """What each model's folds of splits.json gave, and the models that have none or cannot be compared."""
    folders = {path.name: path for path in sorted(workspace.runs.glob("*")) if any(path.glob("fold_*"))}
    if unknown := [name for name in models if name not in folders]:
        raise InputError(
            f"{workspace.runs} holds no {' and no '.join(unknown)}",
            next_step=f"choose among {', '.join(folders)}" if folders else "train a model first",
        )
    found: dict[str, CrossValidation] = {}
    left_out: list[LeftOut] = []
    for name in dict.fromkeys(models) or folders:
        try:
            result = cross_validate(folders[name])
            for fold in result.folds if result else ():
                read_record(Run(folders[name] / f"fold_{fold}"))  # without it nothing can be predicted
        except InputError as error:
            left_out.append(LeftOut(name, error.problem))
            continue
        if result is None or not result.folds.keys() & set(range(len(splits))):
            left_out.append(_unfinished(workspace, name, (), len(splits)))
        elif other := _other_cases(result, splits):
            left_out.append(LeftOut(name, f"fold {other[0]} held back other cases than splits.json has for it"))
        else:
            found[name] = result
    if found:
        usual, _ = Counter(tuple(each.label_names.items()) for each in found.values()).most_common(1)[0]
        strange = [name for name, each in found.items() if tuple(each.label_names.items()) != usual]
        left_out += [LeftOut(name, "it has other labels than the others") for name in strange]
        found = {name: each for name, each in found.items() if name not in strange}
    return found, left_out


def _other_cases(result: CrossValidation, splits: Sequence[Fold]) -> list[int]:
    """Folds that were not evaluated on the cases that splits.json has for them."""
    return [
        number
        for number, fold in enumerate(splits)
        if number in result.folds and set(map(composed, fold.val)) != set(map(composed, result.folds[number].cases))
    ]


def _unfinished(workspace: Workspace, name: str, folds: Iterable[int], count: int) -> LeftOut:
    """What a model lacks of all folds, and the command that trains it."""
    missing = sorted(set(range(count)).difference(folds))
    if not missing:
        return LeftOut(name, "")
    which = f"fold{'s' if len(missing) > 1 else ''} {_folds_text(missing)}"
    why = f"{which} {'are' if len(missing) > 1 else 'is'} not trained and evaluated"
    model, *rest = name.split("__")
    if not rest:
        return LeftOut(name, why)
    variant = variant_in(workspace.runs / name) or ModelVariant(model)
    tag = ["--tag", rest[1]] if len(rest) > 1 and rest[1] != variant.tag else []
    command = ["umamba", "train", str(workspace.folder), "-c", rest[0], "-m", variant.title, *tag]
    words = [*command, "-f", _folds_text(missing)]
    return LeftOut(name, why, shlex.join(words))


def _folds_text(folds: Iterable[int]) -> str:
    """[0, 1, 2, 4] as `0-2,4`, which `umamba train -f` takes."""
    parts: list[list[int]] = []
    for fold in sorted(folds):
        if parts and parts[-1][-1] == fold - 1:
            parts[-1].append(fold)
        else:
            parts.append([fold])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _alone(field: _Field) -> list[Candidate]:
    """How each model did on the cases of the folds."""
    found = []
    for name, result in field.models.items():
        cases = [labels for fold in field.folds for labels in result.folds[fold].cases.values()]
        dices = [{label: overlap.dice for label, overlap in labels.items()} for labels in cases]
        found.append(_score((name,), dices, result.label_names))
    return found


def _in_pairs(
    workspace: Workspace, field: _Field, device: str, precision: str, on_progress: OnProgress
) -> list[Candidate]:
    """How each two models did together on the same cases."""
    from umamba_cli.pipeline.workflows.pairs import dices_of_pairs  # loads torch

    found = dices_of_pairs(
        workspace, tuple(field.models), field.folds, device=device, precision=precision, on_progress=on_progress
    )
    return [_score(pair, dices.values(), field.models[pair[0]].label_names) for pair, dices in found.items()]


def _score(models: tuple[str, ...], cases: Iterable[Dices], label_names: Iterable[str]) -> Candidate:
    cases = list(cases)
    means = {label: _mean(case.get(label, math.nan) for case in cases) for label in label_names}
    return Candidate(models, _mean(means.values()), means)


def _mean(values: Iterable[float]) -> float:
    """The mean of those that are numbers."""
    numbers = [value for value in values if not math.isnan(value)]
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


def _known(dice: float) -> float:
    """For comparing: what is no number is less than any."""
    return -math.inf if math.isnan(dice) else dice


def _commands(workspace: Workspace, chosen: Candidate, field: _Field) -> tuple[str, ...]:
    """What predicts with the chosen models, and postprocesses where something was found to help."""
    folders = [workspace.runs / name for name in chosen.models]
    takes_others = any(_numbered(folder) != set(field.folds) for folder in folders)
    only_some = takes_others or len(field.folds) < len(field.splits)
    if len(folders) == 1:
        words = ["umamba", "predict", str(folders[0])]
        words += [word for fold in field.folds for word in ("-f", str(fold))] if only_some else []
    else:
        named = [folder / f"fold_{fold}" for folder in folders for fold in field.folds] if takes_others else folders
        words = ["umamba", "ensemble", *map(str, named)]
    commands = [shlex.join([*words, "-i", "IMAGES", "-o", "predictions"])]
    file = postprocessing_file(folders[0])
    if len(folders) == 1 and file.is_file() and read_postprocessing(file).steps:
        words = ["umamba", "postprocess", "apply", str(folders[0]), "-i", "predictions", "-o", "postprocessed"]
        commands.append(shlex.join(words))
    return tuple(commands)


def _numbered(folder: Path) -> set[int]:
    """The finished folds of a model, all of which `umamba predict` takes."""
    finished = [path.name.removeprefix("fold_") for path in folder.glob("fold_*") if Run(path).is_finished]
    return {int(name) for name in finished if name.isascii() and name.isdigit()}
