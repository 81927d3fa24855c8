"""Memory that is short for a moment costs a step's time; memory that stays short ends the training with a message."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from small_trainings import SETTINGS, small_loop

from umamba_cli.pipeline.errors import WorkError
from umamba_cli.pipeline.runs.checkpoint import read_checkpoint
from umamba_cli.pipeline.training.losses import SegmentationLoss


class ShortOfMemory:
    """A loss for which memory runs out at some of its calls."""

    def __init__(self, *calls: int) -> None:
        self.calls = calls
        self.called = 0

    def __call__(self, outputs: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        self.called += 1
        if self.called in self.calls:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return SegmentationLoss(batch_dice=False)(outputs, labels)


def test_for_a_moment(tmp_path: Path) -> None:
    undisturbed = small_loop(tmp_path / "undisturbed").train()
    log = small_loop(tmp_path / "short", loss=ShortOfMemory(7)).train()
    assert [entry["train_loss"] for entry in log] == [entry["train_loss"] for entry in undisturbed]
    assert [entry["skipped_steps"] for entry in log] == [0, 0, 0]


def test_for_good(tmp_path: Path) -> None:
    loop = small_loop(tmp_path, loss=ShortOfMemory(SETTINGS.iterations + 2, SETTINGS.iterations + 3))
    with pytest.raises(WorkError, match="memory ran out in step 2 of epoch 2") as error:
        loop.train()
    assert "--checkpointing" in error.value.next_step
    assert read_checkpoint(loop.run.checkpoint("latest")).epoch == 1
