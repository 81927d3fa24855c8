"""What a training shows of an epoch: the figures of the progress bar, and a patch to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umamba_cli.pipeline.runs.log import EpochLog
from umamba_cli.pipeline.training.loader import Batch

_RECENT_EPOCHS = 5  # by which the time left is estimated


@dataclass(frozen=True)
class Example:
    """A validation patch, to be shown."""

    image: NDArray[np.float32]
    """(channels, [z,] y, x)."""

    labels: NDArray[np.int64]
    """([z,] y, x)."""

    logits: NDArray[np.float32]
    """(outputs, [z,] y, x)."""


def example_of(batch: Batch, logits: Tensor) -> Example:
    """The patch of a batch with the most labelled voxels."""
    index = int(torch.count_nonzero(batch.labels.flatten(1), dim=1).argmax())
    return Example(
        batch.images[index].float().cpu().numpy(),
        batch.labels[index].cpu().numpy(),
        logits[index].float().cpu().numpy(),
    )


def dice_by_name(names: Sequence[str], overlap: Tensor) -> dict[str, float | None]:
    """The Dice of each output from true positives, false positives, false negatives (3, outputs); None for 0 of 0."""
    both, wrong, missed = overlap.tolist()
    return {
        name: 2 * b / (2 * b + w + m) if b + w + m else None
        for name, b, w, m in zip(names, both, wrong, missed, strict=True)
    }


def seconds_left(log: Sequence[EpochLog], epochs: int, since: float) -> float | None:
    """Until all epochs are done, by the last of the log; `since` the last one, in seconds. None where nothing tells."""
    recent = [float(entry["seconds"]) for entry in log[-_RECENT_EPOCHS:] if entry.get("seconds")]
    return (epochs - len(log)) * sum(recent) / len(recent) - since if recent else None


def figures_of(entry: EpochLog) -> dict[str, str]:
    """What a progress bar shows of an epoch: name to text."""
    shown = {}
    if entry["train_loss"] is not None:
        shown["loss"] = f"{entry['train_loss']:.3f}"
    if entry["mean_dice"] is not None:
        shown["Dice"] = f"{entry['mean_dice']:.3f}"
        by_label = (f"{name} {'-' if value is None else f'{value:.2f}'}" for name, value in entry["dice"].items())
        shown["Dice by label"] = ", ".join(by_label)
    shown["rate"] = f"{entry['learning_rate']:.2g}"
    shown["memory"] = f"{entry['memory_bytes'] / 1024**3:.1f} GiB"
    shown["waiting"] = f"{entry['waiting_share']:.0%}"
    if entry["skipped_steps"]:
        shown["skipped steps"] = str(entry["skipped_steps"])
    return shown
