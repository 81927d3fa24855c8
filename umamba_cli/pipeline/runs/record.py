"""`run.json`: everything that decided one training, so that its checkpoint can be used without the workspace."""

from __future__ import annotations

import dataclasses
import platform
from datetime import datetime, timezone
from typing import Annotated, Any

import pydantic

import umamba_cli
from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.data.files import read_model, write_json
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.architecture import Architecture, Mixer, ModelVariant, ScanDirections
from umamba_cli.pipeline.planning.plans import Configuration, Plans

RUN_FORMAT = 1


def _strictly(value: object, build: pydantic.ValidatorFunctionWrapHandler) -> Architecture | None:
    """An architecture of known fields alone: one that is not known would make another network."""
    known = [field.name for field in dataclasses.fields(Architecture)]
    if isinstance(value, dict) and (unknown := value.keys() - set(known)):
        raise ValueError(f"has {', '.join(map(str, unknown))}, which this umamba does not know")
    try:
        built: Architecture | None = build(value)
    except InputError as error:
        raise ValueError(error.problem) from error
    return built


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

    architecture: Annotated[Architecture | None, pydantic.WrapValidator(_strictly)] = None
    """The network, where it is another than model and plans make: released ones differ in named fields."""

    mixer: Mixer = "mamba"
    """What mixes the tokens in the model's state space layers, where it has some; see `networks.architecture`."""

    scan_directions: ScanDirections = "forward"
    """The order in which they read the voxels."""

    settings: dict[str, Any]
    """The training's settings, see `training.settings.TrainingSettings`."""

    train_cases: tuple[str, ...]
    val_cases: tuple[str, ...]

    previous_runs: tuple[str, ...] = ()
    """For a cascade: the runs of its previous stage, as paths from the folder of all runs (`MODEL__3d_lowres/fold_0`).
    """

    mirror_axes: tuple[int, ...]
    """Spatial axes along which the network was trained on mirrored patches, and may be asked for mirrored ones."""

    initialised: dict[str, Any] | None = None
    """What the weights began with, where that was another model: source, tensors taken, tensors left."""

    device: dict[str, str] = {}
    """Device, precision and scan backend of the training's first start, with the reasons."""

    versions: dict[str, str] = {}
    started: str = ""
    dataset: DatasetDescription
    plans: Plans

    @property
    def variant(self) -> ModelVariant:
        """The model with the choice of its layers."""
        return ModelVariant(self.model, self.mixer, self.scan_directions)

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
    require_known_format(record, str(run.configuration_file))
    return record


def require_known_format(record: RunRecord, source: str) -> None:
    """Refuse a record that a newer umamba wrote.

    Raises:
        InputError: it is of an unknown format; `source` names it.
    """
    if record.format != RUN_FORMAT:
        raise InputError(
            f"{source} has format {record.format}, this umamba knows {RUN_FORMAT}", next_step="update umamba"
        )


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
