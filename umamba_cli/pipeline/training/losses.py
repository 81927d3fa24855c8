"""Dice plus cross-entropy, summed over the resolutions of deep supervision.

Source: nnU-Net (Isensee et al. 2021, online methods, "loss function"); Milletari et al., "V-Net", 2016 (soft Dice).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1e-5


def soft_dice(logits: Tensor, labels: Tensor, *, batch_dice: bool) -> Tensor:
    """The mean soft Dice of the foreground classes.

    Args:
        logits: (B, classes, ...), class 0 is the background.
        labels: integers (B, ...).
        batch_dice: True: one Dice a class over the whole batch; False: one for each image, averaged.

    Returns:
        A scalar, 1 where all is right. A class in neither labels nor prediction counts as 1, thanks to the smoothing.
    """
    return _dice_of(logits.softmax(1), labels, batch_dice=batch_dice)


def dice_and_cross_entropy(logits: Tensor, labels: Tensor, *, batch_dice: bool) -> Tensor:
    """Cross-entropy minus soft Dice, in float32; arguments as in `soft_dice`."""
    log_probabilities = F.log_softmax(logits.float(), dim=1)
    dice = _dice_of(log_probabilities.exp(), labels, batch_dice=batch_dice)
    return F.nll_loss(log_probabilities, labels) - dice


def _dice_of(probabilities: Tensor, labels: Tensor, *, batch_dice: bool) -> Tensor:
    """See `soft_dice`; probabilities (B, classes, ...)."""
    axes = [0, *range(2, probabilities.ndim)] if batch_dice else list(range(2, probabilities.ndim))
    foreground = torch.arange(1, probabilities.shape[1], device=labels.device).view(-1, *[1] * (labels.ndim - 1))
    predicted = probabilities[:, 1:]
    target = (labels.unsqueeze(1) == foreground).to(predicted.dtype)
    total = predicted.sum(axes) + target.sum(axes)
    return ((2 * (predicted * target).sum(axes) + SMOOTH) / (total + SMOOTH)).mean()


def head_weights(heads: int) -> list[float]:
    """1, 1/2, 1/4, ... scaled to a sum of 1; the lowest resolution gets 0 where there are several, as in nnU-Net."""
    weights = [0.5**index for index in range(heads)]
    if heads > 1:
        weights[-1] = 0.0
    return [weight / sum(weights) for weight in weights]


def deep_supervision_loss(outputs: Sequence[Tensor], labels: Tensor, *, batch_dice: bool) -> Tensor:
    """The weighted sum of the loss at every resolution.

    Args:
        outputs: logits (B, classes, ...), full resolution first.
        labels: integers (B, ...) at full resolution; lower ones take the nearest label.
        batch_dice: see `soft_dice`.
    """
    total = outputs[0].new_zeros((), dtype=torch.float32)
    for logits, weight in zip(outputs, head_weights(len(outputs)), strict=True):
        if weight:
            fitting = _at_size(labels, logits.shape[2:])
            total = total + weight * dice_and_cross_entropy(logits, fitting, batch_dice=batch_dice)
    return total


def _at_size(labels: Tensor, size: torch.Size) -> Tensor:
    if labels.shape[1:] == size:
        return labels
    # Interpolation knows floating types only; float32 holds every label exactly.
    return F.interpolate(labels[:, None].float(), size=tuple(size), mode="nearest-exact")[:, 0].long()


def hard_overlap(logits: Tensor, labels: Tensor) -> Tensor:
    """True positives, false positives and false negatives of each foreground class: (3, classes - 1), integers."""
    classes = logits.shape[1]
    predicted = logits.argmax(1)
    pairs = torch.bincount((labels * classes + predicted).flatten(), minlength=classes**2).view(classes, classes)
    both = pairs.diagonal()
    return torch.stack((both, pairs.sum(0) - both, pairs.sum(1) - both))[:, 1:]
