"""Where a training is, to the step: what a checkpoint holds beside the weights, so that going on changes nothing."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

MOST_BAD_STEPS = 20
"""Of the last 40 steps: so many without a finite loss and gradient, and the training goes back. Steps by which float16
finds the scale of its loss do not count."""


@dataclass
class EpochSoFar:
    """What an epoch that is not over has gathered."""

    iteration: int = 0
    """Steps done."""

    losses: list[float] = field(default_factory=list)
    """Of the steps that were made."""

    skipped: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    """Time that steps waited for their data."""

    @property
    def mean_loss(self) -> float | None:
        """None where no step was made."""
        return math.fsum(self.losses) / len(self.losses) if self.losses else None

    @property
    def waiting_share(self) -> float:
        """Of the time until now, from 0 to 1."""
        return min(1.0, self.waited_s / self.seconds) if self.seconds else 0.0


class BadSteps:
    """Remembers which of the last steps had no finite loss or gradient."""

    def __init__(self, last: list[bool] | None = None) -> None:
        self._last: deque[bool] = deque(last or (), maxlen=2 * MOST_BAD_STEPS)

    def add(self, bad: bool) -> bool:
        """Note a step; True where there are too many bad ones."""
        self._last.append(bad)
        return sum(self._last) >= MOST_BAD_STEPS

    def to_json(self) -> list[bool]:
        """What the constructor takes."""
        return list(self._last)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of torch's generators, for networks that draw from them, such as those with dropout."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Bring torch's generators back; on another kind of device than before, those that it shares."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


@contextmanager
def left_as_it_is(network: nn.Module, devices: Sequence[torch.device]) -> Iterator[None]:
    """A look at held-back cases inside draws no random numbers, and counts in no batch norm's statistics.

    Args:
        network: that looks.
        devices: GPUs, whose generators are kept besides the CPU's.
    """
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    with torch.random.fork_rng(devices):
        yield
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)


def pack_epoch(epoch: EpochSoFar) -> dict[str, Any]:
    """An epoch as JSON."""
    return asdict(epoch)


def unpack_epoch(content: Mapping[str, Any]) -> EpochSoFar:
    """What `pack_epoch` made."""
    return EpochSoFar(**content)
