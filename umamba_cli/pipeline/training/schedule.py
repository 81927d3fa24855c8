"""The learning rate over the epochs."""

from __future__ import annotations

DECAY_EXPONENT = 0.9


def polynomial_decay(initial: float, epoch: int, epochs: int) -> float:
    """Initial * (1 - epoch / epochs) ** 0.9, for epochs counted from 0.

    Source: Chen et al., "DeepLab", 2017, section 4.1.2, as nnU-Net uses it.
    """
    return float(initial * (1 - epoch / epochs) ** DECAY_EXPONENT)
