"""`umamba report`: what a workspace holds, gathered for one page. Nothing of the workspace is changed.

What is missing or cannot be read is said on the page and hides nothing else: a report is asked for early, from a
workspace whose trainings run, and late, when the images have been moved away.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import umamba_cli
from umamba_cli.pipeline.data.dataset import Dataset, DatasetDescription
from umamba_cli.pipeline.data.files import beginning_of, read_model, write_text
from umamba_cli.pipeline.data.splits import read_folds
from umamba_cli.pipeline.data.workspace import Workspace
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import FLAT_SPACING_MM, numbers_text, size_text
from umamba_cli.pipeline.planning.fingerprint import Fingerprint
from umamba_cli.pipeline.planning.plans import Configuration, Plans, read_plans
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress
from umamba_cli.pipeline.reporting.html_report import (
    MOST_BYTES,
    CaseView,
    ComparisonTables,
    ReportContent,
    Table,
    render_report,
)
from umamba_cli.pipeline.workflows.report_cases import case_view
from umamba_cli.pipeline.workflows.report_comparison import read_comparison
from umamba_cli.pipeline.workflows.report_models import shown_models
from umamba_cli.pipeline.workflows.report_results import (
    Results,
    read_results,
    result_figures,
    result_tables,
    worst_table,
)
from umamba_cli.pipeline.workflows.report_trainings import (
    Models,
    cell,
    overview_figure,
    training_views,
    trainings_table,
)
from umamba_cli.pipeline.workflows.status import RunStatus, survey_runs
from umamba_cli.pipeline.workflows.variants import variant_in

_ROOM_FOR_TEXT = 50_000  # bytes that the cases' own texts and tables take
_MOST_MODELS_IN_SHORT = 8
_LONGEST_BEGINNING = 200


@dataclass(frozen=True)
class WrittenReport:
    """What was written."""

    size_bytes: int
    trainings: int
    models: int
    """Those with results."""

    cases: int
    """Those with pictures."""

    notes: tuple[str, ...]
    """What is missing; the page says it too."""

    def to_json(self) -> dict[str, Any]:
        """A dictionary for a JSON document."""
        return asdict(self)


def write_report(
    workspace: Workspace,
    path: Path,
    *,
    made: datetime | None = None,
    on_progress: OnProgress = ignore_progress,
) -> WrittenReport:
    """Write the report on a workspace: one HTML file of at most `html_report.MOST_BYTES`.

    Args:
        workspace: may hold no training yet, or trainings that run.
        path: the file, written whole or not at all.
        made: the time to state; None: now.
        on_progress: told of every case that is drawn.

    Raises:
        InputError: the path is a folder, or a file that is no page.
        WorkError: the file cannot be written.
    """
    _require_own_file(path)
    dataset, notes = _dataset(workspace)
    runs = survey_runs(workspace)
    models = shown_models({folder.name: variant_in(folder) for folder in {run.run.parent for run in runs}})
    results = read_results(workspace, models)
    comparison, problems = read_comparison(workspace)
    content = _content(workspace, dataset, results, runs, models, comparison)
    content = replace(
        content,
        made=(made or datetime.now(timezone.utc)).isoformat(sep=" ", timespec="minutes"),
        notes=(*notes, *content.notes, *problems),
    )
    room = MOST_BYTES - len(render_report(content).encode()) - _ROOM_FOR_TEXT
    cases = _cases(results, dataset, room, on_progress)
    text = render_report(replace(content, cases=cases))
    if len(text.encode()) > MOST_BYTES:
        note = f"Pictures of cases are left out, to keep the file below {MOST_BYTES // 1_000_000} MB."
        cases = tuple(replace(case, slices=None) for case in cases)
        text = render_report(replace(content, cases=cases, notes=(*content.notes, note)))
    write_text(path, text)
    shown = [case for case in cases if case.slices]
    left_out = (*content.notes, *(case.text for case in cases if not case.slices))
    return WrittenReport(len(text.encode()), len(runs), len(results.shown), len(shown), left_out)


def _require_own_file(path: Path) -> None:
    """An older report may be replaced, but no plans and no images."""
    if path.is_dir() or not path.name:
        raise InputError(f"{path} is a folder", next_step="give the name of a file with -o")
    beginning = beginning_of(path, _LONGEST_BEGINNING).lower()
    if beginning and not beginning.startswith(b"<!doctype html"):
        raise InputError(f"{path} is there and no report", next_step="give another file with -o, or remove it")


def _content(
    workspace: Workspace,
    dataset: Dataset | None,
    results: Results,
    runs: Sequence[RunStatus],
    models: Models,
    comparison: ComparisonTables | None,
) -> ReportContent:
    plans, plans_note = _plans(workspace)
    name = dataset.name if dataset else plans.dataset_name if plans else workspace.folder.resolve().name
    without = sorted(models.keys() - {model.folder.name for model in results.models})
    lacking = [
        _why_without(models[name].title, [run for run in runs if run.run.parent.name == name]) for name in without
    ]
    if len(results.shown) < len(results.models):
        lacking.append(
            "Trainings repeated with another seed are called seed-1, seed-2, ...; tables of results have them, plots "
            "and cases the first ones alone. What they differ by is in the comparison."
        )
    dataset_facts, dataset_tables = _dataset_part(workspace, dataset)
    plans_facts, plans_tables = _plans_part(plans)
    return ReportContent(
        title=f"Report on {name}",
        made="",
        version=umamba_cli.__version__,
        summary=tuple(_in_short(dataset, results, runs, comparison)),
        notes=(*plans_note, *results.problems),
        dataset_facts=dataset_facts,
        dataset_tables=dataset_tables,
        plans_facts=plans_facts,
        plans_tables=plans_tables,
        trainings_table=trainings_table(runs, models),
        trainings_figure=overview_figure(runs, models),
        trainings=training_views(runs, models),
        result_tables=result_tables(results),
        result_notes=tuple(lacking),
        result_figures=result_figures(results),
        worst=worst_table(results),
        comparison=comparison,
    )


def _why_without(title: str, runs: Sequence[RunStatus]) -> str:
    if all(run.fold == "all" for run in runs):
        return f"{title} has no result: it was trained on every case, none was held back."
    return f"{title} has no result yet: none of its folds is finished and evaluated."


def _cases(results: Results, dataset: Dataset | None, room: int, on_progress: OnProgress) -> tuple[CaseView, ...]:
    chosen = results.chosen_cases()
    views = []
    on_progress(Progress("report", 0, len(chosen)))
    for done, (what, case) in enumerate(chosen, start=1):
        views.append(case_view(what, case, results, dataset, most_bytes=max(0, room) // len(chosen)))
        on_progress(Progress("report", done, len(chosen), step=case))
    return tuple(views)


def _dataset(workspace: Workspace) -> tuple[Dataset | None, list[str]]:
    try:
        return workspace.dataset(), []
    except (InputError, OSError) as error:
        problem = error.problem if isinstance(error, InputError) else str(error)
        return None, [f"The dataset's images are not there, so that no case can be shown: {problem}."]


def _plans(workspace: Workspace) -> tuple[Plans | None, list[str]]:
    try:
        return read_plans(workspace.plans_file), []
    except InputError as error:
        return None, [f"There are no plans to show: {error.problem}."]


def _in_short(
    dataset: Dataset | None, results: Results, runs: Sequence[RunStatus], comparison: ComparisonTables | None
) -> list[str]:
    lines = []
    if dataset:
        lines.append(f"{_count(len(dataset.cases), 'case')}, {_channels(dataset.description)}.")
    states = Counter(run.state for run in runs)
    told = ": " + ", ".join(f"{count} {state}" for state, count in states.items()) if runs else ""
    lines.append(f"{_count(len(runs), 'training')}{told}.")
    for model in results.shown[:_MOST_MODELS_IN_SHORT]:
        dice = cell(model.result.of_all_cases(None).dice)
        folds = "fold" if len(model.result.folds) == 1 else "folds"
        numbers = ", ".join(map(str, model.result.folds))
        lines.append(
            f"{model.title}: mean Dice {dice} of {_count(len(model.scores), 'held-back case')} ({folds} {numbers})."
        )
    if len(results.shown) > _MOST_MODELS_IN_SHORT:
        lines.append(f"{len(results.shown) - _MOST_MODELS_IN_SHORT} more models have results, see below.")
    if len(results.shown) > 1 and not comparison:
        lines.append("These means alone do not tell whether one model does better: the models were not compared.")
    return lines


def _dataset_part(
    workspace: Workspace, dataset: Dataset | None
) -> tuple[tuple[tuple[str, str], ...], tuple[Table, ...]]:
    facts: list[tuple[str, str]] = []
    tables = []
    if dataset:
        description = dataset.description
        facts += [("name", description.name or dataset.name), ("training cases", str(len(dataset.cases)))]
        facts += [
            ("channels", _channels(description)),
            ("files", f"{description.file_ending}, {_size_on_disk(dataset)}"),
        ]
        tables.append(_labels_table(description))
    with suppress(InputError):
        measured = read_model(workspace.fingerprint_file, Fingerprint, next_step="plan again")
        facts += _measured(measured)
    with suppress(InputError):
        folds = read_folds(workspace.splits_file)
        rows = [(str(index), str(len(fold.train)), str(len(fold.val))) for index, fold in enumerate(folds)]
        tables.append(Table("Folds", ("fold", "cases to train on", "cases held back"), tuple(rows), "From splits.json"))
    return tuple(facts), tuple(tables)


def _labels_table(description: DatasetDescription) -> Table:
    rows = [
        (name, str(label) if isinstance(label, int) else ", ".join(map(str, label)))
        for label, name in description.targets.items()
    ]
    if description.ignore_label is not None:
        rows.append(("ignore (voxels that nobody annotated)", str(description.ignore_label)))
    kind = "Regions" if description.has_regions else "Labels"
    return Table(kind, ("name", "values" if description.has_regions else "value"), tuple(rows), "From dataset.json")


def _channels(description: DatasetDescription) -> str:
    names = ", ".join(description.channel_names[str(index)] for index in range(description.num_channels))
    return f"{_count(description.num_channels, 'channel')} ({names})"


def _size_on_disk(dataset: Dataset) -> str:
    files = [path for case in dataset.cases for path in (*case.images, *((case.label,) if case.label else ()))]
    total = 0
    for path in files:
        with suppress(OSError):
            total += path.stat().st_size
    return f"{_bytes(total)} on the disk in {_count(len(files), 'file')}"


def _bytes(size: int) -> str:
    for unit, power in (("GiB", 3), ("MiB", 2)):
        if size >= 1024**power:
            return f"{size / 1024**power:.1f} {unit}"
    return f"{size / 1024:.1f} KiB"


def _measured(fingerprint: Fingerprint) -> list[tuple[str, str]]:
    """Sizes and spacings along z, y, x: median and range."""
    shapes, spacings = (
        list(zip(*fingerprint.shapes_after_crop, strict=True)),
        list(zip(*fingerprint.spacings, strict=True)),
    )
    flat = all(spacing == FLAT_SPACING_MM for spacing in spacings[0])
    first = 1 if flat else 0
    unit = "pixels (y, x)" if flat else "voxels (z, y, x)"
    median = size_text([round(statistics.median(sizes)) for sizes in shapes[first:]])
    lowest, highest = (size_text([end(sizes) for sizes in shapes[first:]]) for end in (min, max))
    found = [("size of images", f"{median} {unit} at the median, {lowest} to {highest}, cropped to what is not 0")]
    if flat:
        return [*found, ("spacing", "none: pictures")]
    median_mm = _steps([statistics.median(steps) for steps in spacings])
    lowest, highest = (_steps([end(steps) for steps in spacings]) for end in (min, max))
    differs = f", {lowest} to {highest}" if lowest != highest else " in all cases"
    return [*found, ("spacing", f"{median_mm} mm (z, y, x){' at the median' if lowest != highest else ''}{differs}")]


def _plans_part(plans: Plans | None) -> tuple[tuple[tuple[str, str], ...], tuple[Table, ...]]:
    if plans is None:
        return (), ()
    facts = (
        ("plans", f"{plans.plans_name}, preset {plans.preset}"),
        (
            "length of a training",
            f"{plans.training.epochs} epochs of {plans.training.iterations} steps, unless told otherwise",
        ),
        ("order of axes", " ".join("zyx"[axis] for axis in plans.transpose_forward)),
    )
    rows = [_configuration_row(plans.configuration(name)) for name in plans.configurations]
    columns = (
        "configuration",
        "patch (voxels)",
        "patches a step",
        "spacing (mm)",
        "median image (voxels)",
        "stages",
        "features by stage",
        "normalisation",
    )
    caption = "Axes in the order above; 2D configurations have the last two"
    return facts, (Table("Configurations", columns, tuple(rows), caption),)


def _configuration_row(of: Configuration) -> tuple[str, ...]:
    schemes = list(dict.fromkeys(scheme.removesuffix("Normalization") for scheme in of.normalization_schemes))
    return (
        of.name,
        size_text(of.patch_size),
        str(of.batch_size),
        _steps(of.spacing),
        size_text([round(size) for size in of.median_image_size_in_voxels]),
        str(of.network.n_stages),
        " ".join(map(str, of.network.features_per_stage)),
        ", ".join(schemes),
    )


def _steps(spacing: Sequence[float]) -> str:
    """`3 x 1.2 x 1.2`."""
    return numbers_text(spacing).replace(" ", " x ")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
