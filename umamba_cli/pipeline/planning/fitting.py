"""The patch and the batch size that a memory budget allows for images of a given spacing and size.

Source: nnU-Net (Isensee et al. 2021, supplementary note 2, on adapting topology, patch size and batch size).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Shape, Spacing, numbers_text
from umamba_cli.pipeline.planning.memory import Network, count_features
from umamba_cli.pipeline.planning.presets import BATCH_AT_REFERENCE, SMALLEST_BATCH, Features, Preset
from umamba_cli.pipeline.planning.topology import Topology, find_topology, initial_patch, shrink


@dataclass(frozen=True)
class Budget:
    """What the network may take, and what it has to give out."""

    preset: Preset
    memory_gb: float
    num_classes: int

    def limit(self, dimensions: int) -> float:
        """Numbers in feature maps that fill the memory, at the reference batch size."""
        return self.preset.reference(dimensions) * (self.memory_gb / self.preset.memory_gb)

    def estimate(self, topology: Topology) -> int:
        """Numbers in the feature maps of one patch."""
        network = Network(
            strides=topology.strides,
            features=Features().per_stage(topology.n_stages, len(topology.patch_size)),
            encoder=self.preset.encoder_layers(topology.n_stages),
            decoder=self.preset.decoder_layers(topology.n_stages),
            residual=self.preset.residual,
            num_classes=self.num_classes,
        )
        return count_features(network, topology.patch_size)

    def fits(self, topology: Topology) -> bool:
        """Whether a batch of the smallest size, of such patches, fills no more than the memory."""
        dimensions = len(topology.patch_size)
        batch = self.preset.fitted_batch(dimensions)
        return self.estimate(topology) * batch <= self.limit(dimensions) * BATCH_AT_REFERENCE[dimensions]


@dataclass(frozen=True)
class Batch:
    """A batch size and what it was chosen from."""

    size: int

    by_memory: int
    """As many patches as the memory holds."""

    by_dataset: int
    """As many as make up the share of the dataset that one batch may see."""


@dataclass(frozen=True)
class Fit:
    """Patch, topology and batch size for images of one spacing and size."""

    spacing_mm: Spacing

    median_shape: tuple[float, ...]
    """Of the images at this spacing."""

    start: Shape
    """The patch before it was shrunk."""

    topology: Topology
    batch: Batch

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.spacing_mm)

    @property
    def patch_voxels(self) -> int:
        """Voxels of the patch."""
        return math.prod(self.topology.patch_size)


def fit_patch(spacing_mm: Spacing, median_shape: tuple[float, ...], dataset_voxels: float, budget: Budget) -> Fit:
    """The largest patch that the budget allows, its topology, and the batch size.

    A large patch shows the network more context, which is worth more than a large batch: the patch starts at the size
    of the images and shrinks (`topology.shrink`) until the smallest batch fits. Only what is left then goes into the
    batch.

    Args:
        spacing_mm: millimetres between voxels, two or three axes.
        median_shape: voxels of a typical image at that spacing.
        dataset_voxels: voxels of all images at that spacing, whatever the number of axes.
        budget: the memory, and the kind of network.

    Raises:
        InputError: no patch fits, or the images are single voxels.
    """
    topology = find_topology(spacing_mm, initial_patch(spacing_mm, median_shape))
    start = topology.patch_size
    if math.prod(start) == 1:
        raise InputError(
            f"a typical image is a single voxel at a spacing of {numbers_text(spacing_mm)} mm",
            next_step="give larger images, or a finer --spacing",
        )
    while not budget.fits(topology):
        topology = shrink(topology, spacing_mm, median_shape)
    estimate = budget.estimate(topology)
    return Fit(spacing_mm, median_shape, start, topology, choose_batch(topology, estimate, dataset_voxels, budget))


def choose_batch(topology: Topology, estimate: int, dataset_voxels: float, budget: Budget) -> Batch:
    """As many patches as the memory holds, but no more than a share of the dataset and no fewer than two.

    A batch that sees much of a small dataset at once invites overfitting; a batch of one makes gradients noisy.
    """
    dimensions = len(topology.patch_size)
    by_memory = round((budget.limit(dimensions) / estimate) * BATCH_AT_REFERENCE[dimensions])
    by_dataset = round(dataset_voxels * budget.preset.most_of_dataset / math.prod(topology.patch_size))
    return Batch(max(min(by_memory, by_dataset), SMALLEST_BATCH), by_memory, by_dataset)


def limit_to_preset(fit: Fit, preset: Preset) -> Fit:
    """The same fit, its patch shrunk further to the preset's limit on voxels, and the batch size that the preset fixes.

    Spacing and normalisation stay as they are, so that a preset with limits works on the same preprocessed images as
    one without.
    """
    topology, most = fit.topology, preset.most_voxels(fit.dimensions)
    while most is not None and math.prod(topology.patch_size) > most:
        topology = shrink(topology, fit.spacing_mm, fit.median_shape)
    batch = replace(fit.batch, size=preset.batch_size or fit.batch.size)
    return replace(fit, topology=topology, batch=batch)
