from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from umamba_cli.pipeline.devices import Compute
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.inference.sliding_window import Window, WindowOptions
from umamba_cli.pipeline.inference.tiles import gaussian_weight, padding_to, tile_boxes, tile_starts

CPU = Compute(torch.device("cpu"), "fp32", "a test")


@pytest.mark.parametrize(
    ("size", "tile", "step", "starts"),
    [
        (64, 64, 0.5, [0]),
        (110, 64, 0.5, [0, 23, 46]),
        (128, 64, 0.5, [0, 32, 64]),
        (128, 64, 1.0, [0, 64]),
        (65, 64, 0.5, [0, 1]),
    ],
)
def test_tiles_are_spread_evenly_from_end_to_end(size: int, tile: int, step: float, starts: list[int]) -> None:
    assert tile_starts(size, tile, step) == starts


@pytest.mark.parametrize("step", [0.3, 0.5, 1.0])
def test_every_voxel_is_in_a_tile(step: float) -> None:
    covered = np.zeros((19, 33, 40), dtype=int)
    for box in tile_boxes(covered.shape, (8, 16, 16), step):
        covered[box.slices] += 1
    assert covered.min() >= 1


def test_a_bad_step_is_refused() -> None:
    for step in (0.0, 1.5):
        with pytest.raises(InputError, match="step"):
            WindowOptions(step)


def test_the_weight_is_highest_in_the_middle_and_nowhere_zero() -> None:
    weight = gaussian_weight((16, 24))
    assert weight.argmax() == 8 * 24 + 12
    assert float(weight.max()) == pytest.approx(10)
    assert float(weight.min()) > 0


def test_padding_is_centred() -> None:
    assert padding_to((5, 20), (8, 16)) == ((8, 20), [(1, 2), (0, 0)])


class Voxelwise(nn.Module):
    """A network that looks at each voxel alone: tiled or not, the answer is the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, x.square(), -x), dim=1)


@pytest.mark.parametrize("shape", [(5, 9, 11), (8, 16, 16), (13, 40, 21)])
@pytest.mark.parametrize("mirror_axes", [(), (0, 1, 2)])
def test_a_volume_split_into_tiles_comes_together_again(shape: tuple[int, ...], mirror_axes: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    logits = Window([Voxelwise()], (8, 16, 16), CPU, WindowOptions(0.5, mirror_axes)).logits(image)
    np.testing.assert_allclose(logits, np.concatenate((image, image**2, -image)), rtol=1e-5, atol=1e-5)


def test_slices_for_a_flat_network() -> None:
    image = np.random.default_rng(0).standard_normal((1, 3, 20, 21)).astype(np.float32)
    logits = Window([Voxelwise()], (16, 16), CPU, WindowOptions(0.5, (0, 1))).logits(image)
    np.testing.assert_allclose(logits, np.concatenate((image, image**2, -image)), rtol=1e-5, atol=1e-5)


class Position(nn.Module):
    """A network whose answer depends on where in the tile a voxel is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.arange(x.shape[-1], dtype=x.dtype).expand_as(x)


def test_mirrored_answers_are_turned_back_before_they_are_averaged() -> None:
    image = np.zeros((1, 8, 16, 16), dtype=np.float32)
    plain = Window([Position()], (8, 16, 16), CPU, WindowOptions()).logits(image)
    np.testing.assert_allclose(plain[0, 0, 0], np.arange(16), rtol=1e-6)
    mirrored = Window([Position()], (8, 16, 16), CPU, WindowOptions(mirror_axes=(2,))).logits(image)
    np.testing.assert_allclose(mirrored, np.full_like(image, 7.5), rtol=1e-6)


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, self.value)


def test_networks_are_averaged() -> None:
    image = np.zeros((1, 8, 16, 16), dtype=np.float32)
    logits = Window([Constant(1.0), Constant(4.0)], (8, 16, 16), CPU, WindowOptions()).logits(image)
    np.testing.assert_allclose(logits, 2.5)
