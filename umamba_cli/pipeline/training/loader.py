"""Batches of patches, made ahead of the network in worker processes.

A batch is decided by its position alone, so that one a worker died over can be made again by another.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from umamba_cli.pipeline.errors import UmambaError, WorkError
from umamba_cli.pipeline.resources import (
    begin_worker,
    out_of_memory_kills,
    prepare_workers,
    usable_cores,
    worker_context,
)
from umamba_cli.pipeline.training.patches import Patch, PatchSampler, Purpose

MAX_WORKERS = 12
PREFETCH = 3
_MOST_DEATHS = 3
"""Times that workers may die without a batch in between."""


@dataclass(frozen=True)
class Batch:
    """Patches of several cases."""

    images: Tensor
    """float32 (B, channels, [z,] y, x)."""

    labels: Tensor
    """int64 (B, [z,] y, x); -1 outside an image and its nonzero mask, where it is still to be augmented."""

    seeds: tuple[int, ...] = ()
    """One for each patch that is still to be augmented, see `augmentation.batched`."""

    def to(self, device: torch.device, memory_format: torch.memory_format) -> Batch:
        """The batch on a device."""
        images = self.images.to(device, non_blocking=True, memory_format=memory_format)
        return replace(self, images=images, labels=self.labels.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """For the DataLoader, which copies to a GPU from pinned memory."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())


Augment = Callable[[Patch, np.random.Generator], Patch]
"""Changes a patch at random, drawing from the generator alone, to the size that the network takes."""


@dataclass(frozen=True)
class BatchPosition:
    """Which batch of a training: the n-th of its purpose."""

    purpose: Purpose
    number: int


class BatchMaker(Dataset["Batch | UmambaError"]):
    """Makes the batch of a position; picklable, so that workers can have it."""

    def __init__(
        self,
        training: PatchSampler,
        validation: PatchSampler | None,
        augment: Augment | None,
        batch_size: int,
        *,
        finish: Callable[[Patch], Patch] | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """What to make batches of.

        Args:
            training: draws the patches to learn from.
            validation: draws those of the held-back cases, where there are any.
            augment: changes a patch for training; None leaves that to the training's device, with a seed each.
            batch_size: patches a step, over all processes.
            finish: what is done to patches that are not augmented.
            share: this process's number and the number of processes; each makes its own part of every batch.
        """
        self._samplers = {"training": training, "validation": validation}
        self._augment, self._finish = augment, finish
        self._batch_size = batch_size
        self._share = share

    @property
    def leaves_augmentation(self) -> bool:
        """True where the patches to learn from come as they were read, with a seed each."""
        return self._augment is None

    @property
    def patches_a_batch(self) -> int:
        """Patches of a batch that this process makes."""
        return len(self._indices(0))

    def __getitem__(self, position: BatchPosition) -> Batch | UmambaError:
        """The batch of a position, augmented where it is for training.

        What is wrong with a case comes as a value: the DataLoader would make a traceback of an exception.
        """
        try:
            return self._batch(position)
        except UmambaError as error:
            return error

    def _batch(self, position: BatchPosition) -> Batch:
        sampler = self._samplers[position.purpose]
        assert sampler is not None
        drawn = [sampler.draw(index) for index in self._indices(position.number)]
        seeds: tuple[int, ...] = ()
        if position.purpose == "training" and self._augment is not None:
            patches = [self._augment(patch, generator) for patch, generator in drawn]
        elif position.purpose == "training":
            patches = [patch for patch, _ in drawn]
            seeds = tuple(int(generator.integers(2**63)) for _, generator in drawn)
        else:
            patches = [self._finish(patch) if self._finish else patch for patch, _ in drawn]
        labels = np.stack([patch.labels for patch in patches]).astype(np.int64)
        return Batch(
            torch.from_numpy(np.stack([patch.image for patch in patches])),
            torch.from_numpy(labels if seeds else np.maximum(labels, 0)),
            seeds,
        )

    def _indices(self, number: int) -> range:
        """The patches of a batch that are this process's, by their position in the training."""
        rank, processes = self._share
        first, size = number * self._batch_size, self._batch_size
        return range(first + rank * size // processes, first + (rank + 1) * size // processes)


def prepare_loader_workers() -> None:
    """Let what worker processes come from import torch and the like now, once for all of them."""
    prepare_workers(None, __name__, "umamba_cli.pipeline.training.augmentation", "blosc2")


def default_loader_workers() -> int:
    """Workers that keep a network fed: the usable cores, but no more than a dozen."""
    return min(usable_cores(), MAX_WORKERS)


def batches(
    maker: BatchMaker,
    positions: Iterable[BatchPosition],
    *,
    workers: int,
    pin: bool,
    on_warning: Callable[[str], None] = lambda text: None,
) -> Iterator[Batch]:
    """The batches of these positions, in their order.

    Where a worker dies, its batches are made again by new workers: half as many, if memory may have been short.

    Args:
        maker: makes them.
        positions: which ones.
        workers: processes that make them ahead; with 0 they are made here when asked for.
        pin: put them into pinned memory, for a GPU.
        on_warning: told of workers that died, with the cause.

    Raises:
        WorkError: workers die again and again, or a preprocessed file is damaged.
    """
    owed: deque[BatchPosition] = deque()
    rest = iter(positions)
    deaths = 0

    def noted(wanted: Iterable[BatchPosition]) -> Iterator[BatchPosition]:
        yield from wanted  # these are owed already
        for position in rest:
            owed.append(position)
            yield position

    while True:
        kills = out_of_memory_kills()
        loading = iter(_loader(maker, noted(tuple(owed)), workers=workers, pin=pin))
        try:
            for batch in loading:
                if isinstance(batch, UmambaError):
                    raise batch
                owed.popleft()
                deaths = 0
                yield batch
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            deaths += 1
            cause, short_of_memory = _cause_of_death(loading, kills)
            if deaths > _MOST_DEATHS:
                raise WorkError(
                    f"the worker processes that make patches died {deaths} times one after the other: {cause}",
                    next_step="run the same command again with fewer --workers, or on a machine with more memory",
                ) from error
            workers = max(1, workers // 2) if short_of_memory else workers
            on_warning(f"a worker process that makes patches died ({cause}); going on with {workers} new")


def _loader(
    maker: BatchMaker, positions: Iterable[BatchPosition], *, workers: int, pin: bool
) -> DataLoader[Batch | UmambaError]:
    return DataLoader(
        maker,
        batch_size=None,
        sampler=positions,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        multiprocessing_context=worker_context() if workers else None,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # it draws a seed; from torch's own one, networks with dropout would notice
        pin_memory=pin,
    )


def _cause_of_death(loading: Any, kills_before: int | None) -> tuple[str, bool]:
    """Why a worker of this loader died, in words, and whether memory may have run out."""
    kills = out_of_memory_kills()
    if kills is not None and kills_before is not None and kills > kills_before:
        return "the system killed it because memory ran out", True
    codes = [worker.exitcode for worker in getattr(loading, "_workers", []) if worker.exitcode]  # torch says no more
    if not codes:
        return "for an unknown reason", False
    if codes[0] > 0:
        return f"it ended with exit code {codes[0]}", False
    name = str(-codes[0])
    with suppress(ValueError):
        name = signal.Signals(-codes[0]).name
    if name == "SIGKILL":
        return "killed by SIGKILL, most often because memory ran out", True
    return f"killed by {name}", False


def _begin_worker(_number: int) -> None:
    begin_worker()
