"""`progress.png`: how a training went, drawn from the lines of its `log.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from umamba_cli.pipeline.data.files import replacing
from umamba_cli.pipeline.reporting.overlay import label_colour

_INCHES = (10.0, 11.0)
_DOTS_PER_INCH = 100
_FEW_EPOCHS = 40  # up to here every epoch gets a dot; one epoch alone would not be seen without
_MOST_NAMED_LABELS = 12

_TRAINING_COLOUR, _VALIDATION_COLOUR = "#0072B2", "#D55E00"


def draw_progress(path: Path, epochs: Sequence[Mapping[str, Any]]) -> None:
    """Draw losses, Dice, epoch time and learning rate over the epochs.

    Args:
        path: the picture (PNG), written whole or not at all.
        epochs: lines of `log.jsonl`, in order; `epoch` (from 1), `train_loss`, `val_loss`, `dice` (label name to
            value), `mean_dice`, `learning_rate`, `seconds`. Values may be missing, None or NaN.

    Raises:
        ValueError: there is no epoch.
        WorkError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not epochs:
        raise ValueError("there is no epoch to draw")
    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    losses, dice, times = figure.subplots(3, 1, sharex=True)
    style = {"marker": "o", "markersize": 4} if len(epochs) <= _FEW_EPOCHS else {}
    x = [int(entry["epoch"]) for entry in epochs]
    _draw_losses(losses, x, epochs, style)
    _draw_dice(dice, x, epochs, style)
    _draw_times(times, x, epochs, style)
    times.set_xlabel("epoch")
    times.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    times.set_xlim(x[0] - 0.5, x[-1] + 0.5)
    for axes in (losses, dice, times):
        axes.grid(visible=True, alpha=0.3)
        axes.spines[["top"]].set_visible(False)
    figure.suptitle(_summary(epochs))
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DOTS_PER_INCH)


def _draw_losses(axes: Any, x: list[int], epochs: Sequence[Mapping[str, Any]], style: Mapping[str, Any]) -> None:
    axes.plot(x, _values(epochs, "train_loss"), color=_TRAINING_COLOUR, label="training", **style)
    validation = _values(epochs, "val_loss")
    if _any(validation):
        axes.plot(x, validation, color=_VALIDATION_COLOUR, linestyle="--", label="validation", **style)
    axes.set_title("Loss")
    axes.set_ylabel("loss (cross-entropy - Dice)")
    axes.legend(loc="upper right")


def _draw_dice(axes: Any, x: list[int], epochs: Sequence[Mapping[str, Any]], style: Mapping[str, Any]) -> None:
    axes.set_title("Dice on patches of the held-back cases")
    axes.set_ylabel("Dice (0 to 1)")
    axes.set_ylim(-0.02, 1.02)
    names = list(dict.fromkeys(name for entry in epochs for name in entry.get("dice") or {}))
    for index, name in enumerate(names):
        values = [_number((entry.get("dice") or {}).get(name)) for entry in epochs]
        shown = name if index < _MOST_NAMED_LABELS else f"_{name}"  # matplotlib names no line that begins with _
        axes.plot(x, values, color=label_colour(index), linewidth=1.3, label=shown, **style)
    mean = _values(epochs, "mean_dice")
    if _any(mean):
        axes.plot(x, mean, color="black", linewidth=2.4, label="mean of all labels", **style)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    else:
        axes.text(0.5, 0.5, "no case is held back", ha="center", va="center", transform=axes.transAxes)


def _draw_times(axes: Any, x: list[int], epochs: Sequence[Mapping[str, Any]], style: Mapping[str, Any]) -> None:
    (time_line,) = axes.plot(x, _values(epochs, "seconds"), color=_TRAINING_COLOUR, label="time", **style)
    axes.set_title("Epoch time and learning rate")
    axes.set_ylabel("time of an epoch (s)")
    axes.set_ylim(bottom=0)
    rates = axes.twinx()
    hollow = {**style, "marker": "s", "markersize": 7, "markerfacecolor": "none"} if style else {}
    (rate_line,) = rates.plot(
        x, _values(epochs, "learning_rate"), color=_VALIDATION_COLOUR, linestyle="--", label="learning rate", **hollow
    )
    rates.set_ylabel("learning rate")
    rates.set_ylim(bottom=0)
    rates.spines[["top"]].set_visible(False)
    axes.legend(handles=[time_line, rate_line], loc="lower left")


def _summary(epochs: Sequence[Mapping[str, Any]]) -> str:
    count = f"{len(epochs)} epoch{'' if len(epochs) == 1 else 's'}"
    mean = _values(epochs, "mean_dice")
    if not _any(mean):
        return f"Training: {count}"
    best = max((index for index in range(len(mean)) if not math.isnan(mean[index])), key=lambda index: mean[index])
    return f"Training: {count}, best mean Dice {mean[best]:.3f} in epoch {epochs[best]['epoch']}"


def _values(epochs: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [_number(entry.get(key)) for entry in epochs]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _any(values: Sequence[float]) -> bool:
    return any(not math.isnan(value) for value in values)
