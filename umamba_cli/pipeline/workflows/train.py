"""Training one fold, and predicting and evaluating its held-back cases with the result."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.data.files import remove_leftovers
from umamba_cli.pipeline.data.splits import Fold, choose_fold, read_folds
from umamba_cli.pipeline.data.store import Store
from umamba_cli.pipeline.data.workspace import Run, Workspace, valid_tag
from umamba_cli.pipeline.devices import Compute, choose_compute, use_threads
from umamba_cli.pipeline.errors import InputError, Stopped
from umamba_cli.pipeline.evaluation.results import Evaluation
from umamba_cli.pipeline.networks.architecture import ModelVariant
from umamba_cli.pipeline.networks.registry import find_variant
from umamba_cli.pipeline.networks.scan import choose_backend
from umamba_cli.pipeline.planning.plans import Plans, read_plans
from umamba_cli.pipeline.preprocessing.dataset import require_preprocessed
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress
from umamba_cli.pipeline.runs.lock import RunBusyError, RunLock, lock_file, running_file
from umamba_cli.pipeline.runs.log import EpochLog, read_log
from umamba_cli.pipeline.runs.network import compile_scan
from umamba_cli.pipeline.runs.record import RunRecord, current_versions, now, read_record, write_record
from umamba_cli.pipeline.training.augmentation import default_augmentation
from umamba_cli.pipeline.training.distributed import World, connected, require_enough_patches, this_world
from umamba_cli.pipeline.training.loader import prepare_loader_workers
from umamba_cli.pipeline.training.patches import PreviousStage
from umamba_cli.pipeline.training.settings import (
    SettingsChosen,
    TrainingSettings,
    require_same_settings,
    settings_from_plans,
)
from umamba_cli.pipeline.training.trial import try_memory
from umamba_cli.pipeline.workflows.assemble import (
    Surroundings,
    TrainingParts,
    augmentation_plan,
    compute_threads,
    loader_workers,
    new_loop,
    seeded_network,
)
from umamba_cli.pipeline.workflows.cascade import choose_previous_runs, predict_previous_stage, previous_run_names
from umamba_cli.pipeline.workflows.initial_weights import Source, Taken, read_source, take_weights
from umamba_cli.pipeline.workflows.validate import cases_to_predict, validate_fold
from umamba_cli.pipeline.workflows.variants import require_honest_tag, require_same_variant_beside, variant_of

_MOST_LISTED = 12


@dataclass(frozen=True)
class TrainingJob:
    """Which training to do, and with what."""

    workspace: Workspace
    configuration: str = "3d_fullres"
    model: str = "umamba-bot"
    """A registered name, or a variant of one such as `umamba-bot+s4d`, see `find_variant`."""

    mixer: str | None = None
    """What mixes the tokens in the model's state space layers; None: what `model` says, or the training that is there.
    """

    scan_directions: str | None = None
    """The order in which they read the voxels; None as for `mixer`."""

    fold: int | str = 0
    together: tuple[int | str, ...] = ()
    """All folds that are trained in one call; with `restart` all of them are started over."""

    tag: str = ""
    """Keeps the run's folder apart from others; "": the choice of layers does where there is one, as `s4d`."""

    chosen: SettingsChosen = field(default_factory=SettingsChosen)
    device: str = "auto"
    restart: bool = False
    """Remove what the run's folder holds and start over."""

    workers: int | None = None
    """Processes that make patches; None means as many as the machine has cores for, 0 none."""

    threads: int | None = None
    """Threads that compute on a CPU; None means all usable cores."""

    tensorboard: bool = False
    """Write the log for TensorBoard too."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training left."""

    run: Run
    log: list[EpochLog]
    evaluation: Evaluation | None
    """Of the held-back cases; None where there were none, and in other processes than the first."""

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

    network: nn.Module | None
    """Freshly initialised; None where the training is finished."""

    source: Source | None = None
    """What the network shall begin with."""

    @property
    def settings(self) -> TrainingSettings:
        """Of the training, what was `auto` chosen."""
        settings = TrainingSettings.from_json(self.record.settings)
        # Trainings that began before there was a choice had workers.
        return replace(settings, augmentation="workers") if settings.augmentation == "auto" else settings


def prepare_training(
    job: TrainingJob, *, parts: TrainingParts | None = None, world: World | None = None
) -> PreparedTraining:
    """Check all that can be checked before a training; nothing is written.

    Raises:
        InputError: the workspace is not ready, or an option is wrong or contradicts the training that is there.
    """
    parts, world = parts or TrainingParts(), world or World()
    variant = _chosen_variant(job, parts)
    workspace = job.workspace
    plans = read_plans(workspace.plans_file)
    plans.configuration(job.configuration)
    dataset = workspace.dataset()
    fold = choose_fold(read_folds(workspace.splits_file), job.fold, [case.identifier for case in dataset.cases])
    device = device_of(job.device, world)
    compute = choose_compute(device, job.chosen.precision or "auto")
    run = workspace.run(variant.model, job.configuration, job.fold, valid_tag(job.tag) or variant.tag)
    goes_on = run.configuration_file.is_file() and not job.restart
    if goes_on:
        record = _go_on(job, run, plans, fold, variant)
        if not run.is_finished:
            compute = choose_compute(device, TrainingSettings.from_json(record.settings).precision)
    else:
        variant = _variant_to_begin(job, run, variant)
        record = _new_record(job, plans, fold, dataset.description, compute, variant)
    before = choose_previous_runs(workspace, record) if not (goes_on and run.is_finished) else {}
    if before:
        record = record.model_copy(update={"previous_runs": previous_run_names(before)})
    cases = [*record.train_cases, *record.val_cases]
    store = require_preprocessed(workspace, record.plans, job.configuration, dataset, cases)
    prepared = PreparedTraining(run, record, store, compute, goes_on, network=None)
    if run.is_finished and goes_on:
        return prepared
    settings = prepared.settings
    if job.chosen.checkpointing is not None:
        settings = replace(settings, checkpointing=job.chosen.checkpointing)
        prepared = replace(prepared, record=record.model_copy(update={"settings": settings.to_json()}))
    require_enough_patches(settings.batch_size, world)
    network = seeded_network(record, settings, store, parts)  # what cannot be built is refused here
    source = None
    if settings.init_from and not (goes_on and run.checkpoint("latest").is_file()):
        source = read_source(Path(settings.init_from), job.fold)
        if source.run == run.folder.resolve():  # its weights would be gone before new ones are there
            raise InputError(
                f"the training in {run.folder} cannot begin with its own weights",
                next_step="keep both with --tag NAME",
            )
    return replace(prepared, network=network, source=source)


def train_fold(
    job: TrainingJob, *, parts: TrainingParts | None = None, on_progress: OnProgress = ignore_progress
) -> TrainingResult:
    """Train a fold to the end, then predict and evaluate its held-back cases.

    A training that was stopped goes on where it was; one that is finished is left as it is. In a process that
    `torchrun` started the training is done together with the others.

    Args:
        job: what to train.
        parts: a network, a loss or transforms in place of umamba's own.
        on_progress: told of each step.

    Raises:
        InputError: the workspace is not ready, an option is wrong or contradicts the training that is there, or
            another process trains it.
        Stopped: a signal asked for it; the training goes on with the same call.
        WorkError: the training failed.
    """
    parts, world = parts or TrainingParts(), this_world()
    prepared = prepare_training(job, parts=parts, world=world)
    run, compute, found = prepared.run, prepared.compute, _state_of(prepared.run)
    if prepared.network is not None and loader_workers(job.workers):
        prepare_loader_workers()
    use_threads(compute_threads(job.threads))
    with ExitStack() as held:
        held.enter_context(connected(world, compute.device))
        lock = _take_lock(run, world, compute, held)
        if _state_of(run) != found:  # another process trained here until a moment ago
            prepared = prepare_training(job, parts=parts, world=world)
        record = prepared.record
        around = Surroundings(compute, world, job.workers, lock, job.tensorboard, on_progress)
        if prepared.network is None:
            log = read_log(run)[0]
            around.on_progress(Progress("train", len(log), len(log), note=f"{run.folder} is trained already"))
        else:
            try:
                log = _train(prepared, prepared.network, around, parts, job.workspace)
            except Stopped as error:
                if not job.restart:
                    raise
                again = "run the same command again, but without --restart, to go on there"
                raise Stopped(error.problem, next_step=again) from error
        previous = _previous_stage(job.workspace, record, around) if cases_to_predict(run, record) else None
        evaluation = validate_fold(run, record, prepared.store, around, job.workspace, parts, previous=previous)
    return TrainingResult(run, log, evaluation, compute)


def _state_of(run: Run) -> tuple[bool, bool]:
    """Whether a training began in this folder, and whether it is finished."""
    return run.configuration_file.is_file(), run.is_finished


def _take_lock(run: Run, world: World, compute: Compute, held: ExitStack) -> RunLock | None:
    """The first process takes the run's lock, and all of them learn whether it could."""
    lock, busy = RunLock(run) if world.is_first else None, None
    if lock:
        try:
            held.enter_context(lock)
        except RunBusyError as error:
            busy = error
    if world.any(busy is not None, compute.device):
        raise busy or RunBusyError(f"{run.folder} is being trained by others", next_step="see what the first one says")
    return lock


def device_of(device: str, world: World) -> str:
    """With several processes each takes the GPU of its number, where there are GPUs."""
    if world.size > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{world.local_rank}"
    return device


def _chosen_variant(job: TrainingJob, parts: TrainingParts) -> ModelVariant:
    if parts.network is None:
        return find_variant(job.model, job.mixer, job.scan_directions)
    if job.mixer or job.scan_directions:
        raise InputError(
            "a network of your own has no layers to choose", next_step="leave mixer and directions out, or the network"
        )
    return ModelVariant(job.model)


def _variant_to_begin(job: TrainingJob, run: Run, variant: ModelVariant) -> ModelVariant:
    """What a training in this folder begins with, or starts over with: the layers that it had, if none are chosen."""
    there = variant_of(run)
    if there and there.model == variant.model and not _asks_for_layers(job, variant):
        variant = there
    require_honest_tag(job.tag, variant)
    restarted = {job.fold, *job.together} if job.restart else ()
    require_same_variant_beside(run, variant, {run.folder.with_name(f"fold_{fold}") for fold in restarted})
    return variant


def _asks_for_layers(job: TrainingJob, variant: ModelVariant) -> bool:
    """Whether a choice of layers was given, so that it counts and not the training that is there."""
    return bool(variant.tag or job.mixer or job.scan_directions)


def _go_on(job: TrainingJob, run: Run, plans: Plans, fold: Fold, variant: ModelVariant) -> RunRecord:
    """The record of the training that is there, where it can go on as asked."""
    record = read_record(run)
    if _asks_for_layers(job, variant) and variant != record.variant:
        raise InputError(
            f"the training in {run.folder} is one of {record.variant.title}, not of {variant.title}",
            next_step="start over with --restart, or keep both with another --tag",
        )
    require_same_settings(TrainingSettings.from_json(record.settings), job.chosen, str(run.folder))
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
    job: TrainingJob,
    plans: Plans,
    fold: Fold,
    description: DatasetDescription,
    compute: Compute,
    variant: ModelVariant,
) -> RunRecord:
    configuration = plans.configuration(job.configuration)
    settings = settings_from_plans(plans, configuration, job.chosen)
    record = RunRecord(
        model=variant.model,
        configuration=job.configuration,
        fold=job.fold,
        tag=job.tag or variant.tag,
        mixer=variant.mixer,
        scan_directions=variant.scan_directions,
        settings={},
        train_cases=fold.train,
        val_cases=fold.val,
        mirror_axes=(),
        versions=current_versions(),
        started=now(),
        dataset=description,
        plans=plans,
    )
    plan = augmentation_plan(record)
    device = {
        "device": compute.device_name,
        "precision": compute.precision,
        "precision_reason": compute.reason,
        "scan_backend": choose_backend(compute.device.type).name,
        "augmentation_reason": "asked for",
    }
    if settings.augmentation == "auto":
        chosen, device["augmentation_reason"] = default_augmentation(compute.device.type, plan)
        settings = replace(settings, augmentation=chosen)
    return record.model_copy(update={"settings": settings.to_json(), "mirror_axes": plan.mirror_axes, "device": device})


def _train(
    prepared: PreparedTraining, network: nn.Module, around: Surroundings, parts: TrainingParts, workspace: Workspace
) -> list[EpochLog]:
    run, record, settings = prepared.run, prepared.record, prepared.settings
    taken = take_weights(network, prepared.source) if prepared.source else None
    previous = _previous_stage(workspace, record, around)
    loop = new_loop(run, record, settings, prepared.store, network, around, parts=parts, previous=previous)
    compile_scan([network], around.compute.device, around.on_progress)
    # Before anything is written here, so that what would fit can be tried in the same folder.
    try_memory(loop.step, network, loop.plan, replace(settings, batch_size=loop.maker.patches_a_batch))
    around.world.wait()
    if around.world.is_first:
        if not prepared.goes_on:
            _clear(run)
        remove_leftovers(run.folder)
        if taken:
            record = record.model_copy(update={"initialised": taken.to_json()})
        write_record(run, record)
    if taken:
        _tell_taken(taken, around.on_progress)
    around.world.wait()
    return loop.train()


def _previous_stage(workspace: Workspace, record: RunRecord, around: Surroundings) -> PreviousStage | None:
    """What a cascade's previous stage predicts; the first process makes what is missing, the others wait."""
    previous = None
    if around.world.is_first:
        previous = predict_previous_stage(workspace, record, around.compute, around.on_progress)
    around.world.wait()
    if not around.world.is_first:
        previous = predict_previous_stage(workspace, record, around.compute, ignore_progress)
    return previous


def _clear(run: Run) -> None:
    """Remove an earlier training, but not the lock that this process holds in its folder."""
    for path in run.folder.iterdir():
        if path not in (lock_file(run), running_file(run)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _tell_taken(taken: Taken, on_progress: OnProgress) -> None:
    """Say what a network begins with, and name what did not match."""
    shown = [f"  {line}" for line in taken.left[:_MOST_LISTED]]
    if len(taken.left) > _MOST_LISTED:
        shown.append(f"  and {len(taken.left) - _MOST_LISTED} more, listed in run.json")
    left = "; these begin anew:" if taken.left else ""
    text = f"{taken.taken} of {taken.taken + len(taken.left)} tensors are those of {taken.source}{left}"
    on_progress(Progress("train", 0, 1, note="\n".join([text, *shown])))
