"""Which patches, or channels of patches, are worked on together, and how their numbers get to the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.int64]


def parts(numbers: Numbers, device: torch.device) -> list[Numbers]:
    """All at once, but one by one on a CPU.

    There several at once are no faster, and a sum over one would be rounded otherwise beside others.
    """
    if device.type == "cpu":
        return list(numbers[:, None])
    return [numbers] if numbers.size else []


def sent(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array on a device; a GPU is not waited for."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def chosen(arrays: Tensor, part: Numbers) -> Tensor:
    """Some of the first axis: a view where it is one, a copy of several."""
    return arrays[part[0] : part[0] + 1] if part.size == 1 else arrays[sent(part, arrays.device)]


def put(arrays: Tensor, part: Numbers, values: Tensor) -> None:
    """Write what is to be at some of the first axis."""
    if part.size == 1:
        arrays[part[0] : part[0] + 1] = values
    else:
        arrays[sent(part, arrays.device)] = values
