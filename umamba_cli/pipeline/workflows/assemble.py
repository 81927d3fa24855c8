"""A training put together: the network, the batches, the loss and the loop of a run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from umamba_cli.pipeline.data.store import Store
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.devices import Compute
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.inference.export import labels_of_logits
from umamba_cli.pipeline.networks.registry import NetworkPlan, find_model
from umamba_cli.pipeline.progress import OnProgress, ignore_progress
from umamba_cli.pipeline.reporting.progress import draw_progress
from umamba_cli.pipeline.reporting.tensorboard import TensorBoardLog
from umamba_cli.pipeline.reporting.validation_patch import draw_validation_patch
from umamba_cli.pipeline.resources import usable_cores
from umamba_cli.pipeline.runs.lock import RunLock
from umamba_cli.pipeline.runs.log import EpochLog
from umamba_cli.pipeline.runs.network import previous_labels, recorded_plan
from umamba_cli.pipeline.runs.record import RunRecord
from umamba_cli.pipeline.training.augmentation import Augmentation, AugmentationPlan, BatchedAugmentation, with_previous
from umamba_cli.pipeline.training.distributed import World
from umamba_cli.pipeline.training.epoch_log import Example
from umamba_cli.pipeline.training.loader import Augment, BatchMaker, default_loader_workers
from umamba_cli.pipeline.training.loop import TrainingLoop
from umamba_cli.pipeline.training.losses import Loss, identity, loss_for
from umamba_cli.pipeline.training.patches import Patch, PatchSampler, PreviousStage
from umamba_cli.pipeline.training.settings import TrainingSettings

_SECONDS_BETWEEN_PICTURES = 5.0
_EXAMPLES = 50  # pictures of a validation patch over a whole training


@dataclass(frozen=True)
class TrainingParts:
    """What a Python user puts in place of umamba's own; what is None stays as it is."""

    network: Callable[[NetworkPlan], nn.Module] | None = None
    """Builds the network: in training mode it answers with a list of logits (B, outputs, ...), full resolution first;
    in evaluation mode with those of full resolution."""

    loss: Loss | None = None
    """Of the outputs and the labels, see `losses.Loss`. With several processes it is the mean of theirs."""

    augmentation: Augment | None = None
    """Changes a patch at random to the plan's patch size; picklable, because worker processes call it."""

    after_epoch: Callable[[list[EpochLog], nn.Module], None] | None = None
    """Called after each epoch with the log so far and the network; what it takes is not counted as training time."""


@dataclass(frozen=True)
class Surroundings:
    """What a training runs on and whom it tells; nothing here changes its result."""

    compute: Compute
    world: World = field(default_factory=World)
    workers: int | None = None
    lock: RunLock | None = None
    tensorboard: bool = False
    on_progress: OnProgress = ignore_progress


def seeded_network(record: RunRecord, settings: TrainingSettings, store: Store, parts: TrainingParts) -> nn.Module:
    """The network of a run, freshly initialised by its seed.

    Raises:
        InputError: there is no such model, it does not suit the plan, or checkpointing is asked of a network that has
            none.
    """
    build = parts.network or find_model(record.model).build
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(settings.seed)
        network = build(recorded_plan(record, store.class_frequencies(record.train_cases)))
    if settings.checkpointing:
        if not hasattr(network, "checkpointing"):
            raise InputError(
                f"{record.model} cannot compute its feature maps anew", next_step="leave --checkpointing out"
            )
        network.checkpointing = True  # type: ignore[assignment]
    return network


def batch_maker(
    record: RunRecord,
    settings: TrainingSettings,
    store: Store,
    *,
    previous: PreviousStage | None = None,
    augment: Augment | None = None,
    share: tuple[int, int] = (0, 1),
) -> BatchMaker:
    """What makes the batches of a run, for training and, where cases are held back, for validation.

    Args:
        record: of the run.
        settings: of the run; with the augmentation chosen.
        store: holds its preprocessed cases.
        previous: what a cascade's previous stage predicted.
        augment: in place of umamba's augmentation.
        share: see `BatchMaker`.
    """
    plan = augmentation_plan(record)
    if augment is None and settings.augmentation != "batched":
        augment = Augmentation(plan)
    regions = tuple(record.dataset.regions.values()) if record.dataset.has_regions else ()

    def sampler(purpose: str, cases: tuple[str, ...], read_size: tuple[int, ...]) -> PatchSampler:
        return PatchSampler(
            store,
            cases,
            network_size=plan.patch_size,
            read_size=read_size,
            foreground_share=settings.foreground_share,
            seed=settings.seed,
            purpose=purpose,  # type: ignore[arg-type]
            regions=regions,
            previous=previous,
        )

    finish = _Append(plan.previous_labels) if plan.previous_labels else None
    return BatchMaker(
        sampler("training", record.train_cases, plan.read_size),
        sampler("validation", record.val_cases, plan.patch_size) if record.val_cases else None,
        augment,
        settings.batch_size,
        finish=finish,
        share=share,
    )


@dataclass(frozen=True)
class _Append:
    """`with_previous` of some labels, picklable."""

    labels: tuple[int, ...]

    def __call__(self, patch: Patch) -> Patch:
        return with_previous(patch, self.labels)


def augmentation_plan(record: RunRecord) -> AugmentationPlan:
    """How the patches of a run are augmented."""
    configuration = record.network_configuration
    masked = tuple(index for index, used in enumerate(configuration.use_mask_for_norm) if used)
    return AugmentationPlan(configuration.patch_size, masked, previous_labels(configuration, record.dataset))


def new_loop(
    run: Run,
    record: RunRecord,
    settings: TrainingSettings,
    store: Store,
    network: nn.Module,
    around: Surroundings,
    *,
    parts: TrainingParts,
    previous: PreviousStage | None = None,
) -> TrainingLoop:
    """The training of a run, ready to begin or to go on."""
    world = around.world
    batch_dice = record.network_configuration.batch_dice
    own = loss_for(record.dataset, batch_dice=batch_dice, sum_over_ranks=world.sum if world.size > 1 else identity)
    maker = batch_maker(record, settings, store, previous=previous, augment=parts.augmentation, share=world.share)
    return TrainingLoop(
        run=run,
        network=network,
        plan=recorded_plan(record),
        settings=settings,
        maker=maker,
        output_names=tuple(record.dataset.targets.values()),
        compute=around.compute,
        loss=parts.loss or own,
        overlap=own.overlap,
        validates=bool(record.val_cases),
        augment=BatchedAugmentation(augmentation_plan(record)) if maker.leaves_augmentation else None,
        workers=loader_workers(around.workers),
        world=world,
        lock=around.lock,
        on_progress=around.on_progress,
        after_epoch=_after_epoch(run, record, settings, network, around, parts),
    )


def processes_here() -> int:
    """Processes of a training on several devices that share this machine's cores."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def loader_workers(asked_for: int | None) -> int:
    """Processes that make patches: as asked for, otherwise this process's part of the cores."""
    return max(1, default_loader_workers() // processes_here()) if asked_for is None else asked_for


def compute_threads(asked_for: int | None) -> int:
    """Threads that compute on a CPU: as asked for, otherwise this process's part of the cores."""
    return asked_for or max(1, usable_cores() // processes_here())


def _after_epoch(
    run: Run,
    record: RunRecord,
    settings: TrainingSettings,
    network: nn.Module,
    around: Surroundings,
    parts: TrainingParts,
) -> Callable[[list[EpochLog], Example | None], None]:
    """Draws, writes and calls what is wanted after an epoch; pictures at most every few seconds."""
    board = TensorBoardLog(run.folder / "tensorboard") if around.tensorboard and around.world.is_first else None
    between = max(1, settings.epochs // _EXAMPLES)
    last = -_SECONDS_BETWEEN_PICTURES

    def after(log: list[EpochLog], example: Example | None) -> None:
        nonlocal last
        is_last = len(log) == settings.epochs
        if board:
            board.add(log[-1])
            if is_last:
                board.close()
        if is_last or time.monotonic() - last >= _SECONDS_BETWEEN_PICTURES:
            draw_progress(run.progress_picture, log)
            last = time.monotonic()
        if example is not None and (is_last or len(log) % between == 1 % between):
            _draw_example(run, record, example, len(log))
        if parts.after_epoch:
            parts.after_epoch(log, network)

    return after


def _draw_example(run: Run, record: RunRecord, example: Example, epoch: int) -> None:
    draw_validation_patch(
        run.validation_patch,
        example.image,
        example.labels,
        labels_of_logits(example.logits, record.dataset),
        spacing_mm=record.network_configuration.spacing,
        label_names=record.dataset.foreground,
        title=f"a patch of a held-back case after epoch {epoch}",
    )
