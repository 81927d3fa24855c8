"""One step of a training: what the loop repeats, and what benchmarks time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from umamba_cli.pipeline.devices import Compute
from umamba_cli.pipeline.training.loader import Batch
from umamba_cli.pipeline.training.losses import deep_supervision_loss


@dataclass(frozen=True)
class TrainingStep:
    """Forward pass, loss, backward pass, gradient clipping, optimizer step."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    """Scales the loss in float16; switched off in any other precision."""

    compute: Compute
    gradient_clip: float
    """The largest norm that the gradient may have."""

    batch_dice: bool
    """See `soft_dice`."""

    def __call__(self, batch: Batch) -> tuple[Tensor, bool]:
        """Learn from a batch that is on the network's device.

        Returns:
            The loss before the step, without a graph, and whether the step was made: a gradient that is not finite
            leaves the network as it was.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch)[0]
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_clip)
        finite = bool(torch.isfinite(norm))
        if finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach(), finite

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and the logits (B, classes, ...) at full resolution."""
        with self.compute.autocast():
            outputs = self.network(batch.images)
        return deep_supervision_loss(outputs, batch.labels, batch_dice=self.batch_dice), outputs[0]
