"""Keeping less for the backward pass: what happens inside a part of a network is computed once more for the gradients.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def is_worthwhile(network: nn.Module) -> bool:
    """Whether a network that was set to `checkpointing` is about to be trained."""
    return bool(getattr(network, "checkpointing", False)) and network.training and torch.is_grad_enabled()


def run_part(part: nn.Module, *maps: Tensor, checkpointing: bool) -> Tensor:
    """Apply a part of the network; with checkpointing keep its inputs alone for the backward pass."""
    if not checkpointing or isinstance(part, nn.Identity):
        y: Tensor = part(*maps)
        return y
    again: Tensor = checkpoint(part, *maps, use_reentrant=False, preserve_rng_state=False)  # nothing is random
    return again
