"""A network that cannot learn one case by heart cannot learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from umamba_cli.pipeline.data.store import Store
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.devices import choose_compute
from umamba_cli.pipeline.inference.sliding_window import WindowOptions, image_logits
from umamba_cli.pipeline.networks.registry import NetworkPlan, build_network
from umamba_cli.pipeline.preprocessing.case import sample_class_voxels
from umamba_cli.pipeline.training.loader import BatchMaker
from umamba_cli.pipeline.training.loop import TrainingLoop
from umamba_cli.pipeline.training.patches import Patch, PatchSampler
from umamba_cli.pipeline.training.settings import TrainingSettings

SHAPE = (8, 24, 24)
SETTINGS = TrainingSettings(
    epochs=4, iterations=25, batch_size=2, validation_iterations=1, learning_rate=0.05, momentum=0.9
)


def _unchanged(patch: Patch, _: np.random.Generator) -> Patch:
    return patch


def _store(folder: Path) -> Store:
    """One case: two labels in noise whose intensities they do not tell apart from the background's texture."""
    generator = np.random.default_rng(0)
    labels = np.zeros(SHAPE, dtype=np.int16)
    labels[2:6, 4:14, 4:12] = 1
    labels[3:7, 15:22, 13:22] = 2
    image = generator.standard_normal((1, *SHAPE)) + 1.5 * (labels == 1) - 1.5 * (labels == 2)
    store = Store(folder)
    store.write(
        "case",
        image.astype(np.float32),
        labels[None],
        sample_class_voxels(labels, (1, 2), "case"),
        {},
        patch_size=SHAPE,
    )
    return store


@pytest.mark.parametrize("model", ["unet", "umamba-none", "umamba-bot", "umamba-enc"])
def test_one_case_is_learnt_by_heart(tmp_path: Path, model: str) -> None:
    store = _store(tmp_path / "store")
    sampler = PatchSampler(store, ("case",), SHAPE, SHAPE, 1 / 3, seed=0, purpose="training")
    torch.manual_seed(0)
    plan = NetworkPlan(
        1,
        3,
        SHAPE,
        (8, 16, 32),
        ((1, 1, 1), (2, 2, 2), (1, 2, 2)),
        ((3, 3, 3),) * 3,
        (2,) * 3,
        (2,) * 2,
        (1,) * 3,
        (1,) * 2,
    )
    network = build_network(model, plan)
    compute = choose_compute("cpu", "fp32")
    loop = TrainingLoop(
        run=Run(tmp_path / "run"),
        network=network,
        settings=SETTINGS,
        maker=BatchMaker(sampler, None, _unchanged, SETTINGS.batch_size),
        label_names={1: "one", 2: "two"},
        compute=compute,
        batch_dice=False,
        validates=False,
    )
    log = loop.train()
    assert log[-1]["train_loss"] < log[0]["train_loss"] - 0.5
    case = store.case("case")
    predicted = image_logits([network.eval()], case.image[:], SHAPE, compute, WindowOptions()).argmax(0)
    for label in (1, 2):
        ours, reference = predicted == label, case.labels[0] == label
        dice = 2 * (ours & reference).sum() / (ours.sum() + reference.sum())
        assert dice > 0.95


def test_steps_without_a_finite_gradient_are_skipped_and_counted(tmp_path: Path) -> None:
    store = _store(tmp_path / "store")
    sampler = PatchSampler(store, ("case",), SHAPE, SHAPE, 1 / 3, seed=0, purpose="training")

    def spoil_some(patch: Patch, generator: np.random.Generator) -> Patch:
        spoiled = patch.image * np.float32("nan") if generator.random() < 0.3 else patch.image
        return Patch(spoiled, patch.labels)

    network = build_network(
        "unet", NetworkPlan(1, 3, SHAPE, (4, 8), ((1,) * 3, (2,) * 3), ((3,) * 3,) * 2, (1, 1), (1,), (1, 1), (1,))
    )
    loop = TrainingLoop(
        run=Run(tmp_path / "run"),
        network=network,
        settings=TrainingSettings(epochs=1, iterations=12, batch_size=1, validation_iterations=1),
        maker=BatchMaker(sampler, None, spoil_some, 1),
        label_names={1: "one", 2: "two"},
        compute=choose_compute("cpu", "fp32"),
        batch_dice=False,
        validates=False,
    )
    (entry,) = loop.train()
    assert 0 < entry["skipped_steps"] < 12
    assert np.isfinite(entry["train_loss"])
    assert all(bool(p.isfinite().all()) for p in network.parameters())
