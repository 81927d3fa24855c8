"""Outlines of masks along the edges of their pixels, as polygons and as SVG paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Corner = tuple[int, int]
"""(x, y) of a pixel's corner; the pixel in row y and column x lies between (x, y) and (x + 1, y + 1)."""

_RIGHT, _DOWN, _LEFT, _UP = range(4)
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # x and y


def outlines(mask: NDArray[np.bool_]) -> list[list[Corner]]:
    """The closed outlines of a mask (y, x): outer ones clockwise as a picture is seen, those of holes the other way.

    Each is a list of the corners where it turns, without the first one again. Pixels that touch at a corner alone have
    outlines of their own. An outline runs along the picture's rim where the mask does.
    """
    edges = _edges(mask)
    following = _following(edges)
    width = edges.shape[2]
    per_direction = edges[0].size
    seen: set[int] = set()
    found = []
    for start in np.flatnonzero(edges).tolist():
        edge, corners = start, []
        while edge not in seen:
            seen.add(edge)
            after = following[edge]
            if after // per_direction != edge // per_direction:  # it turns
                y, x = divmod(after % per_direction, width)
                corners.append((x, y))
            edge = after
        if corners:
            found.append(corners)
    return found


def inset(corners: Sequence[Corner], distance: float) -> NDArray[np.float64]:
    """An outline moved into its mask, as (corners, x and y), closed: two labels side by side then show one line each.

    Args:
        corners: of one of `outlines`.
        distance: in pixels, less than half of one.
    """
    points = np.asarray(corners, dtype=np.float64)
    before = np.sign(points - np.roll(points, 1, axis=0))
    after = np.sign(np.roll(points, -1, axis=0) - points)
    inward = np.stack([-(before[:, 1] + after[:, 1]), before[:, 0] + after[:, 0]], axis=1)  # the mask lies on the right
    moved = points + distance * inward
    return np.concatenate([moved, moved[:1]])


def svg_path(mask: NDArray[np.bool_]) -> str:
    """The outlines as the `d` of an SVG path in units of pixels; "" of an empty mask."""
    return "".join(_loop(corners) for corners in outlines(mask))


def _edges(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether an edge of the outline starts at a corner, (direction, y, x); the mask lies on its right hand."""
    height, width = mask.shape
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    edges = np.zeros((4, height + 1, width + 1), dtype=bool)
    edges[_RIGHT, :height, :width] = inside & ~padded[:-2, 1:-1]
    edges[_DOWN, :height, 1:] = inside & ~padded[1:-1, 2:]
    edges[_LEFT, 1:, 1:] = inside & ~padded[2:, 1:-1]
    edges[_UP, 1:, :width] = inside & ~padded[1:-1, :-2]
    return edges


def _following(edges: NDArray[np.bool_]) -> dict[int, int]:
    """The edge after each, both as places in the flattened array; where two begin, the one that keeps to the pixel."""
    following: dict[int, int] = {}
    for direction, (step_x, step_y) in enumerate(_STEPS):
        y, x = np.nonzero(edges[direction])
        end_y, end_x = y + step_y, x + step_x
        turns = [(direction + turn) % 4 for turn in (1, 0, 3)]  # right, straight on, left
        chosen = np.select([edges[turn, end_y, end_x] for turn in turns], turns)
        places = np.ravel_multi_index((np.full_like(y, direction), y, x), edges.shape)
        ends = np.ravel_multi_index((chosen, end_y, end_x), edges.shape)
        following.update(zip(places.tolist(), ends.tolist(), strict=True))
    return following


def _loop(corners: Sequence[Corner]) -> str:
    return "".join([f"M{corners[0][0]} {corners[0][1]}", *_moves(corners), "z"])


def _moves(corners: Sequence[Corner]) -> Iterator[str]:
    """Steps to all corners but the first; `z` makes the last one."""
    for (x, y), (next_x, next_y) in pairwise(corners):
        yield f"v{next_y - y}" if next_x == x else f"h{next_x - x}"
