from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from umamba_cli.pipeline.training.losses import SegmentationLoss, head_weights
from umamba_cli.pipeline.training.schedule import polynomial_decay


def certain(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Logits that leave no doubt."""
    return F.one_hot(labels, classes).movedim(-1, 1).float() * 100


def dice_and_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, *, batch_dice: bool) -> torch.Tensor:
    return SegmentationLoss(batch_dice)([logits], labels)


def soft_dice(logits: torch.Tensor, labels: torch.Tensor, *, batch_dice: bool) -> torch.Tensor:
    """What is taken from the cross-entropy."""
    return F.cross_entropy(logits, labels) - dice_and_cross_entropy(logits, labels, batch_dice=batch_dice)


def test_soft_dice_worked_out_by_hand() -> None:
    labels = torch.tensor([[[1, 1], [0, 0]]])
    predicted = torch.tensor([[[1, 0], [0, 0]]])
    # class 1: one voxel shared, one predicted, two there: 2*1 / (1+2)
    assert float(soft_dice(certain(predicted, 2), labels, batch_dice=False)) == pytest.approx(2 / 3, abs=1e-4)


def test_batch_dice_counts_the_batch_as_one_image() -> None:
    labels = torch.tensor([[[1, 1]], [[1, 0]]])
    predicted = torch.tensor([[[1, 1]], [[0, 0]]])
    logits = certain(predicted, 2)
    # shared 2, predicted 2, there 3
    assert float(soft_dice(logits, labels, batch_dice=True)) == pytest.approx(4 / 5, abs=1e-4)
    # 1 for the first image, 0 for the second
    assert float(soft_dice(logits, labels, batch_dice=False)) == pytest.approx(1 / 2, abs=1e-4)


def test_the_background_does_not_count_and_an_absent_class_is_right() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    assert float(soft_dice(certain(labels, 3), labels, batch_dice=False)) == pytest.approx(1, abs=1e-3)


def test_the_loss_is_cross_entropy_minus_dice_and_lowest_where_all_is_right() -> None:
    labels = torch.randint(0, 3, (2, 6, 6), generator=torch.Generator().manual_seed(0))
    assert float(dice_and_cross_entropy(certain(labels, 3), labels, batch_dice=False)) == pytest.approx(-1, abs=1e-4)
    logits = torch.zeros(2, 3, 6, 6)
    expected = torch.log(torch.tensor(3.0)) - soft_dice(logits, labels, batch_dice=False)
    torch.testing.assert_close(dice_and_cross_entropy(logits, labels, batch_dice=False), expected)


def test_heads_weigh_half_as_much_each_time_and_the_lowest_nothing() -> None:
    assert head_weights(1) == [1]
    assert head_weights(2) == [1, 0]
    assert head_weights(4) == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0])


def test_deep_supervision_takes_the_nearest_labels() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[:, 2:, :] = 1
    low = labels[:, ::2, ::2]
    right = [certain(labels, 2), certain(low, 2), torch.zeros(1, 2, 1, 1)]
    wrong = [certain(labels, 2), certain(1 - low, 2), torch.zeros(1, 2, 1, 1)]
    assert float(SegmentationLoss(batch_dice=False)(right, labels)) == pytest.approx(-1, abs=1e-3)
    assert float(SegmentationLoss(batch_dice=False)(wrong, labels)) > 10


def test_hard_overlap_counts_right_wrong_and_missed() -> None:
    labels = torch.tensor([[0, 1, 1, 2, 2, 2]])
    predicted = torch.tensor([[1, 1, 0, 2, 2, 0]])
    assert SegmentationLoss(batch_dice=False).overlap(certain(predicted, 3), labels).tolist() == [
        [1, 2],
        [1, 0],
        [1, 1],
    ]


def test_the_learning_rate_decays_to_nothing() -> None:
    assert polynomial_decay(0.01, 0, 10) == 0.01
    assert polynomial_decay(0.01, 5, 10) == pytest.approx(0.01 * 0.5**0.9)
    assert 0 < polynomial_decay(0.01, 9, 10) < 0.0013


def plainly(logits: torch.Tensor, labels: torch.Tensor, *, batch_dice: bool) -> torch.Tensor:
    """Cross-entropy minus soft Dice as the equations have them."""
    p, t = logits.softmax(1)[:, 1:], F.one_hot(labels, logits.shape[1]).movedim(-1, 1)[:, 1:]
    axes = [0, *range(2, logits.ndim)] if batch_dice else list(range(2, logits.ndim))
    dice = (2 * (p * t).sum(axes) + 1e-5) / (p.sum(axes) + t.sum(axes) + 1e-5)
    return F.cross_entropy(logits, labels) - dice.mean()


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("size", [(6, 8), (4, 6, 8)])
def test_loss_and_gradient_are_those_of_the_equations(size: tuple[int, ...], batch_dice: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, *size), generator=generator)  # the last class is in the logits alone
    logits = (5 * torch.randn(2, 4, *size, generator=generator)).requires_grad_()
    loss = dice_and_cross_entropy(logits, labels, batch_dice=batch_dice)
    (gradient,) = torch.autograd.grad(loss, logits)
    exact = logits.detach().double().requires_grad_()
    expected = plainly(exact, labels, batch_dice=batch_dice)
    torch.testing.assert_close(loss, expected.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, exact)[0].float(), rtol=1e-5, atol=1e-7)


def test_logits_in_bfloat16_are_computed_with_in_float32() -> None:
    logits = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    loss = dice_and_cross_entropy(logits, labels, batch_dice=False)
    torch.testing.assert_close(loss, dice_and_cross_entropy(logits.float(), labels, batch_dice=False), rtol=0, atol=0)
