"""What a training tells of an epoch: its line in log.jsonl, the figures of the progress bar, a patch to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umamba_cli.pipeline.data.files import to_plain, write_text
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.training.loader import Batch

EpochLog = dict[str, Any]
"""A line of log.jsonl."""


@dataclass(frozen=True)
class Example:
    """A validation patch, to be shown."""

    image: NDArray[np.float32]
    """(channels, [z,] y, x)."""

    labels: NDArray[np.int64]
    """([z,] y, x)."""

    logits: NDArray[np.float32]
    """(outputs, [z,] y, x)."""


def read_log(run: Run) -> list[EpochLog]:
    """The lines of a run's log.jsonl; none where there is no log yet."""
    if not run.log_file.is_file():
        return []
    return [json.loads(line) for line in run.log_file.read_text(encoding="utf-8").splitlines() if line]


def write_log(run: Run, log: Sequence[EpochLog]) -> None:
    """Write a run's log.jsonl, whole or not at all."""
    write_text(run.log_file, "".join(json.dumps(to_plain(entry)) + "\n" for entry in log))


def example_of(batch: Batch, logits: Tensor) -> Example:
    """The patch of a batch with the most labelled voxels."""
    index = int(torch.count_nonzero(batch.labels.flatten(1), dim=1).argmax())
    return Example(
        batch.images[index].float().cpu().numpy(),
        batch.labels[index].cpu().numpy(),
        logits[index].float().cpu().numpy(),
    )


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
