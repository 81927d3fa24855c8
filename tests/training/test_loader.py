"""Batches from worker processes: in order, and whatever happens to the workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from small_trainings import SETTINGS, noisy, one_case, sampler

from umamba_cli.pipeline.errors import WorkError
from umamba_cli.pipeline.training.loader import Augment, BatchMaker, BatchPosition, batches
from umamba_cli.pipeline.training.patches import Patch

POSITIONS = [BatchPosition("training", number) for number in range(8)]


def maker(folder: Path, augment: Augment | None, *, batch_size: int = 2, share: tuple[int, int] = (0, 1)) -> BatchMaker:
    store = one_case(folder / "store")
    return BatchMaker(sampler(store), sampler(store, purpose="validation"), augment, batch_size, share=share)


@dataclass(frozen=True)
class Deadly:
    """An augmentation that ends its process at first, as often as there are files to take away."""

    lives: Path
    how: int
    """A signal, or an exit code below 0."""

    def __call__(self, patch: Patch, generator: np.random.Generator) -> Patch:
        for life in self.lives.iterdir():
            life.unlink(missing_ok=True)
            if self.how < 0:
                os._exit(-self.how)
            os.kill(os.getpid(), self.how)
        return noisy(patch, generator)


@pytest.fixture
def lives(tmp_path: Path) -> Callable[[int], Path]:
    def make(count: int) -> Path:
        (tmp_path / "lives").mkdir()
        for number in range(count):
            (tmp_path / "lives" / str(number)).touch()
        return tmp_path / "lives"

    return make


@pytest.mark.parametrize(("how", "cause"), [(signal.SIGKILL, "memory ran out"), (-3, "exit code 3")])
def test_a_worker_that_dies_is_reported_and_replaced(
    how: int, cause: str, tmp_path: Path, lives: Callable[[int], Path]
) -> None:
    expected = list(batches(maker(tmp_path / "a", noisy), POSITIONS, workers=0, pin=False))
    warnings: list[str] = []
    deadly = maker(tmp_path / "b", Deadly(lives(1), how))
    found = list(batches(deadly, POSITIONS, workers=2, pin=False, on_warning=warnings.append))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
    (warning,) = warnings
    assert "died" in warning
    assert cause in warning


def test_workers_that_die_again_and_again_end_it(tmp_path: Path, lives: Callable[[int], Path]) -> None:
    warnings: list[str] = []
    deadly = maker(tmp_path, Deadly(lives(99), -3))
    with pytest.raises(WorkError, match="died 4 times one after the other: it ended with exit code 3"):
        list(batches(deadly, POSITIONS, workers=1, pin=False, on_warning=warnings.append))
    assert len(warnings) == 3


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_share_each_batch(processes: int, tmp_path: Path) -> None:
    whole = next(batches(maker(tmp_path / "whole", noisy, batch_size=5), POSITIONS, workers=0, pin=False))
    parts = [
        next(
            batches(
                maker(tmp_path / str(rank), noisy, batch_size=5, share=(rank, processes)),
                POSITIONS,
                workers=0,
                pin=False,
            )
        )
        for rank in range(processes)
    ]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert {len(part.images) for part in parts} <= {1, 2, 3}


def test_what_the_device_shall_augment_comes_with_a_seed_each(tmp_path: Path) -> None:
    unaugmented = maker(tmp_path, None)
    assert unaugmented.leaves_augmentation
    first, second = islice(batches(unaugmented, POSITIONS, workers=0, pin=False), 2)
    assert len(first.seeds) == SETTINGS.batch_size
    assert len({*first.seeds, *second.seeds}) == 2 * SETTINGS.batch_size
    again = next(batches(unaugmented, POSITIONS[1:], workers=0, pin=False))
    assert again.seeds == second.seeds
    validation = [BatchPosition("validation", 0)]
    assert not next(batches(unaugmented, validation, workers=0, pin=False)).seeds


def test_labels_outside_stay_marked_until_they_are_augmented(tmp_path: Path) -> None:
    store = one_case(tmp_path / "store")
    wide = replace(sampler(store), read_size=(12, 30, 30))
    kept = next(batches(BatchMaker(wide, None, None, 2), POSITIONS, workers=0, pin=False))
    assert int(kept.labels.min()) == -1

    def unchanged(patch: Patch, _: np.random.Generator) -> Patch:
        return patch

    done = next(batches(BatchMaker(wide, None, unchanged, 2), POSITIONS, workers=0, pin=False))
    assert int(done.labels.min()) == 0
