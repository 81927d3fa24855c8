"""What a report says of the trainings: settings, device, time, state and learning curves."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from markupsafe import Markup

from umamba_cli.pipeline.data.files import read_json
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.reporting.html_report import Figure, Table, TrainingView
from umamba_cli.pipeline.reporting.svg_plots import Line, line_plot
from umamba_cli.pipeline.runs.log import EpochLog, number_of, read_log
from umamba_cli.pipeline.workflows.report_models import ShownModel, one_configuration
from umamba_cli.pipeline.workflows.status import RunStatus

_MOST_ROWS = 25  # of a table of epochs
_MOST_LABELS = 6  # with a curve of their own
_SHOWN_SETTINGS = {
    "epochs": "epochs",
    "iterations": "steps an epoch",
    "batch_size": "patches a step",
    "optimizer": "optimiser",
    "learning_rate": "initial learning rate",
    "warmup": "steps of warm-up",
    "momentum": "momentum",
    "weight_decay": "weight decay",
    "gradient_clip": "gradients clipped at",
    "foreground_share": "share of patches on foreground",
    "augmentation": "augmentation",
    "checkpointing": "activation checkpointing",
    "init_from": "weights began with",
    "seed": "seed",
}
_DEVICE = {"device": "device", "precision": "precision", "scan_backend": "scan backend"}


Models = Mapping[str, ShownModel]
"""By the names of their folders."""


def trainings_table(runs: Sequence[RunStatus], models: Models) -> Table | None:
    """A row for each training; None without any."""
    if not runs:
        return None
    columns = (
        "training",
        "fold",
        "state",
        "epochs",
        "best Dice of patches",
        "at epoch",
        "Dice of whole cases",
        "time so far",
    )
    rows = [
        (
            models[run.run.parent.name].title,
            run.fold,
            run.state,
            f"{run.epoch}/{'-' if run.epochs is None else run.epochs}",
            cell(run.best_dice),
            "-" if run.best_epoch is None else str(run.best_epoch),
            cell(run.validation_dice),
            duration(_seconds(read_log(Run(run.run))[0])),
        )
        for run in runs
    ]
    caption = (
        "State as `umamba status` knows it. Dice of whole cases: mean over the labels, of the held-back cases "
        "predicted with the final weights"
    )
    if configuration := one_configuration(models):
        caption += f". All are of configuration {configuration}"
    return Table("All trainings", columns, tuple(rows), caption)


def training_views(runs: Sequence[RunStatus], models: Models) -> tuple[TrainingView, ...]:
    """Every training with its settings and curves."""
    return tuple(_training(index, run, models) for index, run in enumerate(runs))


def overview_figure(runs: Sequence[RunStatus], models: Models) -> Figure | None:
    """The mean Dice of patches by epoch, of each model the mean over its trainings; None where there is none.

    Args:
        runs: all trainings.
        models: their models.
    """
    dices: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    count: dict[str, int] = defaultdict(int)
    for run in runs:
        known = {int(entry["epoch"]): number_of(entry, "mean_dice") for entry in read_log(Run(run.run))[0]}
        numbers = {epoch: value for epoch, value in known.items() if not math.isnan(value)}
        count[run.run.parent.name] += bool(numbers)
        for epoch, value in numbers.items():
            dices[run.run.parent.name][epoch].append(value)
    lines = []
    for model, by_epoch in dices.items():
        # Where trainings differ in length, a mean over fewer of them would jump.
        epochs = sorted(epoch for epoch, values in by_epoch.items() if len(values) == count[model])
        if epochs:
            name = f"{models[model].title} ({count[model]} training{'' if count[model] == 1 else 's'})"
            values = [statistics.fmean(by_epoch[epoch]) for epoch in epochs]
            lines.append(Line(name, epochs, values, models[model].style))
    if not lines:
        return None
    plot = line_plot(
        "overview", "Mean Dice by epoch", lines, x_name="epoch", y_name="Dice (0 to 1)", y_range=(0, 1), is_wide=True
    )
    return Figure(
        "Mean Dice by epoch",
        (plot,),
        "Of patches of held-back cases, mean over the labels and over a model's trainings, as far as all of them are.",
        _epoch_table("Mean Dice by epoch", lines),
    )


def cell(value: float | None, digits: int = 3) -> str:
    """A number of a table; a hyphen where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`, `2 d 4 h`; a hyphen where nobody knows."""
    if not math.isfinite(seconds):
        return "-"
    minutes, hours = round(seconds / 60), int(seconds // 3600)
    if seconds < 120:
        return f"{round(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    if hours < 48:
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} d {hours % 24} h"


def _training(index: int, run: RunStatus, models: Models) -> TrainingView:
    record: Mapping[str, Any] = {}
    with suppress(InputError):  # `run.problem` says what is wrong
        content = read_json(Run(run.run).configuration_file)
        record = content if isinstance(content, dict) else {}
    log, _ = read_log(Run(run.run))
    facts = [*_about(record, log), *_settings(_mapping(record.get("settings")))]
    title = f"{models[run.run.parent.name].title}, fold {run.fold}"
    epochs = f"{run.epoch} of {'-' if run.epochs is None else run.epochs} epochs"
    figure = _curves(f"run{index}", title, log) if log else None
    return TrainingView(title, f"{run.state}, {epochs}", tuple(facts), figure, run.problem)


def _about(record: Mapping[str, Any], log: Sequence[EpochLog]) -> list[tuple[str, str]]:
    found = []
    for kind, name in (("train_cases", "cases trained on"), ("val_cases", "cases held back")):
        if isinstance(record.get(kind), list):
            found.append((name, str(len(record[kind]))))
    device = _mapping(record.get("device"))
    found += [(name, str(device[key])) for key, name in _DEVICE.items() if device.get(key)]
    seconds = [value for entry in log if not math.isnan(value := number_of(entry, "seconds"))]
    if seconds:
        found.append(
            ("time", f"{duration(sum(seconds))} for {len(seconds)} epochs, {statistics.median(seconds):.3g} s each")
        )
    if memory := [value for entry in log if not math.isnan(value := number_of(entry, "memory_bytes"))]:
        # On a CPU that of the process, which may have trained others before.
        found.append(("memory of the process at most", f"{max(memory) / 1024**3:.2f} GiB"))
    if skipped := sum(value for entry in log if (value := number_of(entry, "skipped_steps")) > 0):
        found.append(("steps skipped, not finite", f"{skipped:.0f}"))
    versions = _mapping(record.get("versions"))
    if versions:
        found.append(
            ("versions", ", ".join(f"{name} {versions[name]}" for name in ("umamba", "torch") if name in versions))
        )
    return [*found, *([("started", str(record["started"]))] if record.get("started") else [])]


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, f"{value:.6g}" if isinstance(value, float) else _word(value))
        for key, name in _SHOWN_SETTINGS.items()
        if (value := settings.get(key)) not in (None, "")
    ]


def _word(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _curves(key: str, title: str, log: Sequence[EpochLog]) -> Figure | None:
    """Losses, Dice and learning rate; None where the log has no number."""
    epochs = [int(entry["epoch"]) for entry in log]
    losses = [Line(name, epochs, _column(log, field), style) for field, name, style in _LOSSES]
    rate = [Line("learning rate", epochs, _column(log, "learning_rate"), 1)]
    names = list(dict.fromkeys(str(name) for entry in log for name in _mapping(entry.get("dice"))))
    labels = [
        Line(name, epochs, [number_of(_mapping(entry.get("dice")), name) for entry in log], index)
        for index, name in enumerate(names)
    ]
    mean = Line("mean of all labels", epochs, _column(log, "mean_dice"), 0, is_thick=True)
    shown = [mean, *(_moved(line) for line in labels[:_MOST_LABELS])] if len(labels) > 1 else [mean]
    plots = [
        _plot(f"{key}-loss", f"{title}: loss by epoch", losses, "loss"),
        _plot(f"{key}-dice", f"{title}: Dice by epoch", shown, "Dice (0 to 1)", (0.0, 1.0)),
        _plot(f"{key}-rate", f"{title}: learning rate by epoch", rate, "learning rate"),
    ]
    pictures = tuple(plot for plot in plots if plot is not None)
    if not pictures:
        return None
    more = f" {len(labels) - _MOST_LABELS} labels have no curve." if len(labels) > _MOST_LABELS else ""
    caption = f"Loss, Dice of patches of held-back cases, and learning rate by epoch.{more}"
    return Figure("Learning curves", pictures, caption, _epoch_table(title, [*losses, mean, *labels, *rate]))


_LOSSES = (("train_loss", "training loss", 1), ("val_loss", "validation loss", 5))


def _moved(line: Line) -> Line:
    return Line(line.name, line.x, line.y, line.style + 1)


def _plot(
    key: str, title: str, lines: Sequence[Line], y_name: str, y_range: tuple[float, float] | None = None
) -> Markup | None:
    known = [line for line in lines if any(map(math.isfinite, line.y))]
    return line_plot(key, title, known, x_name="epoch", y_name=y_name, y_range=y_range) if known else None


def _epoch_table(title: str, lines: Sequence[Line]) -> Table:
    """The lines' numbers, of long trainings at some epochs alone."""
    known = [line for line in lines if any(map(math.isfinite, line.y))]
    values = [dict(zip(line.x, line.y, strict=True)) for line in known]
    epochs = sorted({epoch for line in known for epoch in line.x})
    step = -(-len(epochs) // _MOST_ROWS)
    chosen = sorted({*epochs[::step], *epochs[-1:]})
    rows = [(f"{epoch:g}", *(_figure(column.get(epoch, math.nan)) for column in values)) for epoch in chosen]
    caption = f"Every {step} epochs" if step > 1 else ""
    return Table(title, ("epoch", *(line.name for line in known)), tuple(rows), caption)


def _figure(value: float) -> str:
    return "-" if not math.isfinite(value) else f"{value:.4g}" if 0 < abs(value) < 0.001 else f"{value:.4f}"


def _seconds(log: Sequence[EpochLog]) -> float:
    known = [value for entry in log if not math.isnan(value := number_of(entry, "seconds"))]
    return sum(known) if known else math.nan


def _column(log: Sequence[EpochLog], name: str) -> list[float]:
    return [number_of(entry, name) for entry in log]


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
