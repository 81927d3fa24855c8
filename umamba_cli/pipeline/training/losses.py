"""Dice plus cross-entropy, summed over the resolutions of deep supervision.

Source: nnU-Net (Isensee et al. 2021, online methods, "loss function", and its loss for regions and an ignore label);
Milletari et al., "V-Net", 2016 (soft Dice).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from umamba_cli.pipeline.data.dataset import DatasetDescription

SMOOTH = 1e-5

Loss = Callable[[Sequence[Tensor], Tensor], Tensor]
"""Logits of all heads (B, outputs, ...), full resolution first, and labels, integers (B, ...), to a scalar."""


def identity(total: Tensor) -> Tensor:
    """A sum over all processes where there is one process."""
    return total


@dataclass(frozen=True)
class SegmentationLoss:
    """Cross-entropy minus the mean soft Dice of the foreground, in float32, summed over the resolutions.

    Labels that exclude one another are predicted by a softmax whose first output is the background, which has no Dice.
    Regions, which overlap, are predicted by a sigmoid each; cross-entropy is then binary and the mean over the regions.
    """

    batch_dice: bool
    """True: one Dice a class over the whole batch; False: one for each image, averaged."""

    regions: tuple[tuple[int, ...], ...] = ()
    """The labels of each region, one output a region; none: an output for each label."""

    ignore_label: int | None = None
    """Voxels of this label, which is no class's, are left out; cross-entropy is the mean over the others, 0 without."""

    sum_over_ranks: Callable[[Tensor], Tensor] = identity
    """A differentiable sum over all processes: with it each of them gets the loss of the batch of all of them."""

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The weighted sum of the loss at every resolution.

        Args:
            outputs: logits (B, outputs, ...), full resolution first.
            labels: integers (B, ...) at full resolution; lower ones take the nearest label.
        """
        total = outputs[0].new_zeros((), dtype=torch.float32)
        for logits, weight in zip(outputs, head_weights(len(outputs)), strict=True):
            if weight:
                total = total + weight * self.at_one_resolution(logits, _at_size(labels, logits.shape[2:]))
        return total

    def at_one_resolution(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy minus Dice of logits (B, outputs, ...) and labels (B, ...) of the same size."""
        logits = logits.float()
        if self.regions:
            target = self._in_regions(labels, logits)
            dice = self._dice(logits.sigmoid(), target, labels)
            return self._binary_cross_entropy(logits, target, labels) - dice
        log_probabilities = F.log_softmax(logits, dim=1)
        dice = self._dice(log_probabilities.exp()[:, 1:], _one_hot_foreground(labels, log_probabilities), labels)
        return self._cross_entropy(log_probabilities, labels) - dice

    @torch.no_grad()
    def overlap(self, logits: Tensor, labels: Tensor) -> Tensor:
        """True positives, false positives, false negatives of what is predicted: integers (3, foreground outputs).

        Args:
            logits: (B, outputs, ...).
            labels: integers (B, ...).
        """
        if not self.regions:
            classes = logits.shape[1]
            # Ignored voxels, whose label is above all classes, are counted behind the pairs of classes.
            pairs = torch.bincount((labels * classes + logits.argmax(1)).flatten(), minlength=classes**2)
            pairs = pairs[: classes**2].view(classes, classes)
            both = pairs.diagonal()
            return torch.stack((both, pairs.sum(0) - both, pairs.sum(1) - both))[:, 1:]
        predicted = logits > 0  # the sigmoid is above 1/2
        target = self._in_regions(labels, predicted)
        if self.ignore_label is not None:
            predicted = predicted & self._counted(labels)
        axes = [0, *range(2, logits.ndim)]
        both = (predicted & target).sum(axes)
        return torch.stack((both, predicted.sum(axes) - both, target.sum(axes) - both))

    def _cross_entropy(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        if self.ignore_label is None:
            return self._mean_of_all(F.nll_loss(log_probabilities, labels), labels.numel())
        total = F.nll_loss(log_probabilities, labels, ignore_index=self.ignore_label, reduction="sum")
        voxels = (labels != self.ignore_label).sum()
        return self._mean_of_all(total / voxels.clamp_min(1), voxels)

    def _binary_cross_entropy(self, logits: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        """The mean over voxels and regions; nnU-Net sums over the regions where there is an ignore label."""
        if self.ignore_label is None:
            return self._mean_of_all(F.binary_cross_entropy_with_logits(logits, target), labels.numel())
        counted = self._counted(labels)
        weight = counted.to(logits.dtype)
        total = F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="sum")
        voxels = counted.sum()
        return self._mean_of_all(total / (voxels.clamp_min(1) * len(self.regions)), voxels)

    def _dice(self, predicted: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        """The mean soft Dice; probabilities and target, 0 or 1, are (B, foreground outputs, ...).

        It is 1 where all is right. A class in neither of them counts as 1, thanks to the smoothing.
        """
        axes = [0, *range(2, predicted.ndim)] if self.batch_dice else list(range(2, predicted.ndim))
        # No class is the target of an ignored voxel, so that only what is predicted there is to be taken away.
        seen = predicted if self.ignore_label is None else predicted * self._counted(labels)
        total = seen.sum(axes) + target.sum(axes)
        both = (predicted * target).sum(axes)
        if self.batch_dice:
            both, total = self.sum_over_ranks(both), self.sum_over_ranks(total)
        dice = ((2 * both + SMOOTH) / (total + SMOOTH)).mean()
        return dice if self.batch_dice else self._mean_of_all(dice, len(predicted))

    def _in_regions(self, labels: Tensor, like: Tensor) -> Tensor:
        """Which regions hold each voxel's label: (B, regions, ...) in the type and memory format of `like`."""
        target = torch.empty_like(like, requires_grad=False)
        for channel, values in zip(target.unbind(1), self.regions, strict=True):
            channel.copy_(functools.reduce(torch.logical_or, (labels == value for value in values)))
        return target

    def _counted(self, labels: Tensor) -> Tensor:
        """Where the label is not to be ignored: (B, 1, ...)."""
        assert self.ignore_label is not None
        return torch.ne(labels, self.ignore_label).unsqueeze(1)

    def _mean_of_all(self, mean: Tensor, count: int | Tensor) -> Tensor:
        """The mean over the elements of all processes, from the mean over this one's and their number."""
        if self.sum_over_ranks is identity:
            return mean
        number = mean.new_full((), count) if isinstance(count, int) else count.to(mean.dtype)
        total, numbers = self.sum_over_ranks(torch.stack((mean * number, number))).unbind()
        return total / numbers.clamp_min(1)


def loss_for(
    description: DatasetDescription,
    *,
    batch_dice: bool,
    sum_over_ranks: Callable[[Tensor], Tensor] = identity,
) -> SegmentationLoss:
    """The loss that suits a dataset's labels; arguments as the fields of `SegmentationLoss`."""
    regions = tuple(description.regions.values()) if description.has_regions else ()
    return SegmentationLoss(batch_dice, regions, description.ignore_label, sum_over_ranks)


def head_weights(heads: int) -> list[float]:
    """1, 1/2, 1/4, ... scaled to a sum of 1; the lowest resolution gets 0 where there are several, as in nnU-Net."""
    weights = [0.5**index for index in range(heads)]
    if heads > 1:
        weights[-1] = 0.0
    return [weight / sum(weights) for weight in weights]


def _one_hot_foreground(labels: Tensor, like: Tensor) -> Tensor:
    """1 where a voxel has the label of a foreground class: (B, classes - 1, ...)."""
    foreground = torch.arange(1, like.shape[1], device=labels.device).view(-1, *[1] * (labels.ndim - 1))
    return (labels.unsqueeze(1) == foreground).to(like.dtype)


def _at_size(labels: Tensor, size: torch.Size) -> Tensor:
    if labels.shape[1:] == size:
        return labels
    # Interpolation knows floating types only; float32 holds every label exactly.
    return F.interpolate(labels[:, None].float(), size=tuple(size), mode="nearest-exact")[:, 0].long()
