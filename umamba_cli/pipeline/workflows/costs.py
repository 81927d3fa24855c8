"""What a model costs beside how well it does: parameters, operations, memory, time, and how soon it learns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from umamba_cli.pipeline.data.files import read_json
from umamba_cli.pipeline.data.store import Store
from umamba_cli.pipeline.data.workspace import Run, Workspace
from umamba_cli.pipeline.devices import choose_compute
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.inference.export import labels_on_image_grid
from umamba_cli.pipeline.inference.predictor import load_predictor
from umamba_cli.pipeline.networks.registry import find_model
from umamba_cli.pipeline.preprocessing.case import CaseGeometry
from umamba_cli.pipeline.runs.log import number_of, read_log
from umamba_cli.pipeline.runs.network import recorded_plan
from umamba_cli.pipeline.runs.record import read_record
from umamba_cli.pipeline.training.losses import loss_for
from umamba_cli.pipeline.training.settings import TrainingSettings
from umamba_cli.pipeline.workflows.cascade import network_input, predict_previous_stage
from umamba_cli.pipeline.workflows.models import model_needs

FINAL_SHARE = 0.95
"""Of the final Dice: a model that has reached it has learned most of what it will."""

_TIMED_CASES = 3
_LEARNT = 0.01
_FINAL_EPOCHS = 0.1  # share of the epochs whose mean is the final Dice: a single epoch sees few patches


@dataclass(frozen=True)
class ModelCost:
    """What one model took; medians over its trainings. NaN where nothing tells."""

    model: str
    parameters: int

    multiply_adds: float
    """Of predicting one patch."""

    memory_bytes: float
    """Of a training step, counted as `umamba models` does: what one process has depends on what it did before."""

    seconds_a_step: float
    """An epoch's time by its steps, with its validation."""

    seconds_a_case: float
    """From the preprocessed image to the label map on the image's grid, mirrored passes included."""

    epochs_to_learn: float
    """Epochs until the validation Dice reaches 95 % of the final one."""

    epochs: int
    """Of each training."""

    device: str
    """That cases were timed on."""

    timed: str
    """The training whose network was timed: its folder below that of all runs, and when it was started."""


_SAVED = pydantic.TypeAdapter(ModelCost)


def cost_of(model: str, runs: Sequence[Run], workspace: Workspace, device: str, known: ModelCost | None) -> ModelCost:
    """What a model took.

    Args:
        model: its name.
        runs: its finished trainings, one at least; cases are timed with the first.
        workspace: that holds the preprocessed cases.
        device: see `choose_compute`.
        known: what was measured before: cases are not timed again on the same device.

    Raises:
        InputError: see `load_predictor`.
    """
    compute = choose_compute(device)
    record = read_record(runs[0])
    timed = f"{runs[0].folder.relative_to(workspace.runs)}, {record.started}"
    measured = known is not None and (known.device, known.timed) == (compute.device_name, timed)
    if known is not None and measured and not math.isnan(known.seconds_a_case):
        seconds = known.seconds_a_case
    else:
        seconds = _timed(runs[0], workspace, device)
    logs = [read_log(run)[0] for run in runs]
    settings = TrainingSettings.from_json(record.settings)
    trained_on = choose_compute(device, settings.precision)
    loss = loss_for(record.dataset, batch_dice=record.network_configuration.batch_dice)
    needs = model_needs(find_model(record.model), recorded_plan(record), settings, trained_on, loss=loss)
    seconds_an_epoch = [number_of(entry, "seconds") for log in logs for entry in log]
    return ModelCost(
        model=model,
        parameters=needs.parameters or 0,
        multiply_adds=math.nan if needs.multiply_adds is None else needs.multiply_adds,
        memory_bytes=needs.memory.peak_bytes if needs.memory else math.nan,
        seconds_a_step=_median(seconds_an_epoch) / settings.iterations,
        seconds_a_case=seconds,
        epochs_to_learn=_median([epochs_to_learn([number_of(entry, "mean_dice") for entry in log]) for log in logs]),
        epochs=settings.epochs,
        device=compute.device_name,
        timed=timed,
    )


def epochs_to_learn(dices: Sequence[float], share: float = FINAL_SHARE) -> float:
    """The first epoch, from 1, whose validation Dice (NaN where it is not known) is a share of the final one; or NaN.

    The final one is the mean over the last tenth of the epochs. Below `_LEARNT` nothing was learnt, whenever that was
    reached.
    """
    known = [dice for dice in dices if not math.isnan(dice)]
    if not known:
        return math.nan
    last = [dice for dice in dices[-max(1, round(len(dices) * _FINAL_EPOCHS)) :] if not math.isnan(dice)] or known[-1:]
    final = statistics.fmean(last)
    if final < _LEARNT:
        return math.nan
    wanted = share * final
    return float(next(epoch for epoch, dice in enumerate(dices, start=1) if dice >= wanted))


def known_costs(file: Path) -> dict[str, ModelCost]:
    """What an earlier comparison measured, by model; nothing where there is none, or of another version."""
    if not file.is_file():
        return {}
    try:
        costs = [_from_json(cost) for cost in read_json(file)["costs"]]
    except (InputError, AttributeError, KeyError, TypeError, ValueError):  # pydantic's are ValueErrors
        return {}
    return {cost.model: cost for cost in costs}


def _from_json(content: Mapping[str, Any]) -> ModelCost:
    """From JSON, which has no NaN."""
    known = {name: math.nan if value is None else value for name, value in content.items()}
    return _SAVED.validate_python(known)


def _timed(run: Run, workspace: Workspace, device: str) -> float:
    """Seconds for a case: the median of some after one that does not count."""
    record = read_record(run)
    compute = choose_compute(device, TrainingSettings.from_json(record.settings).precision)
    predictor = load_predictor(run.folder, (), compute, previous_stage=False)
    previous = predict_previous_stage(workspace, record, compute)
    store = Store(workspace.preprocessed(record.configuration))
    cases = [store.case(name) for name in record.val_cases[: _TIMED_CASES + 1]]
    seconds = []
    for case in cases if len(cases) > 1 else cases * 2:  # the first does not count
        image = network_input(case, record, previous)
        began = time.monotonic()
        logits = predictor.logits(image)
        geometry = CaseGeometry.from_json(case.properties["geometry"])
        labels_on_image_grid(logits, geometry, record.network_configuration, record.dataset)
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds[1:])


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan
