"""What is asked of an evaluation, from what a user writes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from umamba_cli.pipeline.data.dataset import DatasetDescription, Label
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.evaluation.case import CellLabels, Task
from umamba_cli.pipeline.evaluation.lesions import DIAMETERS
from umamba_cli.pipeline.evaluation.metrics import Measures

INTERIOR, BOUNDARIES = "interior", ("boundary", "border")
"""Names of labels that stand for touching objects, such as cells."""


def task_of(description: DatasetDescription | None, measures: Measures | None = None) -> Task:
    """What to look for in a dataset, measured as usual; cells too where its labels are called interior and boundary."""
    return Task(description, measures or Measures(), _cells_by_name(description))


def new_task(
    description: DatasetDescription | None,
    *,
    tolerances: Sequence[str] = (),
    sizes: str | None = None,
    cells: str | None = None,
) -> Task:
    """What to look for, as options say it.

    Args:
        description: of the dataset; None: all labels that are found.
        tolerances: `2` for all labels, `liver=2` or `1=2` for one of them.
        sizes: diameters between classes of size, `5,10,20`.
        cells: the labels of interiors and boundaries, `interior,boundary` or `1,2`.

    Raises:
        InputError: an option is wrong, or names a label that there is not.
    """
    names: Mapping[str, Label] = {name: label for label, name in description.targets.items()} if description else {}
    tolerance, by_label = 1.0, {}
    for text in tolerances:
        name, is_one, value = text.rpartition("=")
        number = _number("--tolerance", value)
        if is_one:
            by_label[_label(name, names, description)] = number
        else:
            tolerance = number
    measures = Measures(tolerance, by_label, _diameters(sizes) if sizes is not None else DIAMETERS)
    task = task_of(description, measures)
    return task if cells is None else Task(description, measures, _cells(cells, names, description))


def _cells_by_name(description: DatasetDescription | None) -> CellLabels | None:
    if description is None or description.has_regions:
        return None
    values = {name.lower(): value for value, name in description.foreground.items()}
    boundary = next((values[name] for name in BOUNDARIES if name in values), None)
    return CellLabels(values[INTERIOR], boundary) if INTERIOR in values and boundary is not None else None


def _cells(text: str, names: Mapping[str, Label], description: DatasetDescription | None) -> CellLabels:
    labels = [_label(part.strip(), names, description) for part in text.split(",")]
    values = [label for label in labels if isinstance(label, int)]
    if len(labels) != 2 or len(values) != 2 or values[0] == values[1] or 0 in values:
        raise InputError(
            f"--instances {text!r} does not name two labels", next_step="give both, as --instances interior,boundary"
        )
    return CellLabels(*values)


def _label(text: str, names: Mapping[str, Label], description: DatasetDescription | None) -> Label:
    if text in names:
        return names[text]
    value = int(text) if text.isascii() and text.isdigit() else None
    if value is None or (description is not None and value not in names.values()):
        known = ", ".join(f"{label} {name}" for name, label in names.items())
        next_step = f"choose one of: {known}" if known else "give its value, or --dataset, which knows names"
        raise InputError(f"there is no label {text!r}", next_step=next_step)
    return value


def _diameters(text: str) -> tuple[float, ...]:
    diameters = tuple(_number("--sizes", part) for part in text.split(","))
    if any(low >= high for low, high in itertools.pairwise(diameters)):
        raise InputError(f"--sizes {text!r} do not rise", next_step="give the smallest diameter first, as 5,10,20")
    return diameters


def _number(option: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise InputError(f"{option} {text!r} is no number above 0", next_step="give millimetres, such as 2.5")
    return number
