"""What a training would do, without doing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from umamba_cli.pipeline.devices import free_device_bytes
from umamba_cli.pipeline.networks.registry import find_model
from umamba_cli.pipeline.runs.network import network_plan
from umamba_cli.pipeline.training.loop import read_log
from umamba_cli.pipeline.training.settings import TrainingSettings
from umamba_cli.pipeline.workflows.models import ModelNeeds, model_needs
from umamba_cli.pipeline.workflows.train import PreparedTraining, TrainingJob, prepare_training


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

    @property
    def steps(self) -> int:
        """Optimizer steps that are still to do."""
        return (self.settings.epochs - self.epochs_done) * self.settings.iterations

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
            "device": compute.device_name,
            "precision": compute.precision,
            "precision_reason": compute.reason,
            "model": self.needs.to_json(),
            "free_bytes": self.free_bytes,
            "fits": self.fits,
        }


def preview_training(job: TrainingJob) -> TrainingPreview:
    """Check all that `train_fold` checks, and count what the training would need; nothing is written.

    Raises:
        InputError: the training could not start; see `train_fold`.
    """
    training = prepare_training(job)
    record, configuration = training.record, training.record.network_configuration
    settings = TrainingSettings.from_json(record.settings)
    needs = model_needs(
        find_model(record.model),
        network_plan(configuration, record.dataset),
        settings,
        training.compute,
        batch_dice=configuration.batch_dice,
    )
    return TrainingPreview(
        training=training,
        settings=settings,
        epochs_done=len(read_log(training.run)) if training.goes_on else 0,
        needs=needs,
        free_bytes=free_device_bytes(training.compute.device),
    )
