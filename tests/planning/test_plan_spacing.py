"""Target spacing, axis order and the search for a lower resolution, worked out by hand."""

from __future__ import annotations

import pytest

from umamba_cli.pipeline.planning.normalization import normalization_scheme, uses_mask
from umamba_cli.pipeline.planning.spacing import coarser, median_shape, target_spacing, transpose_axes


def test_target_is_the_median_along_each_axis() -> None:
    target = target_spacing([(1.0, 0.5, 0.5), (2.0, 0.7, 0.6), (3.0, 0.9, 0.7)], [(100, 100, 100)] * 3)
    assert target.spacing_mm == (2.0, 0.7, 0.6)
    assert target.reason == "median of 3 cases along each axis"


def test_thick_slices_take_the_10th_percentile() -> None:
    # 5, 6, ..., 15: the 10th percentile of eleven values is the second.
    spacings = [(5.0 + i, 1.0, 1.0) for i in range(11)]
    target = target_spacing(spacings, [(10, 200, 200)] * 11)
    assert target.spacing_mm == (6.0, 1.0, 1.0)
    assert "along z, thick slices (median 10 mm)" in target.reason


def test_thick_slices_need_few_slices() -> None:
    # 10 mm but 70 slices of 200 x 200: more than a third.
    target = target_spacing([(5.0 + i, 1.0, 1.0) for i in range(11)], [(70, 200, 200)] * 11)
    assert target.spacing_mm == (10.0, 1.0, 1.0)


def test_exactly_3_times_coarser_is_not_thick() -> None:
    assert target_spacing([(1.0, 1.0, 1.0)] + [(3.0, 1.0, 1.0)] * 2, [(10, 200, 200)] * 3).spacing_mm[0] == 3.0


def test_thick_slices_never_get_finer_than_the_other_axes() -> None:
    spacings = [(0.5, 1.0, 1.0)] * 3 + [(10.0, 1.0, 1.0)] * 7
    assert target_spacing(spacings, [(10, 200, 200)] * 10).spacing_mm == pytest.approx((1.00001, 1.0, 1.0), abs=1e-9)


@pytest.mark.parametrize(
    ("spacing", "forward", "backward"),
    [
        ((3.0, 1.0, 1.0), (0, 1, 2), (0, 1, 2)),
        ((1.0, 3.0, 1.0), (1, 0, 2), (1, 0, 2)),
        ((1.0, 1.0, 3.0), (2, 0, 1), (1, 2, 0)),
        ((1.0, 1.0, 1.0), (0, 1, 2), (0, 1, 2)),
        ((1.0, 2.0, 2.0), (1, 0, 2), (1, 0, 2)),
    ],
)
def test_coarsest_axis_comes_first(
    spacing: tuple[float, ...], forward: tuple[int, ...], backward: tuple[int, ...]
) -> None:
    assert transpose_axes(spacing) == (forward, backward)


def test_median_shape_is_taken_after_resampling() -> None:
    shapes = [(10, 20, 30), (10, 21, 30)]
    assert median_shape([(2.0, 1.0, 1.0), (4.0, 1.0, 1.0)], shapes, (1.0, 1.0, 1.0)) == (30.0, 20.5, 30.0)


def test_fine_axes_are_coarsened_before_all_are() -> None:
    assert coarser((3.0, 1.0, 1.0)) == (3.0, 1.03, 1.03)
    assert coarser((2.0, 1.0, 1.0)) == (2.06, 1.03, 1.03)


@pytest.mark.parametrize(
    ("channel", "scheme"),
    [
        ("CT", "CTNormalization"),
        ("ct", "CTNormalization"),
        ("noNorm", "NoNormalization"),
        ("rescale_to_0_1", "RescaleTo01Normalization"),
        ("rgb_to_0_1", "RGBTo01Normalization"),
        ("zscore", "ZScoreNormalization"),
        ("T1w", "ZScoreNormalization"),
        ("CTA", "ZScoreNormalization"),
    ],
)
def test_channel_name_chooses_the_normalization(channel: str, scheme: str) -> None:
    assert normalization_scheme(channel) == scheme


def test_mask_is_used_below_three_quarters_and_by_z_score_alone() -> None:
    assert uses_mask("ZScoreNormalization", 0.74)
    assert not uses_mask("ZScoreNormalization", 0.75)
    assert not uses_mask("CTNormalization", 0.2)
