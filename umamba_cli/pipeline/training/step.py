"""One step of a training: what the loop repeats, and what benchmarks time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from umamba_cli.pipeline.devices import Compute
from umamba_cli.pipeline.training.loader import Batch
from umamba_cli.pipeline.training.losses import Loss


@dataclass(frozen=True)
class TrainingStep:
    """Forward pass, loss, backward pass, gradient clipping, optimizer step."""

    network: nn.Module
    """Answers with logits at every resolution; wrapped in DistributedDataParallel where there are several processes."""

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    """Scales the loss in float16; switched off in any other precision."""

    compute: Compute
    gradient_clip: float
    """The largest norm that the gradient may have."""

    loss: Loss

    in_any: Callable[[bool], bool] = bool
    """Whether something is so in any of the processes that train together."""

    def __call__(self, batch: Batch) -> tuple[Tensor, bool]:
        """Learn from a batch that is on the network's device.

        Returns:
            The loss before the step, without a graph, and whether the step was made: a loss or a gradient that is not
            finite leaves the network as it was. With several processes all of them see the same.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.forward(batch)[0]
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_clip)
        # All processes have the same gradient; of a loss of the user's own each has its part.
        finite = not self.in_any(not bool(torch.isfinite(norm) & torch.isfinite(loss.detach())))
        if finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach(), finite

    def finds_scale(self, loss: Tensor) -> bool:
        """Whether a step that was not made is how float16 finds the scale of its loss: the loss itself is sound, and
        the scale, which begins at 65536 and is halved each time, is not below 1 yet.
        """
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 1 and not self.in_any(not torch.isfinite(loss))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and the logits (B, outputs, ...) at full resolution."""
        with self.compute.autocast():
            outputs = self.network(batch.images)
        return self.loss(outputs, batch.labels), outputs[0]
