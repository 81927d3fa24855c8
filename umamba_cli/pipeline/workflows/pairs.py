"""How well two models averaged would have done on the cases that their folds held back.

Each model predicts each case once, with the weights of the fold that held it back, as that fold's validation does; its
probabilities lie in a temporary file while all pairs are made of them. What was found of a case is kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pydantic
from numpy.typing import NDArray

from umamba_cli.pipeline.data.dataset import Case, DatasetDescription
from umamba_cli.pipeline.data.files import file_state, read_json, to_plain, validated, write_json
from umamba_cli.pipeline.data.images import read_label_map
from umamba_cli.pipeline.data.store import Store
from umamba_cli.pipeline.data.workspace import Run, Workspace
from umamba_cli.pipeline.devices import Compute, choose_compute
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.evaluation.metrics import overlap
from umamba_cli.pipeline.inference.ahead import one_ahead
from umamba_cli.pipeline.inference.ensemble import labels_of_mean, require_same_outputs
from umamba_cli.pipeline.inference.export import Exported, Wanted
from umamba_cli.pipeline.inference.predictor import load_runs
from umamba_cli.pipeline.preprocessing.case import CaseGeometry, PreprocessedCase, source_state
from umamba_cli.pipeline.preprocessing.dataset import require_preprocessed
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress
from umamba_cli.pipeline.runs.record import RunRecord, read_record
from umamba_cli.pipeline.workflows.cascade import network_input, predict_previous_stage

PairOfModels = tuple[str, str]
Dices = Mapping[str, float]
"""The Dice of each label, by its key in summary.json, in one case; NaN where there is no number."""

_FORMAT = 1


class _Pair(pydantic.BaseModel):
    """What was found of two models in a case."""

    models: PairOfModels
    states: tuple[Any, Any]
    dice: dict[str, float | None]


class _Kept(pydantic.BaseModel):
    """A file of a case."""

    format: int
    source: Any
    """See `source_state`."""

    pairs: tuple[_Pair, ...]


def dices_of_pairs(
    workspace: Workspace,
    models: Sequence[str],
    folds: Sequence[int],
    *,
    device: str = "auto",
    precision: str = "auto",
    on_progress: OnProgress = ignore_progress,
) -> dict[PairOfModels, dict[tuple[int, str], Dices]]:
    """The Dice of each two models' mean in every case that the folds held back.

    It is kept in `WORKSPACE/select/fold_N/CASE.json`, and found anew where a checkpoint or a file of the case changed.

    Args:
        workspace: that the models are trained in.
        models: names of folders under runs/.
        folds: that are trained, of all models.
        device: see `choose_compute`.
        precision: see `choose_compute`.
        on_progress: told after each case.

    Returns:
        For each two models the cases by fold and identifier.

    Raises:
        InputError: models have other labels or channels than others, or a case is not preprocessed for one of them.
        WorkError: there is no room for the probabilities, or a file cannot be written.
    """
    jobs = _jobs(workspace, models, folds)
    todo = [job for job in jobs if job.missing]
    works = [_Work(workspace, [job for job in todo if job.fold == fold]) for fold in folds]
    for work in works:  # all of them before the first one starts
        work.require_cases()
    done = len(jobs) - len(todo)
    on_progress(Progress("pairs", done, len(jobs)))
    compute = choose_compute(device, precision) if todo else None
    for work in works:
        if compute is not None and work.jobs:
            for job in work.do(compute, on_progress):
                done += 1
                on_progress(Progress("pairs", done, len(jobs), step=job.case.identifier))
    return {
        pair: {(job.fold, job.case.identifier): job.kept[pair] for job in jobs}
        for pair in itertools.combinations(models, 2)
    }


@dataclass(frozen=True)
class _Trained:
    """A model's fold."""

    run: Run
    record: RunRecord
    state: Any
    """What tells, as JSON, whether it is still the same."""


def _trained(workspace: Workspace, model: str, fold: int) -> _Trained:
    run = Run(workspace.runs / model / f"fold_{fold}")
    record = read_record(run)
    used = [run, *(Run(workspace.runs / name) for name in record.previous_runs)]
    files = [each for of in used for each in (of.checkpoint("final"), of.configuration_file)]
    return _Trained(run, record, to_plain([file_state(file) for file in files]))


@dataclass(frozen=True)
class _Job:
    """A case that a fold held back."""

    workspace: Workspace
    fold: int
    case: Case
    trained: Mapping[str, _Trained]

    @property
    def file(self) -> Path:
        """What is kept of it."""
        return self.workspace.folder / "select" / f"fold_{self.fold}" / f"{self.case.identifier}.json"

    @property
    def pairs(self) -> list[PairOfModels]:
        return list(itertools.combinations(self.trained, 2))

    @property
    def missing(self) -> list[PairOfModels]:
        """Pairs of which nothing is kept."""
        return [pair for pair in self.pairs if pair not in self.kept]

    @cached_property
    def kept(self) -> dict[PairOfModels, Dices]:
        """What is kept of the present models and files."""
        kept: dict[PairOfModels, Dices] = {}
        for entry in self._entries:
            one, other = entry["models"]
            if entry["states"] == [self.trained[name].state for name in (one, other) if name in self.trained]:
                dices = {label: math.nan if dice is None else float(dice) for label, dice in entry["dice"].items()}
                kept[one, other] = kept[other, one] = dices
        return kept

    @cached_property
    def _entries(self) -> list[dict[str, Any]]:
        """What the file holds, of all models that there ever were; nothing where a file of the case changed."""
        try:
            content = validated(_Kept.model_validate, read_json(self.file), source=str(self.file))
        except InputError:
            return []  # never made, or damaged: in both cases it is to be made (again)
        same = (content.format, content.source) == (_FORMAT, self._source)
        return [entry.model_dump(mode="json") for entry in content.pairs] if same else []

    @cached_property
    def _source(self) -> object:
        return to_plain(source_state(self.case))

    def keep(self, found: Mapping[PairOfModels, Dices]) -> None:
        """Write what was found, beside what is kept."""
        self.kept.update(found)
        others = [entry for entry in self._entries if not set(entry["models"]) <= self.trained.keys()]
        own = [
            {"models": pair, "states": [self.trained[name].state for name in pair], "dice": self.kept[pair]}
            for pair in self.pairs
            if pair in self.kept
        ]
        write_json(self.file, {"format": _FORMAT, "source": self._source, "pairs": [*others, *own]})


def _jobs(workspace: Workspace, models: Sequence[str], folds: Sequence[int]) -> list[_Job]:
    dataset = workspace.dataset()
    jobs: list[_Job] = []
    for fold in folds:
        trained = {name: _trained(workspace, name, fold) for name in models}
        require_same_outputs(models, [each.record.dataset for each in trained.values()])
        cases = dataset.select(next(iter(trained.values())).record.val_cases)
        jobs += [_Job(workspace, fold, case, trained) for case in cases if case.label]
    return jobs


@dataclass(frozen=True)
class _Work:
    """The cases of a fold that are to be predicted."""

    workspace: Workspace
    jobs: Sequence[_Job]

    @property
    def models(self) -> dict[str, _Trained]:
        """Those that are needed."""
        needed = {name for job in self.jobs for pair in job.missing for name in pair}
        return {name: each for name, each in self.jobs[0].trained.items() if name in needed} if needed else {}

    def require_cases(self) -> None:
        """See that all of them are preprocessed.

        Raises:
            InputError: some are not.
        """
        for each in self.models.values():
            self._store(each.record)

    def do(self, compute: Compute, on_progress: OnProgress) -> Iterator[_Job]:
        """Predict the cases with all models, and keep the Dice of their pairs; each case, once that is done."""
        models = self.models
        found = [self._predicted(each, compute, on_progress) for each in models.values()]
        for job in self.jobs:
            job.keep(_dices(job, dict(zip(models, map(next, found), strict=True))))
            yield job

    def _store(self, record: RunRecord) -> Store:
        names = [job.case.identifier for job in self.jobs]
        return require_preprocessed(self.workspace, record.plans, record.configuration, self.workspace.dataset(), names)

    def _predicted(self, trained: _Trained, compute: Compute, on_progress: OnProgress) -> Iterator[Exported]:
        """What a model finds in each case, in their order."""
        record = trained.record
        store, previous = self._store(record), predict_previous_stage(self.workspace, record, compute, on_progress)
        predictor = load_runs([trained.run], compute, previous_stage=False)
        predictor.compile(on_progress)

        def cases() -> Iterator[tuple[str, PreprocessedCase]]:
            for job in self.jobs:
                stored = store.case(job.case.identifier)
                geometry = CaseGeometry.from_json(stored.properties["geometry"])
                yield stored.identifier, PreprocessedCase(network_input(stored, record, previous), None, geometry)

        for _, found in predictor.export(one_ahead(cases()), Wanted(probabilities=True)):
            yield found


def _dices(job: _Job, found: Mapping[str, Exported]) -> dict[PairOfModels, Dices]:
    """The Dice of each label in the mean of each two models that were asked for."""
    assert job.case.label is not None
    reference = read_label_map(job.case.label).labels
    description = next(iter(job.trained.values())).record.dataset
    dices: dict[PairOfModels, Dices] = {}
    for pair in job.missing:
        both = [found[name].probabilities for name in pair]
        labels = labels_of_mean([each for each in both if each is not None], description)
        dices[pair] = _dice_of_labels(labels, reference, description)
    return dices


def _dice_of_labels(labels: NDArray[Any], reference: NDArray[Any], description: DatasetDescription) -> Dices:
    """As `evaluate_case` has it: what the reference marks as ignored counts nowhere."""
    counted = reference != description.ignore_label if description.ignore_label is not None else slice(None)
    predicted, wanted = labels[counted], reference[counted]
    return {str(label): overlap(predicted, wanted, label, None).dice for label in description.targets}
