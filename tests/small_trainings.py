"""Trainings of a second: one case, a network of a few thousand parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from umamba_cli.pipeline.data.store import Store
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.devices import Compute, choose_compute
from umamba_cli.pipeline.networks.registry import NetworkPlan, build_network
from umamba_cli.pipeline.preprocessing.case import sample_class_voxels
from umamba_cli.pipeline.training.loader import Augment, BatchMaker
from umamba_cli.pipeline.training.loop import TrainingLoop
from umamba_cli.pipeline.training.losses import SegmentationLoss
from umamba_cli.pipeline.training.patches import Patch, PatchSampler
from umamba_cli.pipeline.training.settings import TrainingSettings

SHAPE = (8, 24, 24)
SETTINGS = TrainingSettings(
    epochs=3, iterations=6, batch_size=2, validation_iterations=1, learning_rate=0.05, momentum=0.9
)
PLAN = NetworkPlan(
    input_channels=1,
    outputs=3,
    patch_size=SHAPE,
    features_per_stage=(4, 8),
    strides=((1, 1, 1), (2, 2, 2)),
    kernel_sizes=((3, 3, 3),) * 2,
    convolutions_per_stage=(1, 1),
    convolutions_per_stage_decoder=(1,),
    blocks_per_stage=(1, 1),
    blocks_per_stage_decoder=(1,),
)


def unchanged(patch: Patch, _: np.random.Generator) -> Patch:
    """No augmentation."""
    return patch


def noisy(patch: Patch, generator: np.random.Generator) -> Patch:
    """An augmentation that shows whether randomness repeats itself."""
    return Patch(patch.image + generator.standard_normal(patch.image.shape).astype(np.float32) * 0.1, patch.labels)


def one_case(folder: Path) -> Store:
    """A case `case`: two labels in noise that are brighter and darker than the background."""
    generator = np.random.default_rng(0)
    labels = np.zeros(SHAPE, dtype=np.int16)
    labels[2:6, 4:14, 4:12] = 1
    labels[3:7, 15:22, 13:22] = 2
    image = generator.standard_normal((1, *SHAPE)) + 1.5 * (labels == 1) - 1.5 * (labels == 2)
    store = Store(folder)
    voxels = sample_class_voxels(labels, (1, 2), "case")
    store.write("case", image.astype(np.float32), labels[None], voxels, {}, patch_size=SHAPE)
    return store


def sampler(store: Store, settings: TrainingSettings = SETTINGS, purpose: Any = "training") -> PatchSampler:
    """Draws whole images of `one_case`."""
    return PatchSampler(store, ("case",), SHAPE, SHAPE, 1 / 3, seed=settings.seed, purpose=purpose)


def small_loop(
    folder: Path,
    *,
    settings: TrainingSettings = SETTINGS,
    augment: Augment = unchanged,
    model: str = "unet",
    plan: NetworkPlan = PLAN,
    validates: bool = False,
    compute: Compute | None = None,
    **more: Any,
) -> TrainingLoop:
    """A training in `folder`/run, on the CPU in float32 unless told otherwise."""
    store = Store(folder / "store")
    if not (store.folder / "case.json").exists():
        one_case(store.folder)
    validation = sampler(store, settings, "validation") if validates else None
    torch.manual_seed(0)
    loss = SegmentationLoss(batch_dice=False)
    arguments: dict[str, Any] = {
        "run": Run(folder / "run"),
        "network": build_network(model, plan),
        "plan": plan,
        "settings": settings,
        "maker": BatchMaker(sampler(store, settings), validation, augment, settings.batch_size),
        "output_names": ("one", "two"),
        "compute": compute or choose_compute("cpu", "fp32"),
        "loss": loss,
        "overlap": loss.overlap,
        "validates": validates,
    }
    return TrainingLoop(**{**arguments, **more})
