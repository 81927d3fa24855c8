"""What every backend of the scan takes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ScanInputs(NamedTuple):
    """The eight tensors of `selective_scan`, with its shapes, all of one floating type; None for what is left out."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    delta_bias: Tensor | None = None


Gradients = tuple[Tensor | None, ...]
"""One for each input, in their order; None where the input is None."""
