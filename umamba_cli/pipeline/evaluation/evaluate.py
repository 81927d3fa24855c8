"""Comparing predictions with references: every case and label, their means, and `summary.json`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import umamba_cli
from umamba_cli.pipeline.data import tiff
from umamba_cli.pipeline.data.checks import grid_problems, label_problems, label_values
from umamba_cli.pipeline.data.dataset import DatasetDescription, Label, composed, values_of
from umamba_cli.pipeline.data.files import write_json
from umamba_cli.pipeline.data.images import PICTURE_ENDINGS, LabelMap, UnreadableImage, file_ending, read_label_map
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.evaluation.metrics import OverlapMetrics, overlap
from umamba_cli.pipeline.geometry import Grid
from umamba_cli.pipeline.parallel import OnCluster, for_each_case
from umamba_cli.pipeline.progress import OnProgress, ignore_progress
from umamba_cli.pipeline.shards import Shard

VOLUME_ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr", ".hdr", ".gipl")
"""Files taken for label maps with a spacing, where no dataset.json tells the ending."""

Pair = tuple[str, Path | None, Path]
"""A case's identifier, its predicted label map (None: there is none, nothing was found) and its reference."""


@dataclass(frozen=True)
class CaseMetrics:
    """The overlap of every label, or region, in one case."""

    case: str
    """Its identifier."""

    labels: Mapping[Label, OverlapMetrics]
    """By label value, or values of a region; Dice and IoU are NaN for a label that neither label map holds."""


@dataclass(frozen=True)
class MeanMetrics:
    """The means of `OverlapMetrics`' fields, each over the cases (or labels) where it is a number; NaN without any."""

    dice: float
    iou: float
    tp: float
    fp: float
    fn: float
    prediction_ml: float
    reference_ml: float


@dataclass(frozen=True)
class LabelMean(MeanMetrics):
    """The means of one label, or region, over the cases."""

    label: Label
    name: str

    cases: int
    """Cases whose Dice is a number: the label is in the prediction, the reference, or both."""


@dataclass(frozen=True)
class Evaluation:
    """What the comparison of some predictions with their references gave."""

    cases: tuple[CaseMetrics, ...]
    """Sorted by identifier; those without a prediction are among them only where they were counted."""

    label_names: Mapping[Label, str]
    """The labels, or regions, that were looked at, without the background."""

    missing: tuple[str, ...] = ()
    """References without a prediction."""

    dataset: str = ""
    """The dataset's name, where it is known."""

    @cached_property
    def label_means(self) -> tuple[LabelMean, ...]:
        """The mean over the cases, for every label."""
        means = []
        for label, name in self.label_names.items():
            values = [case.labels[label] for case in self.cases]
            count = sum(not math.isnan(metrics.dice) for metrics in values)
            means.append(LabelMean(**_means(values), label=label, name=name, cases=count))
        return tuple(means)

    @cached_property
    def foreground_mean(self) -> MeanMetrics:
        """The mean over the labels of each label's mean over the cases, as nnU-Net has it."""
        return MeanMetrics(**_means(self.label_means))

    def case_rows(self) -> list[tuple[str, str, str, str, str, str]]:
        """A table's rows: case, label, Dice, IoU, predicted and reference millilitres; "-" where there is no number."""
        return [
            (
                case.case,
                name,
                _cell(case.labels[label].dice, 3),
                _cell(case.labels[label].iou, 3),
                _cell(case.labels[label].prediction_ml, 2),
                _cell(case.labels[label].reference_ml, 2),
            )
            for case in self.cases
            for label, name in self.label_names.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """The content of `summary.json`; NaN becomes null when it is written.

        Regions are called as nnU-Net calls them: "(1, 2, 3)".
        """
        return {
            "foreground_mean": asdict(self.foreground_mean),
            "mean": {
                str(mean.label): {key: value for key, value in asdict(mean).items() if key not in ("label", "name")}
                for mean in self.label_means
            },
            "cases": [
                {"case": case.case, "labels": {str(label): asdict(case.labels[label]) for label in self.label_names}}
                for case in self.cases
            ],
            "label_names": {str(label): name for label, name in self.label_names.items()},
            "missing": list(self.missing),
            "dataset": self.dataset,
            "version": umamba_cli.__version__,
        }


def evaluate_folders(
    predictions: Path,
    references: Path,
    *,
    description: DatasetDescription | None,
    count_missing: bool = False,
    shard: Shard | None = None,
    workers: int | None = None,
    cluster: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Evaluation:
    """Compare the label maps of two folders that have the same names (without the ending); other files are left alone.

    Args:
        predictions: folder of predicted label maps.
        references: folder of reference label maps; may hold more cases than were predicted.
        description: names the labels and regions, and tells which label of the references is to be ignored; without it
            every value found in any of the label maps is a label.
        count_missing: count a reference without a prediction as one where nothing was found: its labels' Dice is 0.
            Otherwise it is listed in `Evaluation.missing` alone.
        shard: the part of the references to look at, which may be none; None: all.
        workers: processes; None means as many as the machine allows.
        cluster: the address of a Dask scheduler whose workers do it; None: this machine does.
        on_progress: told after each case.

    Raises:
        InputError: a folder holds no label map, a prediction has no reference, or label maps cannot be read, lie on
            another grid than their reference or hold unknown labels; every such case is listed.
    """
    ending = description.file_ending if description else None
    predicted = find_label_maps(predictions.absolute(), ending)
    wanted = find_label_maps(references.absolute(), ending)
    _require_references(predicted, wanted, predictions, references)
    names = shard.of(list(wanted), str) if shard else sorted(wanted)
    missing = tuple(name for name in names if name not in predicted)
    chosen = [name for name in names if count_missing or name in predicted]
    return evaluate_pairs(
        [(name, predicted.get(name), wanted[name]) for name in chosen],
        description=description,
        missing=missing,
        may_be_empty=shard is not None,
        workers=workers,
        cluster=cluster,
        on_progress=on_progress,
    )


def evaluate_pairs(
    pairs: Sequence[Pair],
    *,
    description: DatasetDescription | None,
    missing: Sequence[str] = (),
    may_be_empty: bool = False,
    workers: int | None = None,
    cluster: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Evaluation:
    """Compare predictions with references, given by path.

    Args:
        pairs: identifier, prediction and reference of every case; for a cluster their paths are absolute.
        description: as for `evaluate_folders`.
        missing: what `Evaluation.missing` shall list.
        may_be_empty: no pair at all is no error.
        workers: processes; None means as many as the machine allows.
        cluster: see `evaluate_folders`.
        on_progress: told after each case.

    Raises:
        InputError: there is no pair, or some cannot be compared; every one is listed with all that is wrong with it.
    """
    if not pairs and not may_be_empty:
        raise InputError("there is nothing to evaluate", next_step="predict at least one case first")
    pairs = sorted(pairs, key=lambda pair: pair[0])
    outcomes = for_each_case(
        partial(_metrics_or_problem, description=description),
        pairs,
        task="evaluate",
        name=lambda pair: pair[0],
        workers=workers,
        cluster=_on_cluster(cluster, pairs) if cluster and pairs else None,
        on_progress=on_progress,
    )
    if bad := [outcome for outcome in outcomes if isinstance(outcome, str)]:
        raise InputError(
            f"{len(bad)} of {len(pairs)} cases cannot be evaluated",
            details=bad,
            next_step="predict these cases again or correct them, then run the same command again",
        )
    cases = [outcome for outcome in outcomes if isinstance(outcome, CaseMetrics)]
    names = description.targets if description else names_of(cases)
    return Evaluation(completed(cases, names), names, tuple(missing), description.name if description else "")


def _on_cluster(address: str, pairs: Sequence[Pair]) -> OnCluster:
    """The folders must be there for all, and a file of each, by which a folder of the same name is told apart."""
    firsts = [*[prediction for _, prediction, _ in pairs if prediction][:1], pairs[0][2]]
    return OnCluster(address, tuple(path for first in firsts for path in (first.parent, first)))


def evaluate_case(
    identifier: str, prediction: Path | None, reference: Path, description: DatasetDescription | None
) -> CaseMetrics:
    """Compare one prediction with its reference. Voxels that the reference marks as ignored count nowhere.

    Args:
        identifier: the case.
        prediction: the predicted label map; None counts as one without any label.
        reference: the reference label map.
        description: tells the labels or regions to look at and the values allowed; None means all that are found.

    Raises:
        InputError: the two cannot be compared; the problem says all that is wrong, without naming the case.
    """
    known = description.known_values if description else None
    problems: list[str] = []
    predicted = _read("prediction", prediction, known, problems) if prediction is not None else None
    wanted = _read("reference", reference, known, problems, predicted.grid if predicted else None)
    predicted = wanted if prediction is None else predicted
    if predicted is not None and wanted is not None:
        problems += grid_problems("prediction", predicted.grid, "reference", wanted.grid)
    if problems or predicted is None or wanted is None:
        raise InputError("; ".join(problems), next_step="correct or remove it, then run the same command again")
    spacing_mm = None if wanted.grid.is_2d_file else wanted.grid.spacing_mm
    found = wanted.labels
    covered = found * 0 if prediction is None else predicted.labels
    if description:
        labels, ignored = list(description.targets), description.ignore_label
    else:
        values = {int(value) for array in (covered, found) for value in label_values(array)}
        labels, ignored = sorted(values - {0}), None
    counted = _worth_counting(covered, found, labels, ignored)
    covered, found = covered[counted], found[counted]
    return CaseMetrics(identifier, {label: overlap(covered, found, label, spacing_mm) for label in labels})


def _worth_counting(
    covered: NDArray[Any], found: NDArray[Any], labels: Sequence[Label], ignored: int | None
) -> NDArray[np.bool_]:
    """The voxels to look at: those not ignored, and without what is background in both, which is most of them."""
    of_background = any(0 in values_of(label) for label in labels)  # a region may hold it
    counted = np.ones(found.shape, dtype=bool) if of_background else (covered != 0) | (found != 0)
    return counted if ignored is None else counted & (found != ignored)


def find_label_maps(folder: Path, ending: str | None = None) -> dict[str, Path]:
    """The label maps in a folder by identifier (the file's name without its ending), hidden files left out.

    Args:
        folder: where to look.
        ending: the label maps' ending; without it, or where no file has it, all files of a known ending are taken.
            Pictures beside volumes are illustrations and left out.

    Raises:
        InputError: there is no such folder, no label map in it, or two of one name.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder", next_step="give a folder of label maps")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    by_ending = [path for path in files if ending and path.name.endswith(ending)]
    volumes = [path for path in files if file_ending(path) in VOLUME_ENDINGS]
    pictures = [path for path in files if file_ending(path) in (*PICTURE_ENDINGS, *tiff.ENDINGS)]
    found: dict[str, Path] = {}
    for path in by_ending or volumes or pictures:
        name = composed(path.name[: -len(file_ending(path, ending))])
        if name in found:
            raise InputError(
                f"{folder} holds two label maps of {name}: {found[name].name} and {path.name}",
                next_step="remove one of them",
            )
        found[name] = path
    if not found:
        raise InputError(f"{folder} holds no label map", next_step="give a folder of label maps")
    return found


def write_summary(path: Path, evaluation: Evaluation) -> None:
    """Write `summary.json`.

    Raises:
        WorkError: the file cannot be written.
    """
    write_json(path, evaluation.to_json())


def _require_references(
    predicted: Mapping[str, Path], wanted: Mapping[str, Path], predictions: Path, references: Path
) -> None:
    strangers = sorted(predicted.keys() - wanted.keys())
    if not strangers:
        return
    if len(strangers) == len(predicted):
        raise InputError(
            f"no prediction in {predictions} has a reference in {references}",
            details=[
                f"predictions: {_beginning(sorted(predicted))}",
                f"references: {_beginning(sorted(wanted))}",
            ],
            next_step="give the folder whose label maps have the predictions' names",
        )
    raise InputError(
        f"{len(strangers)} of {len(predicted)} predictions have no reference in {references}",
        details=strangers,
        next_step="bring their references, or take these predictions away",
    )


def _beginning(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _metrics_or_problem(pair: Pair, description: DatasetDescription | None) -> CaseMetrics | str:
    """What a worker process hands back: a bad case must not keep the others from being looked at."""
    try:
        return evaluate_case(*pair, description)
    except InputError as error:
        return f"{pair[0]}: {error.problem}"


def _read(
    name: str, path: Path, known: Sequence[int] | None, problems: list[str], grid: Grid | None = None
) -> LabelMap | None:
    """A label map, on `grid` where it has no spacing of its own; what is wrong with it is added to `problems`."""
    try:
        label_map = read_label_map(path, grid)
    except UnreadableImage as error:
        problems.append(f"{name} {error.problem}")
        return None
    problems += label_problems(name, label_map.labels, known)
    return label_map


def names_of(cases: Iterable[CaseMetrics]) -> dict[Label, str]:
    """Names for labels that no dataset.json names: their values."""
    labels = {value for case in cases for label in case.labels for value in values_of(label)}
    return {label: str(label) for label in sorted(labels)}


def completed(cases: Sequence[CaseMetrics], labels: Iterable[Label]) -> tuple[CaseMetrics, ...]:
    """The cases with an entry for every label, also those that were found in other cases only."""
    labels = list(labels)
    of_pictures = any(math.isnan(metrics.reference_ml) for case in cases for metrics in case.labels.values())
    volume_ml = math.nan if of_pictures else 0.0
    neither = OverlapMetrics(math.nan, math.nan, 0, 0, 0, volume_ml, volume_ml)
    return tuple(CaseMetrics(case.case, {label: case.labels.get(label, neither) for label in labels}) for case in cases)


def _means(values: Sequence[OverlapMetrics] | Sequence[MeanMetrics]) -> dict[str, float]:
    """The mean of every field of `MeanMetrics` over the values where it is a number."""
    means = {}
    for name in MeanMetrics.__dataclass_fields__:
        numbers = [number for value in values if not math.isnan(number := float(getattr(value, name)))]
        means[name] = math.fsum(numbers) / len(numbers) if numbers else math.nan
    return means


def _cell(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
