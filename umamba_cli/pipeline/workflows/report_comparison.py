"""What a report takes from `compare/comparison.json`."""

from __future__ import annotations

import pydantic

from umamba_cli.pipeline.data.files import read_model
from umamba_cli.pipeline.data.workspace import Workspace
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.reporting.html_report import ComparisonTables, Table
from umamba_cli.pipeline.workflows.comparison_files import comparison_file, comparison_folder


class _Table(pydantic.BaseModel):
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    @pydantic.model_validator(mode="after")
    def _is_rectangular(self) -> _Table:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError("has rows of other lengths than its columns")
        return self


class _Saved(pydantic.BaseModel):
    verdicts: dict[str, str]
    mamba_verdict: str | None
    tables: tuple[_Table, ...]
    trainings: tuple[str, ...]
    missing: dict[str, str]
    made: str


def read_comparison(workspace: Workspace) -> tuple[ComparisonTables | None, tuple[str, ...]]:
    """The comparison of a workspace's models, and what is wrong with it; None where there is none to show."""
    file = comparison_file(comparison_folder(workspace))
    if not file.is_file():
        return None, ()
    try:
        saved = read_model(file, _Saved, next_step="compare again")
    except InputError as error:
        return None, (f"The comparison is left out: {error.problem}.",)
    if not saved.verdicts:
        return None, ()
    count, missing = len(saved.trainings), len(saved.missing)
    made = saved.made.replace("T", " ")
    state = f"This was compared from {count} trainings, {made}."
    if missing:
        state = f"So far {count} of {count + missing} trainings are compared, {made}; the verdicts may change."
    verdicts = (*saved.verdicts.values(), *([saved.mamba_verdict] if saved.mamba_verdict else []), state)
    return ComparisonTables(verdicts, tuple(Table(**dict(table)) for table in saved.tables)), ()
