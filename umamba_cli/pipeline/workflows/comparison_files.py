"""The result of a comparison, and the files that it is written to."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import umamba_cli
from umamba_cli.pipeline.data.files import read_json, write_json, write_text
from umamba_cli.pipeline.data.workspace import Workspace
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.evaluation.comparison import Comparison
from umamba_cli.pipeline.evaluation.metrics import SCORES
from umamba_cli.pipeline.evaluation.tables import case_cells
from umamba_cli.pipeline.reporting.html_report import Table
from umamba_cli.pipeline.runs.record import now
from umamba_cli.pipeline.workflows.compare_tables import comparison_tables
from umamba_cli.pipeline.workflows.compared import Source
from umamba_cli.pipeline.workflows.costs import ModelCost


@dataclass(frozen=True)
class ComparisonResult:
    """What `compare_models` or `compare_folders` found so far."""

    file: Path
    comparison: Comparison | None
    """None as long as fewer than two models have a result."""

    trainings: tuple[str, ...]
    """What was compared."""

    dataset: str
    unit: str
    """Of distances, `mm` or `px`."""

    missing: Mapping[str, str] = field(default_factory=dict)
    """Trainings that are not there yet, and why."""

    unpredicted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of folders of predictions: the cases that are not in them, and count as such where nothing was found."""

    left_out: tuple[str, ...] = ()
    """References that no folder has a prediction of."""

    costs: tuple[ModelCost, ...] = ()
    notes: tuple[str, ...] = ()
    """What could not be measured, and why."""

    regime: Mapping[str, Any] = field(default_factory=dict)
    """Configuration, folds, and the settings that all trainings share."""

    @property
    def tables(self) -> tuple[Table, ...]:
        """For a screen, or a report."""
        return comparison_tables(self.comparison, self.costs)

    def to_json(self) -> dict[str, Any]:
        """The content of `comparison.json`; NaN becomes null when it is written."""
        return {
            "verdict": self.comparison.verdict if self.comparison else None,
            "verdicts": self.comparison.verdicts if self.comparison else {},
            "mamba_verdict": self.comparison.mamba_verdict if self.comparison else None,
            "complete": not self.missing,
            "missing": dict(self.missing),
            "unpredicted": dict(self.unpredicted),
            "left_out": self.left_out,
            "notes": self.notes,
            "trainings": self.trainings,
            "dataset": self.dataset,
            "unit": self.unit,
            "regime": dict(self.regime),
            "costs": [asdict(cost) for cost in self.costs],
            "comparison": self.comparison.to_json() if self.comparison else None,
            "tables": [asdict(table) for table in self.tables],
            "made": now(),
            "version": umamba_cli.__version__,
        }


def comparison_folder(workspace: Workspace) -> Path:
    """Where the result lies unless told otherwise."""
    return workspace.folder / "compare"


def comparison_file(folder: Path) -> Path:
    """The result in its folder."""
    return folder / "comparison.json"


def require_own_folder(folder: Path, configuration: str) -> None:
    """Make sure that a result can be written to a folder without a loss.

    Args:
        folder: of the result.
        configuration: that is compared; "" for folders of predictions.

    Raises:
        InputError: it is a file, or holds the comparison of another configuration.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is no folder", next_step="choose a folder for the result with -o")
    file = comparison_file(folder)
    try:
        there = str(read_json(file)["regime"].get("configuration", "")) if file.is_file() else configuration
    except (InputError, AttributeError, KeyError, TypeError):  # a damaged result is no loss
        return
    if there != configuration:
        raise InputError(
            f"{file} is the comparison of {there or 'folders of predictions'}, which would be lost",
            next_step="choose another folder with -o, or remove that one",
        )


def write_comparison(result: ComparisonResult, sources: Sequence[Source]) -> ComparisonResult:
    """Write `comparison.json`, and beside it `cases.csv`, all figures of all cases.

    Raises:
        WorkError: a file cannot be written.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["model", "seed", "fold", "case", "predicted", "label", "name", *SCORES])
    for source in sources:
        for case in source.cases:
            rows = (case_cells(case, label, source.label_names.get(str(label), "")) for label in case.labels)
            table.writerows([source.model, source.seed, source.fold, *row] for row in rows)
    write_text(result.file.with_name("cases.csv"), text.getvalue())
    write_json(result.file, result.to_json())
    return result
