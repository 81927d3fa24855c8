"""The optimizer, and its learning rate over the epochs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from umamba_cli.pipeline.training.settings import TrainingSettings

DECAY_EXPONENT = 0.9


def new_optimizer(parameters: Iterable[Tensor], settings: TrainingSettings) -> torch.optim.Optimizer:
    """Stochastic gradient descent with Nesterov momentum, as nnU-Net has it, or AdamW."""
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=True,
    )


def learning_rate(settings: TrainingSettings, epoch: int) -> float:
    """The rate of an epoch, counted from 0: a linear rise over the warm-up, then polynomial decay over the rest."""
    if epoch < settings.warmup:
        return settings.learning_rate * (epoch + 1) / (settings.warmup + 1)
    return polynomial_decay(settings.learning_rate, epoch - settings.warmup, settings.epochs - settings.warmup)


def polynomial_decay(initial: float, epoch: int, epochs: int) -> float:
    """Initial * (1 - epoch / epochs) ** 0.9, for epochs counted from 0.

    Source: Chen et al., "DeepLab", 2017, section 4.1.2, as nnU-Net uses it.
    """
    return float(initial * (1 - epoch / epochs) ** DECAY_EXPONENT)
