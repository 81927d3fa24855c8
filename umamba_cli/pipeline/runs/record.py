"""`run.json`: everything that decided one training, so that its checkpoint can be used without the workspace."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from typing import Any

import pydantic

import umamba_cli
from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.data.files import read_model, write_json
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.planning.plans import Configuration, Plans

RUN_FORMAT = 1


class RunRecord(pydantic.BaseModel):
    """The whole configuration of one training."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    format: int = RUN_FORMAT
    model: str
    """Registered name of the network family."""

    configuration: str
    """Name of the plans' configuration."""

    fold: int | str
    """0, 1, ... or `all`."""

    tag: str = ""
    settings: dict[str, Any]
    """The training's settings, see `training.settings.TrainingSettings`."""

    train_cases: tuple[str, ...]
    val_cases: tuple[str, ...]
    mirror_axes: tuple[int, ...]
    """Spatial axes along which the network was trained on mirrored patches, and may be asked for mirrored ones."""

    device: dict[str, str] = {}
    """Device, precision and scan backend of the training's first start, with the reasons."""

    versions: dict[str, str] = {}
    started: str = ""
    dataset: DatasetDescription
    plans: Plans

    @property
    def network_configuration(self) -> Configuration:
        """The configuration that the network was built for."""
        return self.plans.configuration(self.configuration)


def write_record(run: Run, record: RunRecord) -> None:
    """Write `run.json`."""
    write_json(run.configuration_file, record)


def read_record(run: Run) -> RunRecord:
    """Read `run.json`.

    Raises:
        InputError: it is missing, damaged or of an unknown format.
    """
    record = read_model(run.configuration_file, RunRecord, next_step="give the folder of a training")
    if record.format != RUN_FORMAT:
        raise InputError(
            f"{run.configuration_file} has format {record.format}, this umamba knows {RUN_FORMAT}",
            next_step="update umamba",
        )
    return record


def current_versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    import numpy
    import torch

    return {
        "umamba": umamba_cli.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
