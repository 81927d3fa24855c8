from __future__ import annotations

import functools
import itertools
import math
import operator
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from umamba_cli.pipeline.evaluation.instances import InstanceMetrics, Matches, instance_metrics, instances_of

Instances = NDArray[np.int32]
INTERIOR, BOUNDARY = 1, 2


def labels_of(*rows: str) -> NDArray[np.uint8]:
    """A picture: `o` is interior, `x` boundary."""
    return np.array([[".ox".index(letter) for letter in row] for row in rows], dtype=np.uint8)


def instances(*rows: str) -> Instances:
    """A picture of numbered instances: `.` is background."""
    return np.array([[0 if letter == "." else int(letter) for letter in row] for row in rows], dtype=np.int32)


def cells(*rows: str) -> Instances:
    return instances_of(labels_of(*rows), INTERIOR, BOUNDARY)


def test_touching_cells_come_apart_and_get_their_boundaries() -> None:
    found = cells(
        "xxxxxx",
        "xoxxox",
        "xxxxxx",
    )
    assert np.array_equal(found, instances("111222", "111222", "111222"))
    assert found.dtype == np.int32


def test_a_boundary_between_two_cells_is_shared_out_and_none_is_left() -> None:
    # Five voxels between: two are nearer to the left cell, two to the right, the middle one has to go to either.
    found = cells("oxxxxxo")
    assert found[0, :3].tolist() == [1, 1, 1]
    assert found[0, 4:].tolist() == [2, 2, 2]
    assert found[0, 3] in {1, 2}


def test_a_boundary_goes_to_the_nearest_cell_not_to_the_first_one() -> None:
    assert np.array_equal(
        cells("oxxxxoooo", ".........", "ooooxxxxo"), instances("111222222", ".........", "333333444")
    )


def test_steps_lead_through_the_boundary_not_across_background() -> None:
    # The boundary in the corner is two voxels from the right cell as the crow flies, but its own way is to the left.
    found = cells(
        "oxxxx",
        "....x",
        ".....",
        "....o",
    )
    assert np.array_equal(found, instances("11111", "....1", ".....", "....2"))


def test_boundary_without_a_cell_stays_background() -> None:
    assert np.array_equal(cells("ox.xx"), instances("11..."))


def test_boundary_that_touches_a_cell_in_a_corner_is_its_own() -> None:
    assert np.array_equal(cells("o.", ".x"), instances("1.", ".1"))


def test_interiors_that_touch_in_a_corner_are_one_cell() -> None:
    assert np.array_equal(cells("o.", ".o"), instances("1.", ".1"))


def test_a_map_without_interior_has_no_instances() -> None:
    assert not cells("xx.x").any()
    assert cells("xx.x").dtype == np.int32
    assert not cells("....").any()


def test_cells_may_touch_the_border_of_the_picture() -> None:
    assert np.array_equal(cells("ox..", "xx..", "...x", "..xo"), instances("11..", "11..", "...2", "..22"))


def test_other_labels_are_background_and_values_are_free() -> None:
    labels = np.array([[7, 5, 3, 5, 7]])
    assert np.array_equal(instances_of(labels, 7, 5), [[1, 1, 0, 2, 2]])


def test_cells_of_volumes() -> None:
    labels = np.zeros((4, 3, 3), dtype=np.uint8)
    labels[:] = BOUNDARY
    labels[0, 1, 1] = labels[3, 1, 1] = INTERIOR
    found = instances_of(labels, INTERIOR, BOUNDARY)
    assert (found[:2] == 1).all()
    assert (found[2:] == 2).all()


def test_cells_drawn_with_boundaries_are_found_again() -> None:
    # As the cell segmentation challenge makes its labels: the outermost voxels of each cell are its boundary.
    from skimage.segmentation import find_boundaries

    drawn = np.kron(np.arange(1, 13).reshape(3, 4), np.ones((7, 6))).astype(np.int32)
    drawn[drawn == 6] = 0
    labels = np.where(find_boundaries(drawn, mode="inner"), BOUNDARY, (drawn > 0) * INTERIOR)
    found = instances_of(labels, INTERIOR, BOUNDARY)
    assert instance_metrics(found, drawn).panoptic == Matches(11, 0, 0, 11.0)


def test_the_label_map_is_left_as_it_was() -> None:
    labels = labels_of("oxxo")
    before = labels.copy()
    instances_of(labels, INTERIOR, BOUNDARY)
    assert np.array_equal(labels, before)


def test_wrong_label_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="same value"):
        instances_of(labels_of("o"), 1, 1)
    with pytest.raises(ValueError, match="2 or 3 axes"):
        instances_of(np.zeros(3, dtype=np.uint8), 1, 2)


def test_panoptic_quality_by_hand() -> None:
    # 1 and 5: 4 of 5 voxels in common. 2 and 6: 2 of 4, one half, not enough. 3 and 7: 1 of 1. 4: alone.
    metrics = instance_metrics(instances("1111.222.3.4"), instances("55555.6667.."))
    assert metrics.panoptic == Matches(tp=2, fp=2, fn=1, iou_sum=4 / 5 + 1)
    assert metrics.sq == pytest.approx(1.8 / 2)
    assert metrics.rq == pytest.approx(2 / (2 + 1 + 0.5))
    assert metrics.pq == pytest.approx(1.8 / 3.5)
    assert metrics.pq == pytest.approx(metrics.sq * metrics.rq)


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9])
def test_an_iou_must_be_greater_than_the_threshold(threshold: float) -> None:
    # A cell of 10 of which a part is predicted: the IoU is that part.
    reference = instances("1" * 10)
    voxels = round(10 * threshold)
    equal, greater = np.arange(10)[None] < voxels, np.arange(10)[None] < voxels + 1
    assert instance_metrics(equal.astype(np.int32), reference, [threshold]).f1 == {threshold: 0}
    assert instance_metrics(greater.astype(np.int32), reference, [threshold]).f1 == {threshold: 1}


def test_f1_by_threshold() -> None:
    # IoUs of 3/4, 2/3 and 1: at 0.5 and 0.6 all three are found, at 0.7 two, from 0.8 on one.
    metrics = instance_metrics(instances("111..22.3"), instances("1111.2223"))
    assert metrics.f1 == pytest.approx({0.5: 1, 0.6: 1, 0.7: 2 / 3, 0.8: 1 / 3, 0.9: 1 / 3})
    assert metrics.by_threshold[0.7] == Matches(tp=2, fp=1, fn=1, iou_sum=3 / 4 + 1)


def test_two_halves_of_a_cell_are_no_match() -> None:
    # Each half has an IoU of one half; if that were enough, one cell would be found twice.
    assert instance_metrics(instances("1122"), instances("3333")).panoptic == Matches(tp=0, fp=2, fn=1, iou_sum=0)


def test_two_cells_that_flowed_together_match_none() -> None:
    assert instance_metrics(instances("1111"), instances("3344")).panoptic == Matches(tp=0, fp=1, fn=2, iou_sum=0)


def test_nothing_in_either() -> None:
    metrics = instance_metrics(instances("..."), instances("..."))
    assert metrics.panoptic == Matches()
    rates = (*metrics.f1.values(), metrics.pq, metrics.sq, metrics.rq)
    assert all(math.isnan(rate) for rate in rates)


@pytest.mark.parametrize(("predicted", "reference", "fp", "fn"), [("1.2", "...", 2, 0), ("...", "1.2", 0, 2)])
def test_instances_in_one_map_alone(predicted: str, reference: str, fp: int, fn: int) -> None:
    metrics = instance_metrics(instances(predicted), instances(reference))
    assert metrics.panoptic == Matches(tp=0, fp=fp, fn=fn)
    assert metrics.pq == metrics.rq == 0
    assert set(metrics.f1.values()) == {0}
    assert math.isnan(metrics.sq)


def test_panoptic_quality_is_that_at_one_half_whatever_the_thresholds() -> None:
    metrics = instance_metrics(instances("111."), instances("1111"), [0.9])
    assert metrics.f1 == {0.9: 0}
    assert metrics.pq == 3 / 4


def test_counts_of_cases_add_up() -> None:
    first = instance_metrics(instances("11.2"), instances("11.."))
    second = instance_metrics(instances("333."), instances("3333"))
    both = functools.reduce(operator.add, [first, second])
    assert both.panoptic == both.by_threshold[0.7] == Matches(tp=2, fp=1, fn=0, iou_sum=1.75)
    assert both.by_threshold[0.9] == Matches(tp=1, fp=2, fn=1, iou_sum=1.0)
    assert both.f1[0.5] == 4 / 5


def test_other_thresholds_do_not_add_up() -> None:
    maps = instances("11"), instances("11")
    with pytest.raises(ValueError, match="thresholds"):
        instance_metrics(*maps) + instance_metrics(*maps, [0.5])


def test_the_metrics_travel_to_other_processes() -> None:
    metrics = instance_metrics(instances("11.2"), instances("11.."))
    assert pickle.loads(pickle.dumps(metrics)) == metrics


@pytest.mark.parametrize("thresholds", [[0.4], [0.5, 0.49], [1.0], [], [math.nan]])
def test_thresholds_that_have_no_unique_pairs_or_none_at_all_are_refused(thresholds: list[float]) -> None:
    with pytest.raises(ValueError, match="IoU thresholds"):
        instance_metrics(instances("1"), instances("1"), thresholds)


def test_maps_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        instance_metrics(instances("11"), instances("1"))
    with pytest.raises(ValueError, match="positive"):
        instance_metrics(instances("11"), -instances("11"))


@pytest.mark.parametrize("seed", range(10))
def test_as_a_slow_count_pair_by_pair(seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Squares of 5 voxels with large numbers that leave gaps, of which a part is shifted, lost, joined or new.
    numbers = generator.permutation(np.arange(100, 10_000, 37))[:36].reshape(6, 6)
    reference = np.kron(numbers * (generator.random((6, 6)) < 0.7), np.ones((5, 5), dtype=np.int64))
    predicted = np.roll(reference, int(generator.integers(0, 3)), axis=1)
    predicted[generator.random(reference.shape) < 0.15] = 0
    predicted[predicted == numbers[1, 1]] = numbers[1, 2]
    predicted[generator.random(reference.shape) < 0.03] = 50_000
    metrics = instance_metrics(predicted.astype(np.uint16), reference.astype(np.int64))
    for threshold, matches in metrics.by_threshold.items():
        expected = slow_matches(predicted, reference, threshold)
        assert (matches.tp, matches.fp, matches.fn) == expected[:3]
        assert matches.iou_sum == pytest.approx(expected[3])
    assert metrics.panoptic == metrics.by_threshold[0.5]


def slow_matches(predicted: NDArray[Any], reference: NDArray[Any], threshold: float) -> tuple[int, int, int, float]:
    """TP, FP, FN and the sum of IoU, every instance compared with every other as sets of places."""
    first, second = places(predicted), places(reference)
    pairs = [(a, b) for a in first for b in second if len(a & b) / len(a | b) > threshold]
    return (
        len(pairs),
        sum(not any(a == one for one, _ in pairs) for a in first),
        sum(not any(b == one for _, one in pairs) for b in second),
        sum(len(a & b) / len(a | b) for a, b in pairs),
    )


def places(numbered: NDArray[Any]) -> list[set[int]]:
    flat = numbered.ravel().tolist()
    return [{place for place, one in enumerate(flat) if one == number} for number in set(flat) - {0}]


@pytest.mark.parametrize("seed", range(6))
def test_every_boundary_voxel_goes_to_a_nearest_cell(seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape = (7, 8, 9) if seed % 2 else (24, 26)
    labels = generator.choice(3, p=[0.35, 0.05, 0.6], size=shape).astype(np.uint8)
    found = instances_of(labels, INTERIOR, BOUNDARY)
    assert not found[labels == 0].any()
    interiors = {number: np.argwhere((labels == INTERIOR) & (found == number)) for number in range(1, found.max() + 1)}
    steps = {number: steps_from(cell, labels == BOUNDARY) for number, cell in interiors.items()}
    assert all(len(cell) for cell in interiors.values())
    for place in map(tuple, np.argwhere(labels == BOUNDARY)):
        fewest = min(there[place] for there in steps.values())
        nearest = {number for number, there in steps.items() if there[place] == fewest < math.inf}
        assert found[place] in (nearest or {0})


def steps_from(cell: NDArray[np.intp], boundary: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Steps from a cell to each boundary voxel through boundary alone, a ring at a time; infinite where none lead."""
    steps = np.full(boundary.shape, math.inf)
    ring = [tuple(place) for place in cell]
    for distance in itertools.count(1):
        reached = set()
        for place in ring:
            for step in itertools.product((-1, 0, 1), repeat=len(place)):
                near = tuple(int(index + by) for index, by in zip(place, step, strict=True))
                inside = all(0 <= index < size for index, size in zip(near, boundary.shape, strict=True))
                if inside and boundary[near] and steps[near] == math.inf:
                    steps[near] = distance
                    reached.add(near)
        if not reached:
            break
        ring = list(reached)
    return steps


def test_real_nuclei(shared: Path) -> None:
    from skimage.io import imread

    # Seven nuclei, counted by eye as well; two of them touch.
    labels = imread(shared / "data" / "Dataset018_Nuclei" / "labelsTr" / "01d44a26f6680c42.png")
    found = instances_of(labels, INTERIOR, BOUNDARY)
    assert found.max() == 7
    assert np.array_equal(found > 0, labels > 0)
    assert instance_metrics(found, found).panoptic == Matches(7, 0, 0, 7.0)


def test_the_module_loads_neither_scipy_nor_scikit_image() -> None:
    code = (
        "import sys, umamba_cli.pipeline.evaluation.instances, umamba_cli.pipeline.evaluation.lesions\n"
        "print([name for name in ('scipy', 'skimage') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_default_thresholds() -> None:
    metrics = instance_metrics(instances("1"), instances("1"))
    assert isinstance(metrics, InstanceMetrics)
    assert list(metrics.by_threshold) == [0.5, 0.6, 0.7, 0.8, 0.9]
