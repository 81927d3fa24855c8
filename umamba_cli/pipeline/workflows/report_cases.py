"""The cases that a report shows: image, reference and what each model predicted, slice by slice."""

from __future__ import annotations

from dataclasses import replace

from umamba_cli.pipeline.data.dataset import Case, Dataset
from umamba_cli.pipeline.data.images import read_image
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.reporting.html_report import CaseView
from umamba_cli.pipeline.reporting.slices import REFERENCE, ShownCase, cut_case
from umamba_cli.pipeline.workflows.overlay import is_picture, read_shown_labels, shown_image
from umamba_cli.pipeline.workflows.report_results import Results, case_table
from umamba_cli.pipeline.workflows.report_trainings import cell

_AXES = "zyx"


def case_view(
    what: str,
    identifier: str,
    results: Results,
    dataset: Dataset | None,
    *,
    most_bytes: int,
) -> CaseView:
    """One case: its slices with the outlines of the reference and of every model, and a table of its Dice.

    Args:
        what: such as "Best case".
        identifier: of the case, which some model held back.
        results: of all models.
        dataset: None where it is not there any more.
        most_bytes: that the slices may take.
    """
    mean = dict(results.ranked)[identifier]
    folds = sorted({model.folds[identifier] for model in results.shown if identifier in model.folds})
    several = f" and {len(results.shown)} models" if len(results.shown) > 1 else ""
    text = f"Mean Dice over the labels{several} {cell(mean)}; held back in fold {', '.join(map(str, folds))}."
    view = CaseView(f"{what}: {identifier}", text, None, table=case_table(results, identifier))
    if dataset is None:
        return replace(view, text=f"{text} It cannot be shown: the dataset is not there.")
    try:
        (case,) = dataset.select([identifier])
        shown, sources, lacking = _read(case, results, dataset)
    except (InputError, OSError) as error:
        problem = error.problem if isinstance(error, InputError) else str(error)
        return replace(view, text=f"{text} It cannot be shown: {problem}.")
    slices = cut_case(shown, most_bytes=most_bytes)
    across = f" Slices are cut across {_AXES[slices.axis]}." if slices.total > 1 else ""
    return replace(view, text=" ".join([text + across, *lacking]), slices=slices, styles=sources)


def _read(case: Case, results: Results, dataset: Dataset) -> tuple[ShownCase, tuple[int, ...], list[str]]:
    """The case's arrays, a style for each label map, and what is not drawn of the models."""
    if not case.images or case.label is None:
        raise InputError("its image or its reference is not there", next_step="bring them back")
    image = read_image(case.images)
    may_be_colour = len(case.images) == 1 and is_picture(case.images[0])
    maps = {REFERENCE: read_shown_labels(REFERENCE, case.label, image.grid, dataset.description)}
    sources, lacking = [-1], []
    for model in results.shown:
        if case.identifier not in model.folds:
            continue
        run = Run(model.folder / f"fold_{model.folds[case.identifier]}")
        path = run.validation / f"{case.identifier}{dataset.description.file_ending}"
        try:
            maps[model.title] = read_shown_labels("prediction", path, image.grid, None)
            sources.append(model.shown.style)
        except InputError as error:
            lacking.append(f"{model.title} is not drawn: {error.problem}.")
    if len(results.shown) < len(results.models):
        lacking.append("Of trainings repeated with other seeds the first is drawn.")
    shown = ShownCase(
        image=shown_image(image, is_picture=may_be_colour, channel=None, window=None),
        label_maps=maps,
        spacing_mm=image.grid.spacing_mm,
        label_names=dataset.description.targets,
        ignored=dataset.description.ignore_label,
    )
    return shown, tuple(sources), lacking
