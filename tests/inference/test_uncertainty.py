"""The entropy of the averaged softmax: against its definition, and streamed as whole."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.data.images import read_image
from umamba_cli.pipeline.devices import choose_compute
from umamba_cli.pipeline.inference import tile_sums
from umamba_cli.pipeline.inference.export import Wanted, entropy, probabilities_of_logits
from umamba_cli.pipeline.inference.predictor import load_predictor
from umamba_cli.pipeline.inference.sliding_window import Window, WindowOptions

CPU = choose_compute("cpu", "fp32")
LABELS = DatasetDescription(
    channel_names={"0": "CT"}, labels={"background": 0, "a": 1, "b": 2}, file_ending=".nii.gz", name="x"
)
REGIONS = DatasetDescription(
    channel_names={"0": "CT"},
    labels={"background": 0, "whole": (1, 2), "core": 2},
    regions_class_order=(1, 2),
    file_ending=".nii.gz",
)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layer = nn.Conv3d(1, 3, 3, padding=1)
    nn.init.normal_(layer.weight, std=2)
    return layer.eval()


def test_it_is_the_entropy_of_the_mean_over_networks_and_mirrorings() -> None:
    networks, image = [network(0), network(1)], torch.randn(1, 6, 8, 10)
    window = Window(networks, (6, 8, 10), CPU, WindowOptions(mirror_axes=(0, 2)))
    window = replace(window, probabilities_of=lambda logits: probabilities_of_logits(logits, LABELS, axis=1))
    with torch.inference_mode():
        answers = [
            net(image[None].flip(flip)).flip(flip)[0]
            for net, flip in itertools.product(networks, [(), (2,), (4,), (2, 4)])
        ]
        mean = torch.stack([answer.softmax(0) for answer in answers]).mean(0)
    expected = -(mean * mean.log()).sum(0)
    found = window.logits(image.numpy())
    assert found.shape == (6, 6, 8, 10)
    np.testing.assert_allclose(found[:3], torch.stack(answers).mean(0).numpy(), atol=1e-4)
    nats = entropy(torch.from_numpy(found[3:]).movedim(0, -1), LABELS)
    np.testing.assert_allclose(nats.numpy(), expected.numpy(), atol=1e-5)
    of_mean_logits = torch.from_numpy(found[:3]).softmax(0)
    assert not np.allclose(nats.numpy(), -(of_mean_logits * of_mean_logits.log()).sum(0).numpy(), atol=1e-2)


@pytest.mark.parametrize(
    ("probabilities", "dataset", "nats"),
    [
        ([1.0, 0.0, 0.0], LABELS, 0.0),
        ([1 / 3, 1 / 3, 1 / 3], LABELS, math.log(3)),
        ([0.5, 0.5, 0.0], LABELS, math.log(2)),
        ([1.02, -0.02, 0.0], LABELS, 0.0),  # as splines overshoot
        ([0.5, 0.5], REGIONS, 2 * math.log(2)),
        ([0.0, 1.0], REGIONS, 0.0),
    ],
)
def test_worked_out_by_hand(probabilities: list[float], dataset: DatasetDescription, nats: float) -> None:
    assert float(entropy(torch.tensor(probabilities), dataset)) == pytest.approx(nats, abs=1e-6)


def test_streamed_as_whole_and_labels_stay(
    trained_workspace: Path, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = load_predictor(trained_workspace / "runs/umamba-bot__3d_fullres", (), CPU)
    image = read_image(sorted((tiny_dataset / "imagesTs").iterdir())[:1])
    image = replace(image, voxels=image.voxels.copy())
    image.voxels[:, :2] = 0  # planes that are cropped away
    case = predictor.prepare(image)

    def export(wanted: Wanted) -> tuple[np.ndarray, np.ndarray | None]:
        ((_, found),) = predictor.export([(None, case)], wanted)
        return found.labels, found.uncertainty

    alone, nothing = export(Wanted())
    assert nothing is None
    labels, uncertainty = export(Wanted(uncertainty=True))
    np.testing.assert_array_equal(labels, alone)
    assert uncertainty is not None
    assert uncertainty.shape == labels.shape
    assert not uncertainty[:2].any()
    assert 0 <= uncertainty.min() < uncertainty.max() <= math.log(predictor.dataset.num_outputs) + 1e-6
    monkeypatch.setattr(tile_sums, "_SLAB_BYTES", 1)
    slab_by_slab = export(Wanted(uncertainty=True, probabilities=True))[1]
    np.testing.assert_allclose(slab_by_slab, uncertainty, atol=1e-6)


def test_regions_are_averaged_as_sigmoids() -> None:
    values: Tensor = torch.tensor([[2.0, -1.0]])
    np.testing.assert_allclose(
        probabilities_of_logits(values, REGIONS, axis=1).numpy(), values.sigmoid().numpy(), atol=1e-7
    )
