"""Steps without a finite loss or gradient: they are skipped and counted, and too many of them end in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_trainings import SETTINGS, small_loop
from torch import Tensor

from umamba_cli.pipeline.devices import Compute
from umamba_cli.pipeline.errors import Stopped, WorkError
from umamba_cli.pipeline.progress import Progress
from umamba_cli.pipeline.training.loop import TrainingLoop
from umamba_cli.pipeline.training.losses import SegmentationLoss
from umamba_cli.pipeline.training.patches import Patch
from umamba_cli.pipeline.training.position import MOST_BAD_STEPS

BF16 = Compute(torch.device("cpu"), "bf16", "asked for")


@dataclass
class Spoiled:
    """A loss that is not a number at some of its calls, counted from 1."""

    at: Callable[[int], bool]
    calls: int = 0

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
        self.calls += 1
        loss = SegmentationLoss(batch_dice=False)(outputs, labels)
        return loss * math.nan if self.at(self.calls) else loss


def is_finite(loop: TrainingLoop) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in loop.network.parameters())


def test_a_nan_in_step_7_costs_that_step_alone(tmp_path: Path) -> None:
    told: list[Progress] = []
    loop = small_loop(tmp_path, loss=Spoiled(lambda call: call == 7), on_progress=told.append)
    log = loop.train()
    assert [entry["skipped_steps"] for entry in log] == [0, 1, 0]
    assert all(math.isfinite(entry["train_loss"]) for entry in log)
    assert is_finite(loop)
    (warning,) = [report.warning for report in told if report.warning]
    assert "step 1 of epoch 2" in warning


def test_spoiled_images_cost_their_steps_alone(tmp_path: Path) -> None:
    def spoil_some(patch: Patch, generator: np.random.Generator) -> Patch:
        return Patch(patch.image * np.float32("nan"), patch.labels) if generator.random() < 0.2 else patch

    loop = small_loop(tmp_path, augment=spoil_some)
    skipped = sum(entry["skipped_steps"] for entry in loop.train())
    assert 0 < skipped < SETTINGS.epochs * SETTINGS.iterations
    assert is_finite(loop)


def test_too_many_in_a_row_go_back_to_the_last_checkpoint_and_on_in_float32(tmp_path: Path) -> None:
    told: list[Progress] = []
    settings = replace(SETTINGS, epochs=8)
    # The third epoch fails from its third step on, until the precision is another.
    spoiled = Spoiled(lambda call: 14 < call <= 14 + MOST_BAD_STEPS)
    loop = small_loop(tmp_path, settings=settings, loss=spoiled, on_progress=told.append, compute=BF16)
    log = loop.train()
    assert [entry["epoch"] for entry in log] == list(range(1, 9))
    assert log[1]["precision"] == "bf16"
    assert log[-1]["precision"] == "fp32"
    assert is_finite(loop)
    warnings = [report.warning for report in told if "float32" in report.warning]
    assert len(warnings) == 1
    assert "back to epoch" in warnings[0]

    # The same in float32 from where it went back to, without a failure.
    bad = [entry["skipped_steps"] for entry in log]
    assert sum(bad) < MOST_BAD_STEPS  # the epochs that were given up are not counted


def test_one_that_fell_back_goes_on_in_float32(tmp_path: Path) -> None:
    def stop_in_the_end(report: Progress) -> None:
        if report.warning and "float32" in report.warning:
            loop._stop.name = "SIGTERM"

    settings = replace(SETTINGS, epochs=5)
    spoiled = Spoiled(lambda call: call <= MOST_BAD_STEPS)
    loop = small_loop(tmp_path, settings=settings, loss=spoiled, compute=BF16, on_progress=stop_in_the_end)
    with pytest.raises(Stopped):
        loop.train()
    log = small_loop(tmp_path, settings=settings, compute=BF16).train()
    assert log[-1]["precision"] == "fp32"


def test_in_float32_it_says_what_to_do(tmp_path: Path) -> None:
    loop = small_loop(tmp_path, settings=replace(SETTINGS, epochs=9), loss=Spoiled(lambda _: True))
    with pytest.raises(WorkError, match="without a finite loss") as raised:
        loop.train()
    assert "--lr" in raised.value.next_step
    assert is_finite(loop)


def test_every_other_step_is_too_many_too(tmp_path: Path) -> None:
    loop = small_loop(tmp_path, settings=replace(SETTINGS, epochs=20), loss=Spoiled(lambda call: call % 2 == 0))
    with pytest.raises(WorkError):
        loop.train()


def test_float16_finds_its_scale(tmp_path: Path) -> None:
    """The first steps overflow, because the scale begins at 65536; that is no failure."""
    loop = small_loop(tmp_path, compute=Compute(torch.device("cpu"), "fp16", "asked for"))
    log = loop.train()
    assert {entry["precision"] for entry in log} == {"fp16"}
    assert math.isfinite(log[-1]["train_loss"])
    assert is_finite(loop)
