"""What a training would do, without doing it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import Any

from umamba_cli.pipeline.devices import free_device_bytes, lower_precisions, use_threads
from umamba_cli.pipeline.networks.registry import describe, find_model
from umamba_cli.pipeline.runs.lock import holder
from umamba_cli.pipeline.runs.log import read_log
from umamba_cli.pipeline.runs.network import compile_scan, recorded_plan
from umamba_cli.pipeline.training.distributed import World
from umamba_cli.pipeline.training.fitting import memory_error
from umamba_cli.pipeline.training.losses import SegmentationLoss, loss_for
from umamba_cli.pipeline.training.settings import TrainingSettings
from umamba_cli.pipeline.training.trial import empty_batch, time_steps
from umamba_cli.pipeline.workflows.assemble import Surroundings, TrainingParts, compute_threads, new_loop
from umamba_cli.pipeline.workflows.models import ModelNeeds, model_needs
from umamba_cli.pipeline.workflows.train import PreparedTraining, TrainingJob, prepare_training

_TIMED_STEPS = 4
_VALIDATION_STEP = 1 / 3  # of a training step: the forward pass alone


@dataclass(frozen=True)
class TrainingPreview:
    """A training that could start now."""

    training: PreparedTraining
    settings: TrainingSettings
    epochs_done: int
    """Of a training that is there and would go on."""

    needs: ModelNeeds
    free_bytes: int
    """Of the device's memory."""

    seconds_a_step: float | None
    """Measured; None where nothing was timed, or nothing is to be trained."""

    busy: dict[str, Any] | None
    """Who trains in the run's folder now."""

    processes: int = 1
    """That would share each batch."""

    would_fit: tuple[str, ...] = ()
    """Where the device has too little memory free: what to do about it, in words."""

    @property
    def steps(self) -> int:
        """Optimizer steps that are still to do."""
        return (self.settings.epochs - self.epochs_done) * self.settings.iterations

    @property
    def seconds_in_all(self) -> float | None:
        """By the timed steps, with the look at validation patches; without waiting for data, and the evaluation."""
        if self.seconds_a_step is None:
            return None
        looks = self.settings.validation_iterations if self.training.record.val_cases else 0
        share = 1 + looks / self.settings.iterations * _VALIDATION_STEP
        return self.steps * self.seconds_a_step * share

    @property
    def fits(self) -> bool | None:
        """True where the device has the memory free; None where that is not known."""
        return self.needs.memory.peak_bytes <= self.free_bytes if self.needs.memory else None

    def to_json(self) -> dict[str, Any]:
        """A dictionary for a JSON file."""
        record, compute = self.training.record, self.training.compute
        return {
            "run": self.training.run.folder,
            "configuration": record.configuration,
            "fold": record.fold,
            "train_cases": len(record.train_cases),
            "val_cases": len(record.val_cases),
            "patch_size": record.network_configuration.patch_size,
            "settings": self.settings.to_json(),
            "epochs_done": self.epochs_done,
            "steps": self.steps,
            "seconds_a_step": self.seconds_a_step,
            "seconds_in_all": self.seconds_in_all,
            "device": compute.device_name,
            "precision": compute.precision,
            "precision_reason": compute.reason,
            "model": self.needs.to_json(),
            "free_bytes": self.free_bytes,
            "fits": self.fits,
            "would_fit": self.would_fit,
            "busy": self.busy,
            "processes": self.processes,
        }


def preview_training(job: TrainingJob, *, processes: int = 1, time_it: bool = True) -> TrainingPreview:
    """Check all that `train_fold` checks, count what the training would need, and time a few steps.

    Nothing is written. Steps are timed on empty batches, where there is memory for them and nobody trains there.

    Args:
        job: the training.
        processes: that would share each batch; memory is that of one of them, and nothing is timed for several.
        time_it: whether to time steps.

    Raises:
        InputError: the training could not start; see `train_fold`.
    """
    world = World(size=processes)
    training = prepare_training(job, world=world)
    record, compute, settings = training.record, training.compute, training.settings
    share = replace(settings, batch_size=-(-settings.batch_size // processes))  # the largest part of a batch
    busy = holder(training.run)
    loss = loss_for(record.dataset, batch_dice=record.network_configuration.batch_dice)
    needs = model_needs(find_model(record.model), recorded_plan(record), share, compute, loss=loss)
    needs = replace(needs, name=record.variant.title, description=describe(record.variant))
    free = free_device_bytes(compute.device)
    seconds: float | None = None
    would_fit: tuple[str, ...] = ()
    if training.network is not None:
        fits = needs.memory is None or needs.memory.peak_bytes <= free
        if not fits:
            would_fit = _would_fit(training, share, free, loss)
        elif time_it and processes == 1 and not busy:
            seconds = _time_steps(training, settings, job.threads)
    return TrainingPreview(
        training=training,
        settings=settings,
        epochs_done=len(read_log(training.run)[0]) if training.goes_on else 0,
        needs=needs,
        free_bytes=free,
        seconds_a_step=seconds,
        busy=busy,
        processes=processes,
        would_fit=would_fit,
    )


def _would_fit(
    training: PreparedTraining, settings: TrainingSettings, free_bytes: int, loss: SegmentationLoss
) -> tuple[str, ...]:
    assert training.network is not None
    error = memory_error(
        training.network,
        recorded_plan(training.record),
        settings,
        training.compute,
        free_bytes,
        loss=loss,
        precisions=lower_precisions(training.compute),
    )
    return error.problem, *error.details, error.next_step


def _time_steps(training: PreparedTraining, settings: TrainingSettings, threads: int | None) -> float:
    assert training.network is not None
    use_threads(compute_threads(threads))
    around = Surroundings(training.compute, workers=0)
    loop = new_loop(
        training.run, training.record, settings, training.store, training.network, around, parts=TrainingParts()
    )
    compile_scan([training.network], training.compute.device)
    batch = empty_batch(settings.batch_size, loop.plan.input_channels, loop.plan.patch_size, training.compute.device)
    # The first one is slower: memory is taken, and operations are chosen.
    return statistics.median(time_steps(loop.step, batch, _TIMED_STEPS)[1:])
