"""The loss of regions, of labels with an ignore label, and of a batch that several processes share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.training.losses import SegmentationLoss, loss_for

REGIONS = ((1, 2, 3), (2, 3), (3,))
IGNORED = 4
SIZES = [(6, 8), (4, 6, 8)]

Arrays = tuple[torch.Tensor, torch.Tensor]


def a_batch(size: tuple[int, ...], *, outputs: int, ignored: bool) -> Arrays:
    """Random logits and labels of 0 to 3; a third of the voxels ignored, and all of the second image."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (3, *size), generator=generator)
    if ignored:
        labels[torch.rand(labels.shape, generator=generator) < 1 / 3] = IGNORED
        labels[1] = IGNORED
    return 4 * torch.randn(3, outputs, *size, generator=generator), labels


def by_the_equations(
    logits: torch.Tensor, labels: torch.Tensor, *, regions: tuple[tuple[int, ...], ...], batch_dice: bool
) -> float:
    """Cross-entropy minus soft Dice, voxel by voxel and class by class, in float64."""
    x, truth = logits.double().numpy(), labels.numpy()
    counted = truth != IGNORED
    if regions:
        p = 1 / (1 + np.exp(-x))
        t = np.stack([np.isin(truth, values) for values in regions], 1)
        each = -np.where(t, np.log(p), np.log(1 - p)).mean(1)
    else:
        p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
        t = np.stack([truth == label for label in range(x.shape[1])], 1)
        each = -np.log((p * t).sum(1) + ~counted)
        p, t = p[:, 1:], t[:, 1:]
    cross_entropy = each[counted].mean() if counted.any() else 0.0
    images = [list(range(len(x)))] if batch_dice else [[index] for index in range(len(x))]
    dice = [one_dice(p[i, c], t[i, c], counted[i]) for i in images for c in range(p.shape[1])]
    return float(cross_entropy - np.mean(dice))


def one_dice(p: NDArray[Any], t: NDArray[Any], counted: NDArray[Any]) -> float:
    p, t = p[counted], t[counted]
    return float((2 * p[t].sum() + 1e-5) / (p.sum() + t.sum() + 1e-5))


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("regions", [(), REGIONS])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_the_loss_is_that_of_the_equations(
    size: tuple[int, ...], ignored: bool, regions: tuple[tuple[int, ...], ...], batch_dice: bool
) -> None:
    logits, labels = a_batch(size, outputs=len(regions) or 4, ignored=ignored)
    expected = by_the_equations(logits, labels, regions=regions, batch_dice=batch_dice)
    loss = SegmentationLoss(batch_dice, regions, IGNORED if ignored else None)
    assert float(loss([logits], labels)) == pytest.approx(expected, rel=1e-5)
    if not ignored:  # an ignore label that no voxel has changes nothing
        assert float(SegmentationLoss(batch_dice, regions, IGNORED)([logits], labels)) == pytest.approx(
            expected, rel=1e-5
        )


def test_two_voxels_in_two_regions_by_hand() -> None:
    labels = torch.tensor([[[1, 2]]])
    logits = torch.zeros(1, 2, 1, 2)  # every region is as likely as not
    loss = SegmentationLoss(False, regions=((1, 2), (2,)))
    # The whole holds both voxels, 2 * (1/2 + 1/2) / (1 + 2); the core one, 2 * 1/2 / (1 + 1).
    assert float(loss([logits], labels)) == pytest.approx(math.log(2) - (2 / 3 + 1 / 2) / 2, abs=1e-4)
    logits[0, :, 0, 0] = torch.tensor([20.0, -20.0])
    logits[0, :, 0, 1] = torch.tensor([20.0, 20.0])
    assert float(loss([logits], labels)) == pytest.approx(-1, abs=1e-4)


@pytest.mark.parametrize("regions", [(), ((1,),)])
def test_of_two_voxels_one_is_ignored(regions: tuple[tuple[int, ...], ...]) -> None:
    labels = torch.tensor([[[1, 2]]])
    logits = torch.zeros(1, len(regions) or 2, 1, 2)
    logits[..., 1] = 3.0
    logits[:, :-1, ..., 1] = -3.0
    loss = SegmentationLoss(False, regions, ignore_label=2)
    # The first voxel alone: 2 * 1/2 / (1/2 + 1).
    assert float(loss([logits], labels)) == pytest.approx(math.log(2) - 2 / 3, abs=1e-4)


@pytest.mark.parametrize("regions", [(), REGIONS])
def test_ignored_voxels_teach_nothing(regions: tuple[tuple[int, ...], ...]) -> None:
    logits, labels = a_batch((6, 8), outputs=len(regions) or 4, ignored=True)
    loss = SegmentationLoss(True, regions, IGNORED)
    gradient = gradient_of(lambda x: loss([x], labels), logits)
    voxels = gradient.abs().amax(1)
    assert not voxels[labels == IGNORED].any()
    assert (voxels[labels != IGNORED] > 0).all()


@pytest.mark.parametrize("regions", [(), REGIONS])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_a_batch_where_all_is_ignored_has_no_cross_entropy(
    regions: tuple[tuple[int, ...], ...], batch_dice: bool
) -> None:
    logits, labels = a_batch((6, 8), outputs=len(regions) or 4, ignored=True)
    loss = SegmentationLoss(batch_dice, regions, IGNORED)
    labels[:] = IGNORED
    assert float(loss([logits], labels)) == pytest.approx(-1)
    assert not gradient_of(lambda x: loss([x], labels), logits).any()


def gradient_of(loss: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    logits = logits.detach().requires_grad_()
    return torch.autograd.grad(loss(logits), logits)[0]


@pytest.mark.parametrize("regions", [(), REGIONS])
def test_lower_resolutions_take_the_nearest_label_ignored_or_not(regions: tuple[tuple[int, ...], ...]) -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[:, 2:] = IGNORED
    loss = SegmentationLoss(False, regions, IGNORED)
    outputs = [torch.full((1, len(regions) or 4, n, n), -30.0) for n in (4, 2, 1)]
    if not regions:
        for logits in outputs:
            logits[:, 0] = 30  # the background
    outputs[1][:, :, 1] *= -1  # wrong where it is ignored
    assert float(loss(outputs, labels)) == pytest.approx(-1, abs=1e-3)
    outputs[1][:, :, 0] *= -1  # wrong
    assert float(loss(outputs, labels)) > 5


def test_overlap_of_regions_and_without_ignored_voxels() -> None:
    labels = torch.tensor([[0, 1, 2, 2, 4, 4]])
    whole = torch.tensor([[1, 1, 1, 0, 1, 0]])
    core = torch.tensor([[0, 1, 1, 0, 1, 0]])
    logits = torch.stack((whole, core), 1) * 2.0 - 1
    counts = SegmentationLoss(True, ((1, 2), (2,)), 4).overlap(logits, labels)
    assert counts.tolist() == [[2, 1], [1, 1], [1, 1]]
    assert not counts.is_floating_point()


def test_overlap_of_labels_without_ignored_voxels() -> None:
    labels = torch.tensor([[0, 1, 1, 2, 3, 3]])
    predicted = torch.tensor([[1, 1, 0, 2, 2, 0]])
    logits = F.one_hot(predicted, 3).movedim(-1, 1).float()
    assert SegmentationLoss(True, (), 3).overlap(logits, labels).tolist() == [[1, 1], [1, 0], [1, 0]]


class Ranks:
    """Several processes, one after the other: what each sums is asked for again once the sums of all are known."""

    def __init__(self) -> None:
        self.sums: list[list[torch.Tensor]] = []

    def loss(self, parts: list[Arrays], **settings: Any) -> tuple[list[float], list[torch.Tensor]]:
        """The loss that every process gets for its part of the batch, and the gradient at its logits.

        It takes as many rounds as there are sums that need other sums, which is one.
        """
        inputs = [logits.detach().requires_grad_() for logits, _ in parts]
        own: list[list[torch.Tensor]] = []
        for x, (_, labels) in zip(inputs, parts, strict=True):
            noted: list[torch.Tensor] = []

            def note(total: torch.Tensor, noted: list[torch.Tensor] = noted) -> torch.Tensor:
                noted.append(total)
                return total

            SegmentationLoss(sum_over_ranks=note, **settings)([x], labels)
            own.append(noted)
        everywhere = [torch.stack(same).sum(0) for same in zip(*own, strict=True)]
        losses = []
        for x, (_, labels) in zip(inputs, parts, strict=True):
            sums = iter(everywhere)
            losses.append(SegmentationLoss(sum_over_ranks=lambda _, sums=sums: next(sums), **settings)([x], labels))  # type: ignore[misc]
        return [float(loss.detach()) for loss in losses], list(torch.autograd.grad(losses[0], inputs))


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("regions", [(), REGIONS])
@pytest.mark.parametrize("ignored", [False, True])
def test_every_process_gets_the_loss_of_the_whole_batch(
    ignored: bool, regions: tuple[tuple[int, ...], ...], batch_dice: bool
) -> None:
    logits, labels = a_batch((6, 8), outputs=len(regions) or 4, ignored=ignored)
    settings = {"batch_dice": batch_dice, "regions": regions, "ignore_label": IGNORED if ignored else None}
    loss = SegmentationLoss(**settings)  # type: ignore[arg-type]
    parts = [(logits[:1], labels[:1]), (logits[1:], labels[1:])]  # one image here, two there
    losses, gradients = Ranks().loss(parts, **settings)
    assert losses == pytest.approx([float(loss([logits], labels))] * 2, rel=1e-6)
    whole = gradient_of(lambda x: loss([x], labels), logits)
    torch.testing.assert_close(torch.cat(gradients), whole, rtol=1e-5, atol=1e-8)


def test_in_bfloat16_it_is_computed_in_float32() -> None:
    logits, labels = a_batch((6, 8), outputs=3, ignored=True)
    loss = SegmentationLoss(False, REGIONS, IGNORED)
    exact = loss([logits.bfloat16().float()], labels)
    torch.testing.assert_close(loss([logits.bfloat16()], labels), exact, rtol=0, atol=0)


def test_the_memory_format_does_not_matter() -> None:
    logits, labels = a_batch((4, 6, 8), outputs=3, ignored=True)
    loss = SegmentationLoss(True, REGIONS, IGNORED)
    last = logits.to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(loss([last], labels), loss([logits], labels), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("labels", "order", "expected"),
    [
        ({"background": 0, "a": 1, "b": 2}, None, ((), None)),
        ({"background": 0, "a": 1, "ignore": 2}, None, ((), 2)),
        ({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, [1, 2], (((1, 2), (2,)), 3)),
    ],
)
def test_the_loss_of_a_dataset(labels: dict[str, Any], order: list[int] | None, expected: Any) -> None:
    description = DatasetDescription.model_validate(
        {"channel_names": {"0": "MR"}, "labels": labels, "regions_class_order": order, "file_ending": ".nrrd"}
    )
    assert loss_for(description, batch_dice=True) == SegmentationLoss(True, *expected)
