"""Where a comparison's figures come from: the validation of runs, and folders of predictions."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import pydantic
from numpy.typing import NDArray

from umamba_cli.pipeline.data.files import parse_json
from umamba_cli.pipeline.data.splits import groups_of
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.evaluation.case import CaseMetrics, Task
from umamba_cli.pipeline.evaluation.comparison import ComparedScores, Training
from umamba_cli.pipeline.evaluation.evaluate import evaluate_pairs, find_label_maps
from umamba_cli.pipeline.evaluation.lesions import LesionMetrics
from umamba_cli.pipeline.evaluation.metrics import LabelMetrics
from umamba_cli.pipeline.evaluation.reading import LabelKey, SavedCase
from umamba_cli.pipeline.evaluation.statistics import mean_of_numbers
from umamba_cli.pipeline.progress import OnProgress, ignore_progress
from umamba_cli.pipeline.runs.record import read_record


@dataclass(frozen=True)
class Source:
    """The cases of one training, or of one folder of predictions."""

    model: str
    seed: int
    fold: int | str
    """"" for a folder."""

    cases: tuple[CaseMetrics, ...]
    label_names: Mapping[str, str]

    @property
    def unpredicted(self) -> tuple[str, ...]:
        """The cases without a prediction."""
        return tuple(case.case for case in self.cases if not case.predicted)

    @property
    def title(self) -> str:
        """What the result calls it."""
        return f"{self.model}, {f'fold {self.fold}, ' if self.fold != '' else ''}seed {self.seed}"


class RunCases(pydantic.BaseModel):
    """What is used of a fold's `validation/summary.json`."""

    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)

    saved: list[SavedCase] = pydantic.Field(alias="cases")
    label_names: dict[LabelKey, str]

    @property
    def cases(self) -> tuple[CaseMetrics, ...]:
        """With all figures."""
        return tuple(case.metrics() for case in self.saved)


def cases_of_run(run: Run) -> RunCases | None:
    """The evaluation of a finished run's held-back cases; None where there is none with all that is compared.

    Raises:
        InputError: `run.json` cannot be read.
    """
    path = run.validation / "summary.json"
    if not run.is_finished or not path.is_file():
        return None
    try:
        found = RunCases.model_validate(parse_json(path.read_bytes(), source=str(path)))
    except (OSError, InputError, pydantic.ValidationError):  # evaluated again, as one of an older version
        return None
    names = [case.case for case in found.saved]
    are_its_own = len(names) == len({*names}) and {*names} <= {*read_record(run).val_cases}
    return found if names and are_its_own and all(case.is_complete for case in found.saved) else None


def cases_of_folder(
    model: str,
    seed: int,
    folder: Path,
    references: Mapping[str, Path],
    task: Task,
    *,
    workers: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Source:
    """Evaluate a folder of predictions.

    Args:
        model: what to call it.
        seed: number of the folder among those of this model.
        folder: of label maps; others than those of the references are left alone.
        references: label maps by identifier; one without a prediction counts as a case where nothing was found.
        task: what to look for.
        workers: processes; None means as many as the machine allows.
        on_progress: told after each case.

    Raises:
        InputError: none of the references is predicted, or label maps cannot be compared.
    """
    ending = task.description.file_ending if task.description else None
    predicted = find_label_maps(folder.absolute(), ending)
    if not predicted.keys() & references.keys():
        raise InputError(
            f"no prediction in {folder} has a reference",
            details=[f"predictions: {', '.join(sorted(predicted)[:3])}", f"cases: {', '.join(sorted(references)[:3])}"],
            next_step="give a folder whose label maps have the cases' names",
        )
    pairs = [(name, predicted.get(name), reference) for name, reference in references.items()]
    evaluation = evaluate_pairs(pairs, task, workers=workers, on_progress=on_progress)
    names = {str(label): name for label, name in evaluation.label_names.items()}
    return Source(model, seed, "", evaluation.cases, names)


def training_of(source: Source, group_by: str | None = None) -> Training:
    """As it is compared: by case, or by patient.

    Args:
        source: the cases.
        group_by: see `make_folds`; the scores of the cases that belong together are averaged, their lesions added up.

    Raises:
        InputError: the expression is none, or does not match every case.
    """
    by_name = {case.case: case for case in source.cases}
    groups = groups_of(sorted(by_name), group_by)
    cases = {name: _together([by_name[member] for member in members]) for name, members in groups.items()}
    return Training(source.model, source.seed, source.fold, cases)


def _together(cases: Sequence[CaseMetrics]) -> dict[str, ComparedScores]:
    """The scores of each label, of all these cases."""
    predicted = np.array([case.predicted for case in cases])
    return {str(label): _scores([case.labels[label] for case in cases], predicted) for label in cases[0].labels}


def _scores(metrics: Sequence[LabelMetrics], predicted: NDArray[np.bool_]) -> ComparedScores:
    table = np.array([(each.dice, each.surface_dice, each.lesion_f1) for each in metrics])
    # To say nothing is not to say rightly that there is nothing: it is 0 also of a label that the reference lacks.
    table[~predicted] = 0
    counted = [LesionMetrics(each.sizes) for each in metrics if each.sizes]
    sizes = reduce(operator.add, counted).by_size if counted else {}
    found = {name: (counts.reference, counts.found) for name, counts in sizes.items()}
    dice, surface_dice, lesion_f1 = mean_of_numbers(table, axis=0).tolist()
    return ComparedScores(dice, surface_dice, lesion_f1, found)
