from __future__ import annotations

import math

import numpy as np
import pytest

from umamba_cli.pipeline.evaluation.metrics import overlap

MM = (1.0, 1.0, 1.0)


def test_one_of_two_voxels_is_met() -> None:
    # Prediction {a, b}, reference {b, c}: one voxel in common, 2 * 1 / (2 + 2) and 1 / 3.
    metrics = overlap(np.array([[1, 1], [0, 0]]), np.array([[0, 1], [1, 0]]), 1, MM)
    assert (metrics.tp, metrics.fp, metrics.fn) == (1, 1, 1)
    assert metrics.dice == pytest.approx(1 / 2)
    assert metrics.iou == pytest.approx(1 / 3)


def test_false_positives_and_false_negatives_are_told_apart() -> None:
    # Prediction {a}, reference {a, b, c}: 2 * 1 / (1 + 3) and 1 / 3; nothing too much, two missed.
    metrics = overlap(np.array([[1, 0], [0, 0]]), np.array([[1, 1], [1, 0]]), 1, MM)
    assert (metrics.tp, metrics.fp, metrics.fn) == (1, 0, 2)
    assert metrics.dice == pytest.approx(1 / 2)
    assert metrics.iou == pytest.approx(1 / 3)


def test_other_labels_do_not_count() -> None:
    # Where the prediction says 2 and the reference 1, both labels are wrong.
    prediction, reference = np.array([[2, 2], [1, 0]]), np.array([[1, 2], [1, 0]])
    first, second = (overlap(prediction, reference, label, MM) for label in (1, 2))
    assert (first.tp, first.fp, first.fn) == (1, 0, 1)
    assert (second.tp, second.fp, second.fn) == (1, 1, 0)
    assert first.dice == second.dice == pytest.approx(2 / 3)


def test_labels_of_a_region_count_together() -> None:
    # Prediction {a, b, c}, reference {b, c, d}; that b and c have other labels of the region does not matter.
    prediction, reference = np.array([[1, 2, 3, 0, 4]]), np.array([[0, 3, 2, 1, 4]])
    metrics = overlap(prediction, reference, (1, 2, 3), MM)
    assert (metrics.tp, metrics.fp, metrics.fn) == (2, 1, 1)
    assert metrics.dice == pytest.approx(2 / 3)
    assert overlap(prediction, reference, (2,), MM) == overlap(prediction, reference, 2, MM)


def test_equal_maps() -> None:
    labels = np.array([[3, 0], [3, 3]])
    metrics = overlap(labels, labels, 3, MM)
    assert (metrics.dice, metrics.iou) == (1, 1)


def test_label_in_neither_map_has_no_dice() -> None:
    metrics = overlap(np.array([[1, 0]]), np.array([[0, 1]]), 2, MM)
    assert math.isnan(metrics.dice)
    assert math.isnan(metrics.iou)
    assert (metrics.tp, metrics.fp, metrics.fn) == (0, 0, 0)
    assert metrics.prediction_ml == metrics.reference_ml == 0


def test_label_in_one_map_alone_has_dice_0() -> None:
    empty, full = np.array([[0, 0]]), np.array([[1, 0]])
    for metrics in (overlap(empty, full, 1, MM), overlap(full, empty, 1, MM)):
        assert (metrics.dice, metrics.iou) == (0, 0)


def test_volumes_count_anisotropic_voxels() -> None:
    # A voxel of 5 x 2 x 1.5 mm holds 15 cubic millimetres, which are 0.015 ml.
    prediction = np.zeros((10, 10, 10), dtype=np.uint8)
    reference = prediction.copy()
    prediction[:2] = 1
    reference[0] = 1
    metrics = overlap(prediction, reference, 1, (5.0, 2.0, 1.5))
    assert metrics.prediction_ml == pytest.approx(3.0)
    assert metrics.reference_ml == pytest.approx(1.5)


def test_pictures_have_no_volume() -> None:
    labels = np.array([[1, 0]])
    metrics = overlap(labels, labels, 1, None)
    assert math.isnan(metrics.prediction_ml)
    assert math.isnan(metrics.reference_ml)
    assert metrics.dice == 1


def test_number_types_may_differ() -> None:
    metrics = overlap(np.array([[1.0, 0.0]]), np.array([[1, 0]], dtype=np.uint8), 1, MM)
    assert metrics.dice == 1


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        overlap(np.zeros((2, 2)), np.zeros((2, 1)), 1, MM)
