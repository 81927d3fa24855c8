"""The logits of whole preprocessed images, tile by tile, from one network or several.

Tiles of one image after the other go through the networks in batches, those of small images together; each image's
logits leave it slab by slab, as soon as no further tile touches them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from umamba_cli.pipeline.devices import Compute, channels_last
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Shape
from umamba_cli.pipeline.inference.tile_sums import Slab, TiledImage
from umamba_cli.pipeline.inference.tiles import gaussian_weight

Key = TypeVar("Key")

_VOXELS_A_BATCH = {"cpu": 1 << 20, "cuda": 1 << 23}
"""Voxels that go through a network together: so many keep a device busy, more only take memory."""


@dataclass(frozen=True)
class WindowOptions:
    """How an image is looked at."""

    step: float = 0.5
    """Distance between tiles, as a share of a tile."""

    mirror_axes: tuple[int, ...] = ()
    """Spatial axes to mirror; the logits of all combinations are averaged."""

    sums: str = "auto"
    """Where the sums of tiles lie: `device`, `memory`, `file`, or `auto`, by what is free."""

    def __post_init__(self) -> None:
        if not 0 < self.step <= 1:
            raise InputError(
                f"the step between tiles is {self.step}", next_step="give a share of the patch above 0, at most 1"
            )


@dataclass(frozen=True)
class Window:
    """What looks at images: networks, their patch, a device."""

    networks: Sequence[nn.Module]
    """In evaluation mode, on the device; they answer with full-resolution logits."""

    patch_size: Shape
    """What the networks take: (z, y, x), or (y, x), for which slices are worked on one by one."""

    compute: Compute
    options: WindowOptions

    probabilities_of: Callable[[Tensor], Tensor] | None = None
    """Logits (batch, outputs, ...) to probabilities, which then are averaged too, as further outputs."""

    @torch.inference_mode()
    def slabs(self, images: Iterable[tuple[Key, NDArray[np.float32]]]) -> Iterator[tuple[Key, Slab]]:
        """The logits of images, averaged over networks and mirrorings.

        Args:
            images: preprocessed, float32 (channels, z, y, x), each with what the caller knows it by. The next one is
                taken when there is room for its tiles in a batch.

        Yields:
            An image's key and a slab of its logits, followed by its probabilities where these are wanted; slabs of an
            image come in order, images in theirs. A slab is to be used before the next is asked for.
        """
        tiles = ((key, image, box) for key, image in self._tiled(images) for box in image.boxes)
        flips = _flips(self.options.mirror_axes)
        voxels = math.prod(self.patch_size)
        at_once = max(1, _VOXELS_A_BATCH.get(self.compute.device.type, 1 << 20) // voxels)
        count = max(1, at_once // len(flips))
        while group := list(itertools.islice(tiles, count)):
            answers = [*self._answers([image.tile(box) for _, image, box in group], flips, at_once)]
            for key, image, box in group:
                for slab in image.add(box, answers.pop(0)):  # kept no longer: it may be as large as all the rest
                    yield key, slab

    def logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """All logits of one image, float32 (outputs, z, y, x), in memory; see `slabs`."""
        logits: NDArray[np.float32] | None = None
        for _, slab in self.slabs([(None, image)]):
            if logits is None:
                logits = np.empty((slab.values.shape[-1], *image.shape[1:]), dtype=np.float32)
            logits[:, slab.planes] = slab.values.movedim(-1, 0).cpu().numpy()
        assert logits is not None
        return logits

    def _tiled(self, images: Iterable[tuple[Key, NDArray[np.float32]]]) -> Iterator[tuple[Key, TiledImage]]:
        tile = self.patch_size if len(self.patch_size) == 3 else (1, *self.patch_size)
        weight = _weight(self.patch_size).view(tile)
        for key, image in images:
            yield key, TiledImage(image, tile, self.options.step, weight, place=self.options.sums)

    def _answers(self, tiles: Sequence[Tensor], flips: Sequence[tuple[int, ...]], at_once: int) -> Tensor:
        """Tiles (channels, z, y, x) to averaged logits (tiles, z, y, x, outputs) and what `slabs` says.

        In float32, but for what a single network says of tiles as they are: this stays in its own precision.
        """
        flat = len(self.patch_size) == 2
        batch = torch.stack([tile[:, 0] if flat else tile for tile in tiles])
        batch = batch.to(self.compute.device, memory_format=channels_last(len(self.patch_size)))
        count = len(self.networks) * len(flips)
        total: Tensor | None = None
        for some in _parts(flips, max(1, at_once // len(tiles))):
            turned = torch.cat([batch.flip(flip) if flip else batch for flip in some])
            for network in self.networks:
                with self.compute.autocast():
                    answers = network(turned)
                for flip, answer in zip(some, answers.chunk(len(some)), strict=True):
                    back = answer.flip(flip) if flip else answer
                    if self.probabilities_of is not None:
                        back = torch.cat([back, self.probabilities_of(back.float())], dim=1)
                    if total is not None:
                        total += back
                    else:
                        total = back if count == 1 else back.to(torch.float32, copy=True)
        assert total is not None
        mean = (total if count == 1 else total.div_(count)).movedim(1, -1)
        return mean[:, None] if flat else mean


def _parts(items: Sequence[tuple[int, ...]], size: int) -> list[Sequence[tuple[int, ...]]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


@lru_cache(maxsize=8)
def _weight(patch_size: Shape) -> Tensor:
    return gaussian_weight(patch_size)


def _flips(mirror_axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Every combination of axes to flip, none of them first, as dimensions of (batch, channels, ...)."""
    dimensions = [axis + 2 for axis in mirror_axes]
    return [flip for count in range(len(dimensions) + 1) for flip in itertools.combinations(dimensions, count)]
