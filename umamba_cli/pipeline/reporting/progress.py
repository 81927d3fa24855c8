"""`progress.png`: how a training went, drawn from the lines of its `log.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from umamba_cli.pipeline.data.files import replacing
from umamba_cli.pipeline.reporting.overlay import label_colour

Epochs = Sequence[Mapping[str, Any]]

_INCHES = (10.0, 12.0)
_DOTS_PER_INCH = 100
_PANEL_HEIGHTS = (3, 4, 1.6, 2)  # of losses, Dice, learning rate and times
_FEW_EPOCHS = 40  # up to here every epoch gets a dot; one epoch alone would not be seen without
_MANY_EPOCHS = 200  # from here on thin lines, which do not run into one another
_MOST_NAMED_LABELS = 12
_MOST_NAMED_CHANGES = 4  # of precision; more would be written over one another

_TRAINING_COLOUR, _VALIDATION_COLOUR, _TROUBLE_COLOUR = "#0072B2", "#D55E00", "#CC79A7"


def draw_progress(path: Path, epochs: Epochs) -> None:
    """Draw losses, Dice, learning rate and epoch times over the epochs; skipped steps, waiting and changes of precision
    where there were any.

    Args:
        path: the picture (PNG), written whole or not at all.
        epochs: lines of `log.jsonl`, in order; `epoch` (from 1), `train_loss`, `val_loss`, `dice` (label name to
            value), `mean_dice`, `learning_rate`, `seconds`, `waiting_share` (0 to 1), `skipped_steps`, `precision`.
            Values may be missing, None or NaN.

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
    panels = figure.subplots(4, 1, sharex=True, height_ratios=_PANEL_HEIGHTS)
    x = [int(entry["epoch"]) for entry in epochs]
    style = _style(len(epochs))
    for axes, draw in zip(panels, (_draw_losses, _draw_dice, _draw_rate, _draw_times), strict=True):
        draw(axes, x, epochs, style)
        axes.grid(visible=True, alpha=0.3)
        axes.spines[["top"]].set_visible(False)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panels[-1].set_xlim(x[0] - 0.5, x[-1] + 0.5)
    figure.suptitle(_summary(epochs))
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DOTS_PER_INCH)


def _style(count: int) -> dict[str, Any]:
    if count <= _FEW_EPOCHS:
        return {"marker": "o", "markersize": 4, "linewidth": 1.3}
    return {"linewidth": 0.8 if count >= _MANY_EPOCHS else 1.3}


def _draw_losses(axes: Any, x: list[int], epochs: Epochs, style: Mapping[str, Any]) -> None:
    training, validation = _values(epochs, "train_loss"), _values(epochs, "val_loss")
    axes.plot(x, training, color=_TRAINING_COLOUR, label="training", **style)
    if _any(validation):
        axes.plot(x, validation, color=_VALIDATION_COLOUR, linestyle="--", label="validation", **style)
    axes.set_title("Loss")
    axes.set_ylabel("loss")
    beyond = _leave_out_outliers(axes, [*training, *validation])
    if beyond:
        axes.plot([], [], " ", label=f"{beyond} above what is shown")
    _mark_skipped_steps(axes, x, epochs)
    _mark_changes_of_precision(axes, x, epochs)
    _legend_beside(axes)


def _leave_out_outliers(axes: Any, values: Sequence[float]) -> int:
    """Let a few losses far above all others not flatten these; how many are left out."""
    known = np.asarray([value for value in values if not math.isnan(value)])
    if known.size < _FEW_EPOCHS:
        return 0
    low, typical = float(known.min()), float(np.percentile(known, 98))
    top = typical + 0.5 * (typical - low)
    if known.max() <= top + (top - low):
        return 0
    axes.set_ylim(low - 0.05 * (top - low), top)
    return int(np.count_nonzero(known > top))


def _mark_skipped_steps(axes: Any, x: list[int], epochs: Epochs) -> None:
    skipped = [_number(entry.get("skipped_steps")) for entry in epochs]
    where = [epoch for epoch, count in zip(x, skipped, strict=True) if count > 0]
    if where:
        count = int(sum(number for number in skipped if number > 0))
        label = f"skipped steps: {count}"
        height = [0.03] * len(where)
        axes.plot(
            where,
            height,
            linestyle="none",
            marker="x",
            markersize=6,
            color=_TROUBLE_COLOUR,
            label=label,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )


def _mark_changes_of_precision(axes: Any, x: list[int], epochs: Epochs) -> None:
    known = [(epoch, entry["precision"]) for epoch, entry in zip(x, epochs, strict=True) if entry.get("precision")]
    changes = [(epoch, f"{before} to {after}") for (_, before), (epoch, after) in pairwise(known) if before != after]
    for index, (epoch, text) in enumerate(changes):
        label = "precision changed" if index == 0 else "_"
        axes.axvline(epoch - 0.5, color="black", linestyle=":", linewidth=1.2, label=label)
        if len(changes) <= _MOST_NAMED_CHANGES:
            axes.annotate(
                text,
                (epoch - 0.5, 0.98),
                xycoords=axes.get_xaxis_transform(),
                xytext=(-3, 0),
                textcoords="offset points",
                rotation=90,
                ha="right",
                va="top",
                fontsize="small",
            )


def _draw_dice(axes: Any, x: list[int], epochs: Epochs, style: Mapping[str, Any]) -> None:
    axes.set_title("Dice on patches of the held-back cases")
    axes.set_ylabel("Dice (0 to 1)")
    axes.set_ylim(-0.02, 1.02)
    names = list(dict.fromkeys(name for entry in epochs for name in entry.get("dice") or {}))
    for index, name in enumerate(names):
        values = [_number((entry.get("dice") or {}).get(name)) for entry in epochs]
        shown = name if index < _MOST_NAMED_LABELS else f"_{name}"  # matplotlib names no line that begins with _
        axes.plot(x, values, color=label_colour(index), label=shown, **style)
    if len(names) > _MOST_NAMED_LABELS:
        axes.plot([], [], " ", label=f"and {len(names) - _MOST_NAMED_LABELS} more")
    mean = _values(epochs, "mean_dice")
    if _any(mean):
        thick = {**style, "linewidth": style["linewidth"] + 0.8}
        axes.plot(x, mean, color="black", label="mean of all labels", **thick)
        _legend_beside(axes)
    else:
        axes.text(0.5, 0.5, "no case is held back", ha="center", va="center", transform=axes.transAxes)


def _draw_rate(axes: Any, x: list[int], epochs: Epochs, style: Mapping[str, Any]) -> None:
    axes.plot(x, _values(epochs, "learning_rate"), color=_TRAINING_COLOUR, **style)
    axes.set_title("Learning rate")
    axes.set_ylabel("learning rate")
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)


def _draw_times(axes: Any, x: list[int], epochs: Epochs, style: Mapping[str, Any]) -> None:
    axes.plot(x, _values(epochs, "seconds"), color=_TRAINING_COLOUR, label="epoch", **style)
    axes.set_title("Epoch time")
    axes.set_ylabel("time (s)")
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    waiting = [100 * share for share in _values(epochs, "waiting_share")]
    if not any(share > 0 for share in waiting):
        return
    axes.set_title("Epoch time, and the share of it that steps waited for data")
    shares = axes.twinx()
    shares.fill_between(x, waiting, color=_VALIDATION_COLOUR, alpha=0.25, linewidth=0)
    shares.plot(x, waiting, color=_VALIDATION_COLOUR, linestyle="--", **style)
    shares.set_ylabel("waiting (%)", color=_VALIDATION_COLOUR)
    # At least to 10 %, so that a small share looks small.
    shares.set_ylim(0, max(10.0, 1.1 * max(share for share in waiting if not math.isnan(share))))
    shares.spines[["top"]].set_visible(False)
    axes.yaxis.label.set_color(_TRAINING_COLOUR)


def _legend_beside(axes: Any) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _summary(epochs: Epochs) -> str:
    count = f"{len(epochs)} epoch{'' if len(epochs) == 1 else 's'}"
    mean = _values(epochs, "mean_dice")
    if not _any(mean):
        return f"Training: {count}"
    best = max((index for index in range(len(mean)) if not math.isnan(mean[index])), key=lambda index: mean[index])
    return f"Training: {count}, best mean Dice on patches {mean[best]:.3f} in epoch {epochs[best]['epoch']}"


def _values(epochs: Epochs, key: str) -> list[float]:
    return [_number(entry.get(key)) for entry in epochs]


def _number(value: float | None) -> float:
    """The number itself, NaN where there is none that can be drawn."""
    return float(value) if value is not None and math.isfinite(value) else math.nan


def _any(values: Sequence[float]) -> bool:
    return any(not math.isnan(value) for value in values)
