"""What is measured on images, by hand and against nnU-Net."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from umamba_cli.pipeline.data.dataset import Case, open_dataset
from umamba_cli.pipeline.data.images import Image, LabelMap, read_image, read_label_map
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Grid
from umamba_cli.pipeline.planning.fingerprint import (
    VALUES_KEPT,
    CaseFingerprint,
    Fingerprint,
    combine,
    measure_case,
    voxels_per_case,
)

Measure = Callable[..., CaseFingerprint]


@pytest.fixture
def measure() -> Measure:
    """Measures a case given as arrays."""

    def run(voxels: NDArray[Any], labels: NDArray[Any], name: str = "case", **options: Any) -> CaseFingerprint:
        grid = Grid(labels.shape, (3.0, 1.0, 0.5), (0.0,) * 3, (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
        return measure_case(Case(name, ()), Image(voxels.astype(np.float32), grid), LabelMap(labels, grid), **options)

    return run


def _cube(size: int, value: float) -> NDArray[np.float32]:
    return np.full((1, size, size, size), value, dtype=np.float32)


def test_case_is_cropped_to_its_nonzero_part(measure: Measure) -> None:
    voxels, labels = np.zeros((2, 4, 6, 8)), np.zeros((4, 6, 8), dtype=np.uint8)
    voxels[0, 1:3, 2:5, 3] = 7
    voxels[1, 1, 2, 4] = -5
    labels[1, 2, 3:5] = 1
    measured = measure(voxels, labels)
    assert measured.shape_after_crop == (2, 3, 2)
    assert measured.spacing_mm == (3.0, 1.0, 0.5)
    assert measured.relative_size_after_crop == pytest.approx(12 / 192)
    assert measured.foreground.tolist() == [[7, 0], [0, -5]]


def test_choice_of_voxels_depends_on_the_name_alone(measure: Measure) -> None:
    voxels, labels = np.arange(1.0, 1001).reshape(1, 10, 10, 10), np.ones((10, 10, 10), dtype=np.uint8)
    first = measure(voxels, labels, most_voxels=50)
    assert first.foreground.shape == (1, 50)
    assert len(np.unique(first.foreground)) == 50
    assert np.array_equal(first.foreground, measure(voxels, labels, most_voxels=50).foreground)
    assert not np.array_equal(first.foreground, measure(voxels, labels, "other", most_voxels=50).foreground)


def test_channels_are_taken_at_the_same_voxels(measure: Measure) -> None:
    voxels = np.arange(1.0, 1001).reshape(1, 10, 10, 10)
    measured = measure(np.concatenate([voxels, 2 * voxels]), np.ones((10, 10, 10), dtype=np.uint8), most_voxels=50)
    assert np.array_equal(2 * measured.foreground[0], measured.foreground[1])


def test_memory_is_bounded() -> None:
    for cases, channels in ((1, 1), (131, 1), (1251, 4)):
        assert cases * channels * voxels_per_case(cases, channels) <= VALUES_KEPT
    assert voxels_per_case(10**9, 1) == 1


def test_every_case_weighs_equally(measure: Measure) -> None:
    # 1000 voxels of 1 and 8 voxels of 3: the mean is 2, not nearly 1.
    large = measure(_cube(10, 1), np.ones((10, 10, 10), dtype=np.uint8), "large")
    small = measure(_cube(2, 3), np.ones((2, 2, 2), dtype=np.uint8), "small")
    statistics = combine([large, small]).foreground_intensity_properties_per_channel["0"]
    assert statistics.mean == pytest.approx(2)
    assert statistics.std == pytest.approx(1)
    assert (statistics.min, statistics.max) == (1, 3)
    assert (statistics.percentile_00_5, statistics.percentile_99_5) == (1, 3)


def test_percentiles_by_hand(measure: Measure) -> None:
    measured = measure(np.arange(1.0, 1001).reshape(1, 10, 10, 10), np.ones((10, 10, 10), dtype=np.uint8))
    statistics = combine([measured]).foreground_intensity_properties_per_channel["0"]
    assert statistics.median == pytest.approx(500, abs=1)
    assert statistics.percentile_00_5 == pytest.approx(5, abs=1)
    assert statistics.percentile_99_5 == pytest.approx(995, abs=1)


def test_case_without_foreground_counts_for_its_shape_alone(measure: Measure) -> None:
    empty = measure(_cube(4, 9), np.zeros((4, 4, 4), dtype=np.uint8), "empty")
    full = measure(_cube(2, 3), np.ones((2, 2, 2), dtype=np.uint8), "full")
    fingerprint = combine([empty, full])
    assert fingerprint.shapes_after_crop == ((4, 4, 4), (2, 2, 2))
    assert fingerprint.foreground_intensity_properties_per_channel["0"].max == 3
    with pytest.raises(InputError, match="none of the 1 cases has any foreground"):
        combine([empty])


def test_bad_input_is_refused(measure: Measure) -> None:
    labels = np.ones((4, 4, 4), dtype=np.uint8)
    with pytest.raises(InputError, match="case: image is 5x5x5, label is 4x4x4"):
        measure(_cube(5, 1), labels)
    with pytest.raises(InputError, match="case: the image holds values that are no number"):
        measure(_cube(4, np.nan), labels)
    with pytest.raises(InputError, match="no case to measure"):
        combine([])
    with pytest.raises(InputError, match="differ in their number of channels"):
        combine([measure(_cube(4, 1), labels), measure(np.ones((2, 4, 4, 4)), labels)])


@pytest.mark.parametrize("name", ["Dataset004_Hippocampus", "Dataset018_Nuclei", "Dataset101_CineMR"])
def test_fingerprint_is_nnunets(shared: Path, name: str) -> None:
    dataset = open_dataset(shared / "data" / name)
    most = voxels_per_case(len(dataset.cases), dataset.description.num_channels)
    measured = [
        measure_case(case, read_image(case.images), read_label_map(case.label), most_voxels=most)
        for case in dataset.cases
        if case.label
    ]
    fingerprint = combine(measured)
    file = shared / "goldens" / "preprocessing" / name / "dataset_fingerprint.json"
    golden = Fingerprint.model_validate_json(file.read_text())
    assert fingerprint.shapes_after_crop == golden.shapes_after_crop
    np.testing.assert_allclose(fingerprint.spacings, golden.spacings, rtol=1e-9)
    assert fingerprint.median_relative_size_after_cropping == pytest.approx(golden.median_relative_size_after_cropping)
    ours, theirs = (f.foreground_intensity_properties_per_channel for f in (fingerprint, golden))
    assert ours.keys() == theirs.keys()
    for channel, statistics in theirs.items():
        assert ours[channel].model_dump() == pytest.approx(statistics.model_dump(), rel=0.02)
