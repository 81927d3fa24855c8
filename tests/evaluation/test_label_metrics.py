"""The figures of one label put together; surfaces and lesions have tests of their own."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest

from umamba_cli.pipeline.evaluation.metrics import COUNTS, SCORES, LabelMetrics, Measures, in_neither, label_metrics
from umamba_cli.pipeline.evaluation.surfaces import surface_metrics

ROW = [1, 1, 1, 0, 0, 1, 0, 0]
OTHER = [1, 1, 0, 0, 0, 0, 0, 1]


def measured(prediction: list[int], reference: list[int], spacing_mm: tuple[float, float, float]) -> LabelMetrics:
    masks = [np.array([[row, [0] * len(row)]], dtype=bool) for row in (prediction, reference)]
    return label_metrics(*masks, 1, spacing_mm, Measures(tolerance=1.0), in_plane=True)


def test_all_figures_of_a_case_worked_out_by_hand() -> None:
    found = measured(ROW, OTHER, (10.0, 10.0, 5.0))
    assert (found.tp, found.fp, found.fn) == (2, 2, 1)
    assert found.dice == pytest.approx(4 / 7)
    assert found.iou == pytest.approx(2 / 5)
    assert found.sensitivity == pytest.approx(2 / 3)
    assert found.precision == pytest.approx(2 / 4)
    assert (found.prediction_ml, found.reference_ml) == pytest.approx((2.0, 1.5))
    assert found.volume_difference_ml == pytest.approx(0.5)
    assert found.volume_difference_share == pytest.approx(1 / 3)
    assert (found.lesions, found.lesions_found, found.lesions_predicted, found.lesion_false) == (2, 1, 2, 1)
    assert found.lesion_sensitivity == found.lesion_precision == found.lesion_f1 == pytest.approx(1 / 2)
    assert sum(counts.reference for counts in found.sizes.values()) == 2
    assert set(asdict(found)) == {*SCORES, "sizes"}


def test_one_slice_is_measured_in_its_plane_whatever_its_thickness() -> None:
    thin, thick = (measured(ROW, OTHER, (thickness, 2.0, 2.0)) for thickness in (0.1, 50.0))
    plane = [np.array([row, [0] * len(row)], dtype=bool) for row in (ROW, OTHER)]
    expected = surface_metrics(*plane, (2.0, 2.0), 1.0)
    for found in (thin, thick):
        assert (found.surface_dice, found.hd95, found.hd, found.asd) == pytest.approx(
            (expected.surface_dice, expected.hd95, expected.hd, expected.asd)
        )
        assert found.sizes == thin.sizes


def test_a_label_in_neither_has_counts_and_volumes_of_0_and_no_other_numbers() -> None:
    measured_so = measured([0] * 8, [0] * 8, (1.0, 1.0, 1.0))
    neither = in_neither(of_pictures=False)
    for name in SCORES:
        for found in (measured_so, neither):
            value = getattr(found, name)
            is_0 = name in COUNTS or name.endswith("_ml")
            assert value == 0 if is_0 else math.isnan(value), name
    assert math.isnan(in_neither(of_pictures=True).reference_ml)


@pytest.mark.parametrize(("prediction", "reference"), [([1, 0], [0, 0]), ([0, 0], [1, 0])])
def test_a_label_in_one_alone(prediction: list[int], reference: list[int]) -> None:
    found = measured(prediction, reference, (1.0, 1.0, 1.0))
    assert found.dice == found.iou == found.surface_dice == found.lesion_f1 == 0
    assert all(math.isnan(getattr(found, name)) for name in ("hd95", "hd", "asd"))
    assert math.isnan(found.sensitivity) == (not any(reference))
    assert math.isnan(found.precision) == (not any(prediction))
    assert math.isnan(found.volume_difference_share) == (not any(reference))
