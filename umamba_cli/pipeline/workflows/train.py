"""Training one fold, and predicting and evaluating its held-back cases with the result."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.data.images import write_label_map
from umamba_cli.pipeline.data.splits import Fold, choose_fold, read_folds
from umamba_cli.pipeline.data.store import Store
from umamba_cli.pipeline.data.workspace import Run, Workspace, valid_tag
from umamba_cli.pipeline.devices import Compute, choose_compute, use_threads
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.evaluation.evaluate import Evaluation, Pair, evaluate_pairs, write_summary
from umamba_cli.pipeline.inference.export import labels_on_image_grid
from umamba_cli.pipeline.inference.predictor import load_predictor
from umamba_cli.pipeline.networks.registry import find_model
from umamba_cli.pipeline.networks.scan import choose_backend
from umamba_cli.pipeline.planning.plans import Plans, read_plans
from umamba_cli.pipeline.preprocessing.case import CaseGeometry
from umamba_cli.pipeline.preprocessing.dataset import require_preprocessed
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress
from umamba_cli.pipeline.reporting.progress import draw_progress
from umamba_cli.pipeline.runs.network import new_network
from umamba_cli.pipeline.runs.record import RunRecord, current_versions, now, read_record, write_record
from umamba_cli.pipeline.training.augmentation import Augmentation, AugmentationPlan
from umamba_cli.pipeline.training.loader import BatchMaker, default_loader_workers
from umamba_cli.pipeline.training.loop import EpochLog, TrainingLoop, read_log
from umamba_cli.pipeline.training.patches import PatchSampler
from umamba_cli.pipeline.training.settings import (
    SettingsChosen,
    TrainingSettings,
    require_same_settings,
    settings_from_plans,
)

_SECONDS_BETWEEN_PICTURES = 5.0


@dataclass(frozen=True)
class TrainingJob:
    """Which training to do, and with what."""

    workspace: Workspace
    configuration: str = "3d_fullres"
    model: str = "umamba-bot"
    fold: int | str = 0
    tag: str = ""
    chosen: SettingsChosen = field(default_factory=SettingsChosen)
    device: str = "auto"
    restart: bool = False
    """Remove what the run's folder holds and start over."""

    workers: int | None = None
    """Processes that make patches; None means as many as the machine has cores for, 0 none."""

    threads: int | None = None
    """Threads that compute on a CPU; None means all usable cores."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training left."""

    run: Run
    log: list[EpochLog]
    evaluation: Evaluation | None
    """Of the held-back cases; None where there were none."""

    compute: Compute


@dataclass(frozen=True)
class PreparedTraining:
    """A training that can start; nothing was written yet."""

    run: Run
    record: RunRecord
    store: Store
    compute: Compute
    goes_on: bool
    """True where the run's folder holds a training that goes on, or is finished."""


def prepare_training(job: TrainingJob) -> PreparedTraining:
    """Check all that can be checked before a training; nothing is written.

    Raises:
        InputError: the workspace is not ready, or an option is wrong or contradicts the training that is there.
    """
    find_model(job.model)
    workspace = job.workspace
    plans = read_plans(workspace.plans_file)
    plans.configuration(job.configuration)
    dataset = workspace.dataset()
    dataset.description.require_plain_labels("training")
    fold = choose_fold(read_folds(workspace.splits_file), job.fold, [case.identifier for case in dataset.cases])
    compute = choose_compute(job.device, job.chosen.precision or "auto")
    run = workspace.run(job.model, job.configuration, job.fold, valid_tag(job.tag))
    goes_on = run.configuration_file.is_file() and not job.restart
    if goes_on:
        record = _go_on(job, run, plans, fold)
        if not run.is_finished:
            compute = choose_compute(job.device, TrainingSettings.from_json(record.settings).precision)
    else:
        record = _new_record(job, plans, fold, dataset.description, compute)
    cases = [*record.train_cases, *record.val_cases]
    store = require_preprocessed(workspace, record.plans, job.configuration, dataset, cases)
    new_network(job.model, record.network_configuration, record.dataset)  # what cannot be built is refused here
    return PreparedTraining(run, record, store, compute, goes_on)


def train_fold(job: TrainingJob, *, on_progress: OnProgress = ignore_progress) -> TrainingResult:
    """Train a fold to the end, then predict and evaluate its held-back cases.

    A training that was stopped goes on after its last complete epoch; one that is finished is left as it is.

    Raises:
        InputError: the workspace is not ready, or an option is wrong or contradicts the training that is there.
        WorkError: the training failed.
    """
    prepared = prepare_training(job)
    run, record, store, compute = prepared.run, prepared.record, prepared.store, prepared.compute
    if not prepared.goes_on:
        if run.folder.exists():
            shutil.rmtree(run.folder)
        write_record(run, record)
    use_threads(job.threads)
    log = read_log(run) if run.is_finished else _train(job, run, record, store, compute, on_progress)
    evaluation = _validate(run, record, store, compute, job.workspace, on_progress) if record.val_cases else None
    return TrainingResult(run, log, evaluation, compute)


def _go_on(job: TrainingJob, run: Run, plans: Plans, fold: Fold) -> RunRecord:
    """The record of the training that is there, where it can go on as asked."""
    record = read_record(run)
    require_same_settings(TrainingSettings.from_json(record.settings), job.chosen)
    changed = [
        what
        for what, saved, current in (
            ("plans.json", record.plans, plans),
            ("splits.json", (record.train_cases, record.val_cases), (fold.train, fold.val)),
        )
        if saved != current
    ]
    if changed and not run.is_finished:
        raise InputError(
            f"{' and '.join(changed)} changed since the training in {run.folder} was started",
            next_step="start over with --restart, or keep both with --tag NAME",
        )
    return record


def _new_record(
    job: TrainingJob, plans: Plans, fold: Fold, description: DatasetDescription, compute: Compute
) -> RunRecord:
    configuration = plans.configuration(job.configuration)
    return RunRecord(
        model=job.model,
        configuration=job.configuration,
        fold=job.fold,
        tag=job.tag,
        settings=settings_from_plans(plans, configuration, job.chosen).to_json(),
        train_cases=fold.train,
        val_cases=fold.val,
        mirror_axes=AugmentationPlan(configuration.patch_size).mirror_axes,
        device={
            "device": compute.device_name,
            "precision": compute.precision,
            "precision_reason": compute.reason,
            "scan_backend": choose_backend(compute.device.type).name,
        },
        versions=current_versions(),
        started=now(),
        dataset=description,
        plans=plans,
    )


def _train(
    job: TrainingJob, run: Run, record: RunRecord, store: Store, compute: Compute, on_progress: OnProgress
) -> list[EpochLog]:
    settings = TrainingSettings.from_json(record.settings)
    loop = TrainingLoop(
        run=run,
        network=_seeded_network(record, settings.seed, store),
        settings=settings,
        maker=batch_maker(record, settings, store),
        label_names=record.dataset.foreground,
        compute=compute,
        batch_dice=record.network_configuration.batch_dice,
        validates=bool(record.val_cases),
        workers=default_loader_workers() if job.workers is None else job.workers,
        on_progress=on_progress,
        after_epoch=_picture_drawer(run, settings.epochs),
    )
    return loop.train()


def _seeded_network(record: RunRecord, seed: int, store: Store) -> nn.Module:
    frequencies = store.class_frequencies(record.train_cases)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return new_network(record.model, record.network_configuration, record.dataset, frequencies)


def batch_maker(record: RunRecord, settings: TrainingSettings, store: Store) -> BatchMaker:
    """What makes the batches of a run, for training and, where cases are held back, for validation."""
    configuration = record.network_configuration
    masked = tuple(index for index, used in enumerate(configuration.use_mask_for_norm) if used)
    plan = AugmentationPlan(configuration.patch_size, masked)
    common = {"network_size": plan.patch_size, "foreground_share": settings.foreground_share, "seed": settings.seed}
    training = PatchSampler(store, record.train_cases, read_size=plan.read_size, purpose="training", **common)  # type: ignore[arg-type]
    validation = PatchSampler(store, record.val_cases, read_size=plan.patch_size, purpose="validation", **common)  # type: ignore[arg-type]
    return BatchMaker(training, validation if record.val_cases else None, Augmentation(plan), settings.batch_size)


def _picture_drawer(run: Run, epochs: int) -> Callable[[list[EpochLog]], None]:
    """Draws progress.png after an epoch, but at most every few seconds: short epochs must not wait for it."""
    last = -_SECONDS_BETWEEN_PICTURES

    def draw(log: list[EpochLog]) -> None:
        nonlocal last
        if len(log) == epochs or time.monotonic() - last >= _SECONDS_BETWEEN_PICTURES:
            draw_progress(run.progress_picture, log)
            last = time.monotonic()

    return draw


def _validate(
    run: Run,
    record: RunRecord,
    store: Store,
    compute: Compute,
    workspace: Workspace,
    on_progress: OnProgress,
) -> Evaluation:
    """Predict the held-back cases with the final weights and evaluate them; finished predictions are kept."""
    ending = record.dataset.file_ending
    predictor = load_predictor(run.folder, (), compute)
    pairs: list[Pair] = []
    on_progress(Progress("validate", 0, len(record.val_cases)))
    for done, case in enumerate(workspace.dataset().select(record.val_cases), start=1):
        target = run.validation / f"{case.identifier}{ending}"
        if not target.is_file():
            stored = store.case(case.identifier)
            geometry = CaseGeometry.from_json(stored.properties["geometry"])
            logits = predictor.logits(stored.image[:])
            labels = labels_on_image_grid(logits, geometry, record.network_configuration)
            write_label_map(target, labels, geometry.grid)
        assert case.label is not None
        pairs.append((case.identifier, target, case.label))
        on_progress(Progress("validate", done, len(record.val_cases), step=case.identifier))
    evaluation = evaluate_pairs(pairs, description=record.dataset, workers=1)
    write_summary(run.validation / "summary.json", evaluation)
    return evaluation
