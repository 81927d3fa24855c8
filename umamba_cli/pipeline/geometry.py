"""Small frozen value types for places and sizes in images.

Axes are z, y, x throughout; only `Grid.origin_mm` and `Grid.direction` keep SimpleITK's x, y, z order, because they are
handed back to it unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]
Spacing = tuple[float, ...]

# nnU-Net's convention for the missing axis of a 2D image: a slice so thick that no rule ever resamples along it.
FLAT_SPACING_MM = 999.0

# An axis more than this many times coarser than the finest one is "thick": nnU-Net resamples it apart.
ANISOTROPY_THRESHOLD = 3.0


@dataclass(frozen=True)
class Box:
    """A half-open box of voxels, `start[i] <= index < stop[i]` along each axis."""

    start: Shape
    stop: Shape

    def __post_init__(self) -> None:
        if len(self.start) != len(self.stop):
            raise ValueError(f"box start {self.start} and stop {self.stop} differ in length")

    @property
    def shape(self) -> Shape:
        """Voxels along each axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index into an array of the same axes."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    @property
    def slices_of_channels(self) -> tuple[slice, ...]:
        """The box as an index into an array (channels, *axes)."""
        return (slice(None), *self.slices)

    def clipped_to(self, shape: Sequence[int]) -> Box:
        """The part of the box inside an array of `shape`; may be empty, never negative."""
        start = tuple(min(max(a, 0), n) for a, n in zip(self.start, shape, strict=True))
        stop = tuple(min(max(b, a), n) for a, b, n in zip(start, self.stop, shape, strict=True))
        return Box(start, stop)


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an image lie in space.

    A 2D image has shape (1, y, x) and `FLAT_SPACING_MM` as its first spacing.
    """

    shape: Shape
    """Voxels along z, y, x."""

    spacing_mm: Spacing
    """Millimetres between voxel centres along z, y, x."""

    origin_mm: tuple[float, ...]
    """Centre of voxel 0 in x, y, z (two numbers for a 2D file)."""

    direction: tuple[float, ...]
    """Direction cosines, row-major, in x, y, z (four numbers for a 2D file)."""

    @property
    def is_2d_file(self) -> bool:
        """True where the file itself has two axes and the first one here was added."""
        return len(self.origin_mm) == 2

    def differences(self, other: Grid, *, relative_spacing: float = 1e-4, absolute: float = 1e-3) -> list[str]:
        """What differs from another grid, in words; empty where they are the same.

        Spacings are compared relatively, origins and directions absolutely.
        """
        if self.shape != other.shape:
            return [f"size is {size_text(self.shape)} and {size_text(other.shape)}"]
        found = []
        if not _all_close(self.spacing_mm, other.spacing_mm, relative=relative_spacing):
            spacings = f"{numbers_text(self.spacing_mm)} and {numbers_text(other.spacing_mm)}"
            found.append(f"spacing is {spacings} mm (z, y, x)")
        if not _all_close(self.origin_mm, other.origin_mm, absolute=absolute):
            found.append(f"origin is {numbers_text(self.origin_mm)} and {numbers_text(other.origin_mm)} mm (x, y, z)")
        if not _all_close(self.direction, other.direction, absolute=absolute):
            found.append(f"direction is {numbers_text(self.direction)} and {numbers_text(other.direction)}")
        return found

    def to_json(self) -> dict[str, Any]:
        """A dictionary of lists, for a JSON file."""
        return {
            "shape": list(self.shape),
            "spacing_mm": list(self.spacing_mm),
            "origin_mm": list(self.origin_mm),
            "direction": list(self.direction),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Grid:
        """The grid that `to_json` wrote."""
        return cls(
            shape=tuple(content["shape"]),
            spacing_mm=tuple(content["spacing_mm"]),
            origin_mm=tuple(content["origin_mm"]),
            direction=tuple(content["direction"]),
        )


def _all_close(a: Sequence[float], b: Sequence[float], *, relative: float = 0.0, absolute: float = 0.0) -> bool:
    return len(a) == len(b) and all(
        math.isclose(x, y, rel_tol=relative, abs_tol=absolute) for x, y in zip(a, b, strict=True)
    )


def size_text(shape: Sequence[int]) -> str:
    """(36, 50, 35) as `36x50x35`."""
    return "x".join(str(n) for n in shape)


def numbers_text(values: Sequence[float]) -> str:
    """(1.0, 0.5, 0.5) as `1 0.5 0.5`, six digits at most."""
    return " ".join(f"{v:.6g}" for v in values)


def resampled_shape(shape: Sequence[int], spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]) -> Shape:
    """Voxels along each axis after resampling to a new spacing: the nearest whole number of steps.

    Source: nnU-Net's `compute_new_shape`. Python's `round` (half to even) is part of the rule.
    """
    sizes = zip(shape, spacing_mm, new_spacing_mm, strict=True)
    return tuple(max(1, round(old / new * n)) for n, old, new in sizes)
