"""Reading an evaluation back: the cases of `summary.json`, or of a part of one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic

from umamba_cli.pipeline.data.dataset import Label
from umamba_cli.pipeline.evaluation.case import CaseMetrics
from umamba_cli.pipeline.evaluation.instances import PANOPTIC_THRESHOLD, InstanceMetrics, Matches
from umamba_cli.pipeline.evaluation.lesions import LesionCounts
from umamba_cli.pipeline.evaluation.metrics import SCORES, LabelMetrics

LabelKey = Annotated[str, pydantic.StringConstraints(pattern=r"^([0-9]+|\([0-9, ]+\))$")]
"""A label, or a region, as JSON has it; see `Evaluation.to_json`."""

_Number = int | float | None


class _Instances(pydantic.BaseModel):
    matches: dict[str, dict[str, int | float]]


class SavedCase(pydantic.BaseModel):
    """A case as `results.case_to_json` wrote it; of older versions fewer figures."""

    case: str
    predicted: bool = True
    voxels: int = 0
    is_picture: bool = False
    labels: dict[LabelKey, dict[str, _Number | dict[str, dict[str, int]]]]
    instances: _Instances | None = None

    @pydantic.model_validator(mode="after")
    def _is_readable(self) -> SavedCase:
        try:
            self.metrics()
        except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{self.case}: figures are no figures of a case ({error})") from error
        return self

    @property
    def is_complete(self) -> bool:
        """Whether it has all figures of today."""
        return all(set(SCORES) <= figures.keys() for figures in self.labels.values())

    def metrics(self) -> CaseMetrics:
        """The case itself; a figure that is not there is NaN."""
        return CaseMetrics(
            self.case,
            {label_of(key): _label_metrics(figures) for key, figures in self.labels.items()},
            self.voxels,
            self.predicted,
            self.is_picture,
            _instance_metrics(self.instances.matches) if self.instances else None,
        )


def label_of(key: str) -> Label:
    """`3` as 3, `(1, 2, 3)` as (1, 2, 3)."""
    numbers = tuple(int(number) for number in re.findall(r"[0-9]+", key))
    return numbers if key.startswith("(") else numbers[0]


def _label_metrics(figures: Mapping[str, Any]) -> LabelMetrics:
    """From JSON, which has no NaN."""
    numbers = {name: math.nan if figures.get(name) is None else _number(figures[name]) for name in SCORES}
    sizes = {name: LesionCounts(**counts) for name, counts in (figures.get("sizes") or {}).items()}
    return LabelMetrics(**numbers, sizes=sizes)


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):  # OverflowError where no float is as large
        raise ValueError(f"{value} is no number")
    return value


def _instance_metrics(matches: Mapping[str, Mapping[str, Any]]) -> InstanceMetrics:
    by_threshold = {float(threshold): Matches(**counts) for threshold, counts in matches.items()}
    return InstanceMetrics(by_threshold, by_threshold.get(PANOPTIC_THRESHOLD, Matches()))
