"""Comparing models on one dataset: what is missing is trained in the same regime, then all are evaluated alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from umamba_cli.pipeline.data.splits import Fold, choose_fold, groups_of, read_folds
from umamba_cli.pipeline.data.workspace import Run, Workspace
from umamba_cli.pipeline.errors import InputError, UmambaError
from umamba_cli.pipeline.evaluation.case import Task
from umamba_cli.pipeline.evaluation.comparison import MARGIN, compare_trainings
from umamba_cli.pipeline.evaluation.evaluate import find_label_maps
from umamba_cli.pipeline.evaluation.task import task_of
from umamba_cli.pipeline.networks.architecture import ModelVariant
from umamba_cli.pipeline.networks.registry import find_variant
from umamba_cli.pipeline.planning.plans import read_plans
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress
from umamba_cli.pipeline.runs.lock import RunBusyError
from umamba_cli.pipeline.runs.record import read_record
from umamba_cli.pipeline.training.settings import SettingsChosen
from umamba_cli.pipeline.workflows.compared import Source, cases_of_folder, cases_of_run, training_of
from umamba_cli.pipeline.workflows.comparison_files import (
    ComparisonResult,
    comparison_file,
    comparison_folder,
    require_own_folder,
    write_comparison,
)
from umamba_cli.pipeline.workflows.costs import cost_of, known_costs
from umamba_cli.pipeline.workflows.regime import Place, shared_settings
from umamba_cli.pipeline.workflows.train import TrainingJob, prepare_training, train_fold

MODELS = ("unet", "umamba-none", "umamba-bot", "umamba-enc")
"""Compared where none are named: nnU-Net's network, and U-Mamba's without Mamba and with it."""

_MOST_NAMED = 10


@dataclass(frozen=True)
class ComparisonJob:
    """Which models to compare, and how what is missing is to be trained."""

    workspace: Workspace
    models: tuple[str, ...] = MODELS
    """Registered names, or variants of them such as `umamba-bot+s4d`."""

    configuration: str = "3d_fullres"
    folds: tuple[int, ...] = ()
    """None means all of splits.json."""

    seeds: int = 1
    """Trainings of each model and fold, with seeds 0, 1, ...; those after the first have the tag `seed-1`, ..., of a
    variant `s4d-seed-1`."""

    chosen: SettingsChosen = field(default_factory=SettingsChosen)
    device: str = "auto"
    workers: int | None = None
    threads: int | None = None
    train: bool = True
    """Train what is missing; otherwise what is there is compared."""

    predictions: tuple[tuple[str, Path], ...] = ()
    """Folders of predictions of the same cases by other programs; one name several times is a model trained again."""

    margin: float = MARGIN

    group_by: str | None = None
    """See `make_folds`: tells the patient, where one has several cases. Then patients are compared and not cases."""


def compare_models(
    job: ComparisonJob,
    *,
    output: Path | None = None,
    on_result: Callable[[ComparisonResult], None] = lambda result: None,
    on_progress: OnProgress = ignore_progress,
) -> ComparisonResult:
    """Train what is missing, evaluate all, and compare; after each training the result so far is written.

    Trainings that are there are taken, those that were stopped go on, and new ones get the settings of those that are
    there, so that all models have one regime. First all models with one seed are trained, then the next seed.

    Args:
        job: what to compare.
        output: folder of `comparison.json` and `cases.csv`; None: `compare` in the workspace.
        on_result: told of the result so far, after each training.
        on_progress: told of each step.

    Raises:
        InputError: the workspace is not ready, a model cannot be trained on it, an option is wrong, or trainings differ
            in more than model and seed. All models are looked at before the first one is trained.
        Stopped, WorkError: see `train_fold`; the result so far is written.
    """
    job = replace(job, models=tuple(find_variant(model).title for model in job.models))
    _refuse_contradictions(job)
    splits = read_folds(job.workspace.splits_file)
    job = replace(job, folds=tuple(job.folds or range(len(splits))))
    folds = {fold: choose_fold(splits, fold, ()) for fold in job.folds}
    _require_disjoint(folds)
    _require_whole_groups(folds, job.group_by)
    output = output or comparison_folder(job.workspace)
    require_own_folder(output, job.configuration)
    comparing = _Comparing(job, output, _folders(job, folds))
    chosen = shared_settings(job.chosen, comparing.places, folds)
    todo = [place for place in comparing.places if not cases_of_run(place.run)] if job.train else []
    for place in {place.model: place for place in reversed(todo)}.values():  # the first of each model
        prepare_training(_training(job, place, chosen))
    for number, place in enumerate(todo, start=1):
        on_progress(Progress("compare", number - 1, len(todo), note=f"{number} of {len(todo)}: {place.name}"))
        try:
            train_fold(_training(job, place, chosen), on_progress=on_progress)
        except RunBusyError as error:
            comparing.busy[place.name] = error.problem
            continue
        on_result(comparing.write())
    on_progress(Progress("compare", len(todo), len(todo)))
    comparing.write()  # what is known shall not wait for what it costs
    comparing.measure(on_progress)
    return comparing.write()


def compare_folders(
    folders: Sequence[tuple[str, Path]],
    references: Path,
    output: Path,
    *,
    task: Task | None = None,
    margin: float = MARGIN,
    group_by: str | None = None,
    workers: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> ComparisonResult:
    """Compare finished predictions, of whichever program, on the cases of a folder of references.

    Args:
        folders: a model's name and its folder of predictions; a name given several times is a model trained again.
        references: folder of label maps. What no folder predicts is left out; a case that only some predict counts
            as one where the others found nothing.
        output: folder of `comparison.json` and `cases.csv`.
        task: what to look for.
        margin: see `compare_trainings`.
        group_by: see `ComparisonJob`.
        workers: processes; None means as many as the machine allows.
        on_progress: told after each case.

    Raises:
        InputError: fewer than two models, a folder cannot be evaluated, or `output` holds another comparison.
        WorkError: a file cannot be written.
    """
    if len({name for name, _ in folders}) < 2:
        raise InputError(
            "there is nothing to compare: fewer than two models",
            next_step="give several, as --predictions NAME=FOLDER --predictions OTHER=FOLDER",
        )
    require_own_folder(output, "")
    task = task or Task()
    ending = task.description.file_ending if task.description else None
    wanted = find_label_maps(references.absolute(), ending)
    predicted = {name for _, folder in folders for name in find_label_maps(folder.absolute(), ending)}
    left_out = tuple(name for name in wanted if name not in predicted)
    labels = {name: path for name, path in wanted.items() if name in predicted} or wanted
    sources = [
        cases_of_folder(name, seed, folder, labels, task, workers=workers, on_progress=on_progress)
        for name, seed, folder in _numbered(folders)
    ]
    dataset = task.description.name if task.description else ""
    return write_comparison(replace(_result(output, sources, dataset, margin, group_by), left_out=left_out), sources)


class _Comparing:
    """The comparison of one call, and how far it is."""

    def __init__(self, job: ComparisonJob, output: Path, others: Sequence[Source]) -> None:
        self._job, self._output, self._others = job, output, others
        self._dataset = job.workspace.dataset().description
        self._costs = known_costs(comparison_file(output))
        self._notes: list[str] = []
        self.busy: dict[str, str] = {}
        # What can be compared soonest is trained first: all models with one seed, then the next seed.
        self.places = [
            Place(model, seed, fold, _run(job, model, seed, fold))
            for seed in range(job.seeds)
            for fold in job.folds
            for model in job.models
        ]

    def write(self) -> ComparisonResult:
        """The result of what is there, which is written."""
        sources, missing = list(self._others), {}
        for place in self.places:
            if found := cases_of_run(place.run):
                sources.append(Source(place.model, place.seed, place.fold, found.cases, found.label_names))
            else:
                missing[place.name] = self.busy.get(place.name, _why(place))
        result = _result(self._output, sources, self._dataset.name, self._job.margin, self._job.group_by)
        costs = tuple(self._costs[model] for model in self._job.models if model in self._costs)
        result = replace(result, missing=missing, regime=self._regime(), costs=costs, notes=tuple(self._notes))
        return write_comparison(result, sources)

    def measure(self, on_progress: OnProgress) -> None:
        """What each model takes; predicting is timed now, one model after the other, where it was not before."""
        for number, model in enumerate(self._job.models):
            runs = [place.run for place in self.places if place.model == model and cases_of_run(place.run)]
            if runs:
                on_progress(Progress("time", number, len(self._job.models), step=model))
                known = self._costs.pop(model, None)
                try:
                    self._costs[model] = cost_of(model, runs, self._job.workspace, self._job.device, known)
                except UmambaError as error:
                    self._notes.append(f"what {model} costs is not known: {error.problem}")

    def _regime(self) -> dict[str, Any]:
        """What all trainings have in common, for the file."""
        job = self._job
        regime: dict[str, Any] = {"configuration": job.configuration, "folds": job.folds, "seeds": job.seeds}
        record = next((read_record(each.run) for each in self.places if each.run.configuration_file.is_file()), None)
        if record is not None:
            settings = {name: value for name, value in record.settings.items() if name != "seed"}
            regime |= {"settings": settings, "device": record.device.get("device", "")}
        return regime


def _run(job: ComparisonJob, model: str, seed: int, fold: int) -> Run:
    variant = find_variant(model)
    return job.workspace.run(variant.model, job.configuration, fold, _tag(variant, seed))


def _tag(variant: ModelVariant, seed: int) -> str:
    """The first training has that of its variant alone, so that one that was there before is taken."""
    return "-".join(part for part in (variant.tag, f"seed-{seed}" if seed else "") if part)


def _refuse_contradictions(job: ComparisonJob) -> None:
    read_plans(job.workspace.plans_file).configuration(job.configuration)
    if doubled := sorted({model for model in job.models if job.models.count(model) > 1}):
        raise InputError(f"{', '.join(doubled)} is named twice", next_step="name each model once")
    if both := sorted({name for name, _ in job.predictions} & {*job.models}):
        raise InputError(f"predictions are called {', '.join(both)}, as a model is", next_step="give them another name")
    if len({*job.models, *(name for name, _ in job.predictions)}) < 2:
        raise InputError("there is nothing to compare: fewer than two models", next_step="name several with --models")


def _require_disjoint(folds: Mapping[int, Fold]) -> None:
    """A case that two folds hold back would count twice."""
    seen: dict[str, int] = {}
    for number, fold in folds.items():
        for case in fold.val:
            if case in seen:
                raise InputError(
                    f"folds {seen[case]} and {number} both hold back {case}",
                    next_step="choose other folds with --folds",
                )
            seen[case] = number


def _require_whole_groups(folds: Mapping[int, Fold], group_by: str | None) -> None:
    """No patient is trained on and held back in one fold: nothing would be found out about other patients."""
    for number, fold in folds.items():
        groups = groups_of(sorted({*fold.train, *fold.val}), group_by)
        torn = [name for name, members in groups.items() if 0 < len({*members} & {*fold.val}) < len(members)]
        if torn:
            raise InputError(
                f"fold {number} trains on cases of {len(torn)} of the groups that it holds back",
                details=torn[:_MOST_NAMED],
                next_step="remove splits.json and plan again with the same --group-by, then train again",
            )


def _training(job: ComparisonJob, place: Place, chosen: SettingsChosen) -> TrainingJob:
    return TrainingJob(
        job.workspace,
        configuration=job.configuration,
        model=place.model,
        fold=place.fold,
        tag=_tag(find_variant(place.model), place.seed),
        chosen=replace(chosen, seed=None if place.run.configuration_file.is_file() else place.seed),
        device=job.device,
        workers=job.workers,
        threads=job.threads,
    )


def _folders(job: ComparisonJob, folds: Mapping[int, Fold]) -> list[Source]:
    """Predictions by others, of the cases that the folds hold back."""
    if not job.predictions:
        return []
    dataset = job.workspace.dataset()
    held_back = [case for fold in folds.values() for case in fold.val]
    labels = {case.identifier: case.label for case in dataset.select(held_back) if case.label is not None}
    task = task_of(dataset.description)
    return [
        cases_of_folder(name, seed, folder, labels, task, workers=job.workers)
        for name, seed, folder in _numbered(job.predictions)
    ]


def _numbered(folders: Sequence[tuple[str, Path]]) -> list[tuple[str, int, Path]]:
    count: dict[str, int] = {}
    numbered = []
    for name, folder in folders:
        numbered.append((name, count.get(name, 0), folder))
        count[name] = count.get(name, 0) + 1
    return numbered


def _why(place: Place) -> str:
    if place.run.is_finished:
        return "is trained, but not evaluated with all that is compared"
    return "was begun" if place.run.configuration_file.is_file() else "is not trained"


def _result(
    output: Path, sources: Sequence[Source], dataset: str, margin: float, group_by: str | None
) -> ComparisonResult:
    names = {key: name for source in sources for key, name in source.label_names.items()}
    trainings = [training_of(source, group_by) for source in sources]
    comparison = None
    if len({training.model for training in trainings}) > 1:
        comparison = compare_trainings(trainings, names, margin=margin)
    return ComparisonResult(
        file=comparison_file(output),
        comparison=comparison,
        trainings=tuple(source.title for source in sources),
        unpredicted={source.title: source.unpredicted for source in sources if source.unpredicted},
        dataset=dataset,
        unit="px" if any(case.is_picture for source in sources for case in source.cases) else "mm",
    )
