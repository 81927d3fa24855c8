"""Removing from label maps what can hardly be right: pieces beside the largest one, holes within a label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field

from umamba_cli.pipeline.data.files import read_json, validated, write_json
from umamba_cli.pipeline.errors import InputError

POSTPROCESSING_FORMAT = 1
HIGHEST_LABEL = 2**16 - 1

Operation = Literal["keep_largest", "fill_holes"]


class Step(pydantic.BaseModel):
    """One thing to do to a label map."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    operation: Operation
    """`keep_largest`: of all connected pieces only the largest stays, the others become background. `fill_holes`:
    background that is enclosed gets the label."""

    labels: Annotated[tuple[Annotated[int, Field(ge=1, le=HIGHEST_LABEL)], ...], Field(min_length=1)]
    """Label values, taken together as one; what is filled gets the first."""


class Postprocessing(pydantic.BaseModel):
    """`postprocessing.json`: what to do, in this order, and what was found about it."""

    model_config = pydantic.ConfigDict(frozen=True, extra="allow")

    format: int = POSTPROCESSING_FORMAT
    steps: tuple[Step, ...] = ()
    tried: tuple[dict[str, Any], ...] = ()
    """Every step that was looked at, with the mean Dice of each label before and after, and whether it was kept."""

    outdated: tuple[str, ...] = ()
    """Beside label maps that steps were applied to: those that other steps made, which are still to be made again."""


def postprocessing_file(model_folder: Path) -> Path:
    """Where what was found lies: beside a model's folds; and what was applied: beside the new label maps."""
    return model_folder / "postprocessing.json"


def read_postprocessing(
    path: Path, *, next_step: str = "find it anew with `umamba postprocess find`"
) -> Postprocessing:
    """Read `postprocessing.json`.

    Raises:
        InputError: it is missing, damaged or of an unknown format; `next_step` is what to do then.
    """
    if path.suffix == ".zip":
        raise InputError(
            f"{path} is a bundle, which holds no postprocessing",
            next_step="give the postprocessing.json that lies beside the folds of its model",
        )
    found = validated(
        Postprocessing.model_validate, read_json(path, next_step=next_step), source=str(path), next_step=next_step
    )
    if found.format != POSTPROCESSING_FORMAT:
        raise InputError(
            f"{path} has format {found.format}, this umamba knows {POSTPROCESSING_FORMAT}", next_step="update umamba"
        )
    return found


def write_postprocessing(path: Path, found: Postprocessing) -> None:
    """Write `postprocessing.json`, whole or not at all."""
    write_json(path, found)


def postprocess(labels: NDArray[np.integer[Any]], steps: Sequence[Step]) -> NDArray[np.integer[Any]]:
    """A label map (z, y, x) after some steps; the one given is not changed.

    It has the same type, or a wider one where that could not hold the labels that holes are filled with.
    """
    filled = [step.labels[0] for step in steps if step.operation == "fill_holes"]
    result = labels.astype(np.result_type(labels.dtype, *map(np.min_scalar_type, filled)))
    for step in steps:
        mask = np.isin(result, step.labels)
        if step.operation == "keep_largest":
            result[mask & ~largest_piece(mask)] = 0
        else:
            result[enclosed(mask) & (result == 0)] = step.labels[0]
    return result


def largest_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected piece of a mask with the most voxels (the first of equals); voxels touch in a corner at least.

    Source: nnU-Net's postprocessing, which connects as widely.
    """
    from scipy.ndimage import find_objects, label

    pieces, count = label(mask, np.ones((3,) * mask.ndim))
    if count <= 1:
        return mask
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    largest = int(sizes.argmax()) + 1
    result = np.zeros_like(mask)
    box = find_objects(pieces, largest)[largest - 1]
    result[box] = pieces[box] == largest
    return result


def enclosed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What is not in a mask (z, y, x) and has no way out of it; of a single slice, within the slice."""
    from scipy.ndimage import binary_fill_holes

    filled: NDArray[np.bool_] = binary_fill_holes(mask[0])[None] if len(mask) == 1 else binary_fill_holes(mask)
    enclosed: NDArray[np.bool_] = filled & ~mask
    return enclosed
