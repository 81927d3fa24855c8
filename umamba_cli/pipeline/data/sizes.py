"""How large cases are, from their files' headers alone: to choose a number of workers, and to name in errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from umamba_cli.pipeline.data import itk
from umamba_cli.pipeline.data.dataset import Case
from umamba_cli.pipeline.geometry import Shape, size_text
from umamba_cli.pipeline.resources import default_workers

FLOAT_BYTES = 4

COPIES = 3
"""A case is worked on in at most three times its size as float32."""


def case_shape(case: Case) -> Shape | None:
    """Voxels (channels, z, y, x) of a case's image by its files' headers; None where they cannot be read."""
    size = _header(case.images[0]) if case.images else None
    if size is None:
        return None
    components, *axes = size
    return (components * len(case.images), *axes)


def describe_case(case: Case) -> str:
    """Identifier and size: `hippocampus_017 (36x50x35, 1 channel)`."""
    shape = case_shape(case)
    if shape is None:
        return case.identifier
    return f"{case.identifier} ({size_text(shape[1:])}, {shape[0]} channel{'' if shape[0] == 1 else 's'})"


def workers_that_fit(cases: Sequence[Case], *, growth: float = 1.0) -> int:
    """Worker processes that fit the cores and, with the largest case each, the free memory.

    Args:
        cases: what is to be worked on; the largest one is told by the size of its files.
        growth: how many times more voxels a case may have after resampling; less than 1 counts as 1.
    """
    files = [case for case in cases if case.images]
    shape = case_shape(max(files, key=_file_bytes)) if files else None
    if shape is None:
        return default_workers()
    labels = math.prod(shape[1:])
    return default_workers(max(growth, 1.0) * (COPIES * FLOAT_BYTES * math.prod(shape) + labels))


def _file_bytes(case: Case) -> int:
    return sum(path.stat().st_size for path in case.images if path.is_file())


def _header(path: Path) -> tuple[int, ...] | None:
    """Components a voxel, then voxels along z, y, x (or y, x)."""
    try:
        reader = itk.read_header(path)
    except (RuntimeError, ValueError):
        return None
    return (reader.GetNumberOfComponents(), *reversed(reader.GetSize()))
