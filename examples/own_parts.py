"""Train with a network, a loss and transforms of your own; everything else is umamba's.

    python examples/own_parts.py WORKSPACE [EPOCHS [ITERATIONS]]

The run lies in WORKSPACE/runs/own__3d_fullres/fold_0. It goes on after a stop as any other.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from umamba_cli.pipeline.data.workspace import open_workspace
from umamba_cli.pipeline.networks.registry import NetworkPlan
from umamba_cli.pipeline.planning.plans import read_plans
from umamba_cli.pipeline.training.patches import Patch
from umamba_cli.pipeline.training.settings import SettingsChosen
from umamba_cli.pipeline.workflows.assemble import TrainingParts
from umamba_cli.pipeline.workflows.train import TrainingJob, train_fold


class SmallNetwork(nn.Module):
    """Three convolutions: in training mode it answers with a list of logits, otherwise with the logits."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(plan.input_channels, 8, 3, padding=1),
            nn.LeakyReLU(),
            nn.Dropout3d(0.1),
            nn.Conv3d(8, 8, 3, padding=1),
            nn.LeakyReLU(),
            nn.Conv3d(8, plan.outputs, 1),
        )

    def forward(self, image: Tensor) -> list[Tensor] | Tensor:
        """Image (B, channels, z, y, x) to logits (B, outputs, z, y, x)."""
        logits: Tensor = self.body(image)
        return [logits] if self.training else logits


def cross_entropy(outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Of the full resolution, with classes weighed so that the background does not outweigh all."""
    weights = torch.ones(outputs[0].shape[1], device=labels.device)
    weights[0] = 0.1
    return nn.functional.cross_entropy(outputs[0].float(), labels, weights)


class CropAndNoise:
    """The middle of what was read, with noise. All that is random comes from the generator."""

    def __init__(self, size: tuple[int, ...]) -> None:
        self.size = size

    def __call__(self, patch: Patch, generator: np.random.Generator) -> Patch:
        """A patch at least as large as `size` to one of that size."""
        middle = tuple(
            slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(patch.labels.shape, self.size, strict=True)
        )
        image = patch.image[(slice(None), *middle)]
        noise = generator.standard_normal(image.shape, dtype=np.float32) * generator.uniform(0, 0.2)
        return Patch((image + noise).astype(np.float32), patch.labels[middle])


def main(folder: str, epochs: int = 10, iterations: int = 50) -> None:
    """Train fold 0."""
    workspace = open_workspace(Path(folder))
    job = TrainingJob(
        workspace, model="own", chosen=SettingsChosen(epochs=epochs, iterations=iterations, learning_rate=0.05)
    )
    parts = TrainingParts(
        network=SmallNetwork,
        loss=cross_entropy,
        augmentation=CropAndNoise(read_plans(workspace.plans_file).configuration(job.configuration).patch_size),
    )
    result = train_fold(job, parts=parts)
    for line in result.log:
        print(f"epoch {line['epoch']}: loss {line['train_loss']:.3f}, Dice {line['mean_dice']}")
    if result.evaluation:
        print(f"mean Dice {result.evaluation.foreground_mean.dice:.3f}, in {result.run.folder}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
