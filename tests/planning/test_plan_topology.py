"""Strides, kernels and patches, worked out by hand."""

from __future__ import annotations

import pytest

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.planning.topology import Topology, find_topology, initial_patch, shrink


def test_cube_is_halved_down_to_4_voxels() -> None:
    # 32 -> 16 -> 8 -> 4
    topology = find_topology((1.0, 1.0, 1.0), (32, 32, 32))
    assert topology.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert topology.kernel_sizes == ((3, 3, 3),) * 4
    assert topology.patch_size == (32, 32, 32)
    assert topology.divisor == (8, 8, 8)
    assert topology.n_stages == 4


def test_thick_slices_are_halved_late_and_their_kernels_are_flat_at_first() -> None:
    # Spacing (5, 1, 1), (5, 2, 2), (5, 4, 4): similar from here on; z ends at 4 voxels, y and x go on alone.
    topology = find_topology((5.0, 1.0, 1.0), (16, 128, 128))
    assert topology.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    assert topology.kernel_sizes == ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))


def test_last_kernel_is_3_even_where_an_axis_never_became_similar() -> None:
    topology = find_topology((100.0, 1.0, 1.0), (10, 16, 16))
    assert topology.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2))
    assert topology.kernel_sizes == ((1, 3, 3), (1, 3, 3), (3, 3, 3))


def test_factor_2_is_not_similar() -> None:
    assert find_topology((2.0, 1.0), (16, 16)).strides[1] == (1, 2)
    assert find_topology((1.99, 1.0), (16, 16)).strides[1] == (2, 2)


@pytest.mark.parametrize(("length", "stages"), [(8, 1), (11, 1), (12, 2)])
def test_a_single_axis_is_halved_from_12_voxels_on(length: int, stages: int) -> None:
    assert find_topology((1.0, 1.0), (length, 4)).n_stages == stages


def test_two_axes_are_halved_from_8_voxels_on() -> None:
    assert find_topology((1.0, 1.0), (8, 8)).n_stages == 2
    assert find_topology((1.0, 1.0), (7, 7)).n_stages == 1


def test_patch_grows_to_what_the_strides_divide() -> None:
    # 30 -> 15 -> 8 (rounded up) -> 4
    assert find_topology((1.0, 1.0), (30, 30)).patch_size == (32, 32)
    assert find_topology((1.0, 1.0), (29.5, 30)).patch_size == (32, 32)


def test_shrinking_takes_the_divisor_that_the_smaller_patch_has() -> None:
    # 256 is divided by 64; 192 would be by 32, and so 224 is a patch too.
    square = find_topology((1.0, 1.0), (256, 256))
    assert square.divisor == (64, 64)
    assert shrink(square, (1.0, 1.0), (300, 200)).patch_size == (256, 224)
    assert shrink(square, (1.0, 1.0), (200, 300)).patch_size == (224, 256)


def test_shrinking_takes_the_last_of_equal_axes() -> None:
    cube = find_topology((1.0, 1.0, 1.0), (64, 64, 64))
    assert shrink(cube, (1.0, 1.0, 1.0), (90.0, 90.0, 90.0)).patch_size == (64, 64, 56)


def test_shrinking_ends_in_an_error() -> None:
    voxel = Topology((1, 1), ((1, 1),), ((3, 3),))
    with pytest.raises(InputError, match="no patch fits the memory: 1x1") as caught:
        shrink(voxel, (1.0, 1.0), (1, 1))
    assert "--memory" in caught.value.next_step


def test_initial_patch_is_cubic_in_mm_and_within_the_image() -> None:
    assert initial_patch((1.0, 1.0, 1.0), (900, 900, 900)) == (256, 256, 256)
    assert initial_patch((8.0, 1.0, 1.0), (900, 900, 900)) == (64, 512, 512)
    assert initial_patch((8.0, 1.0, 1.0), (20, 301.5, 900)) == (20, 301.5, 512)
    assert initial_patch((2.0, 2.0), (9000, 9000)) == (2048, 2048)
