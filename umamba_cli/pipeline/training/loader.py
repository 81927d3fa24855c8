"""Batches of patches, made ahead of the network in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from umamba_cli.pipeline.errors import UmambaError, WorkError
from umamba_cli.pipeline.resources import begin_worker, usable_cores, worker_context
from umamba_cli.pipeline.training.patches import Patch, PatchSampler, Purpose

MAX_WORKERS = 12
PREFETCH = 3


@dataclass(frozen=True)
class Batch:
    """Patches of several cases."""

    images: Tensor
    """float32 (B, channels, [z,] y, x)."""

    labels: Tensor
    """int64 (B, [z,] y, x); what lay outside an image is background."""

    def to(self, device: torch.device, memory_format: torch.memory_format) -> Batch:
        """The batch on a device."""
        images = self.images.to(device, non_blocking=True, memory_format=memory_format)
        return Batch(images, self.labels.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """For the DataLoader, which copies to a GPU from pinned memory."""
        return Batch(self.images.pin_memory(), self.labels.pin_memory())


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
        self, training: PatchSampler, validation: PatchSampler | None, augmentation: Augment, batch_size: int
    ) -> None:
        self._samplers = {"training": training, "validation": validation}
        self._augmentation = augmentation
        self._batch_size = batch_size

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
        patches = []
        for index in range(position.number * self._batch_size, (position.number + 1) * self._batch_size):
            patch, generator = sampler.draw(index)
            patches.append(self._augmentation(patch, generator) if position.purpose == "training" else patch)
        labels = np.stack([patch.labels for patch in patches])
        return Batch(
            torch.from_numpy(np.stack([patch.image for patch in patches])),
            torch.from_numpy(np.maximum(labels, 0).astype(np.int64)),
        )


def default_loader_workers() -> int:
    """Workers that keep a network fed: the usable cores, but no more than a dozen."""
    return min(usable_cores(), MAX_WORKERS)


def batches(maker: BatchMaker, positions: Iterable[BatchPosition], *, workers: int, pin: bool) -> Iterator[Batch]:
    """The batches of these positions, in their order.

    Args:
        maker: makes them.
        positions: which ones.
        workers: processes that make them ahead; with 0 they are made here when asked for.
        pin: put them into pinned memory, for a GPU.

    Raises:
        WorkError: a worker died, or a preprocessed file is damaged.
    """
    loader: DataLoader[Batch | UmambaError] = DataLoader(
        maker,
        batch_size=None,
        sampler=positions,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        multiprocessing_context=worker_context() if workers else None,
        worker_init_fn=_begin_worker,
        pin_memory=pin,
    )
    iterator = iter(loader)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise WorkError(
                f"a worker process that makes patches died: {error}",
                next_step="run the same command again, with fewer --workers if memory ran out",
            ) from error
        if isinstance(batch, UmambaError):
            raise batch
        yield batch


def _begin_worker(_number: int) -> None:
    begin_worker()
