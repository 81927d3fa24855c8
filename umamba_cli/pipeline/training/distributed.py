"""One training on several devices: every process takes its part of each batch, and all make the same step.

The processes are started by `torchrun` (or `umamba train --gpus N`), which tells each of them its number in environment
variables. Source: https://docs.pytorch.org/docs/stable/elastic/run.html.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from umamba_cli.pipeline.errors import InputError, WorkError

_LONGEST_WAIT = timedelta(hours=6)
"""For others: the first process may predict the whole previous stage of a cascade meanwhile."""


@dataclass(frozen=True)
class World:
    """The processes that train together; this one alone unless `torchrun` started it."""

    rank: int = 0
    """This process's number."""

    size: int = 1
    """Number of processes."""

    local_rank: int = 0
    """This process's number on its machine, which is its GPU's."""

    @property
    def is_first(self) -> bool:
        """True for the one process that writes."""
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """Number and size, see `BatchMaker`."""
        return self.rank, self.size

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, which gradients flow through: each gets those of all others' losses."""
        if self.size == 1:
            return tensor
        total: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
        return total

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is up in any process; all get the same answer."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=device)))

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network itself, or, with several processes, one whose gradients are those of all of them."""
        if self.size == 1:
            return network
        # The head of the lowest resolution has no part in the loss, so that its gradients never come.
        return nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)


class _Sum(torch.autograd.Function):
    """The sum over all processes; an input's gradient is the sum of what all of them have for that sum."""

    @staticmethod
    def forward(_context: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(None, gradients[0])


def is_one_of_several() -> bool:
    """True in a process that `torchrun`, or a scheduler that says the same, has started with others."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys() and _number("WORLD_SIZE") > 1


def this_world() -> World:
    """The place of this process among those that train together, by the environment; nothing is connected yet.

    Raises:
        InputError: the environment's variables are no numbers.
    """
    if not is_one_of_several():
        return World()
    return World(_number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_RANK", default=0))


@contextmanager
def connected(world: World, device: torch.device) -> Iterator[None]:
    """Connect the processes while the block runs: by NCCL between GPUs, by Gloo between CPUs.

    In a block where they are connected already they stay so; they can do it once only.

    Raises:
        WorkError: they do not find each other.
    """
    if world.size == 1 or torch.distributed.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_LONGEST_WAIT)
    except (RuntimeError, ValueError) as error:
        raise WorkError(
            f"process {world.rank} of {world.size} does not reach the others: {error}",
            next_step="see that all processes were started with the same MASTER_ADDR and MASTER_PORT",
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Grad strides do not match")  # of the heads' 1x1x1 kernels: as good
            yield
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        raise WorkError(
            "another process of this training has ended, or is not to be reached any more",
            next_step="see what it said, then run the same command again to go on",
        ) from error
    finally:
        torch.distributed.destroy_process_group()


def require_enough_patches(batch_size: int, world: World) -> None:
    """Every process must have a patch of each batch.

    Raises:
        InputError: there are more processes than patches.
    """
    if batch_size < world.size:
        raise InputError(
            f"a batch of {batch_size} patches cannot be spread over {world.size} processes",
            next_step=f"take at most {batch_size} processes, or --batch-size {world.size}",
        )


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdigit():
        raise InputError(f"the environment's {name} is {text!r}, no number", next_step="start with torchrun")
    return int(text)
