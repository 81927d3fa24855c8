"""Comparing predictions with references: the label maps of two folders, or pairs of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from umamba_cli.pipeline.data import tiff
from umamba_cli.pipeline.data.dataset import composed
from umamba_cli.pipeline.data.images import PICTURE_ENDINGS, file_ending
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.evaluation.case import CaseMetrics, Task, evaluate_case
from umamba_cli.pipeline.evaluation.results import Evaluation, completed, names_of
from umamba_cli.pipeline.parallel import OnCluster, for_each_case
from umamba_cli.pipeline.progress import OnProgress, ignore_progress
from umamba_cli.pipeline.shards import Shard

VOLUME_ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr", ".hdr", ".gipl")
"""Files taken for label maps with a spacing, where no dataset.json tells the ending."""

Pair = tuple[str, Path | None, Path]
"""A case's identifier, its predicted label map (None: there is none, nothing was found) and its reference."""


def evaluate_folders(
    predictions: Path,
    references: Path,
    task: Task | None = None,
    *,
    only_predicted: bool = False,
    shard: Shard | None = None,
    workers: int | None = None,
    cluster: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Evaluation:
    """Compare the label maps of two folders that have the same names (without the ending); other files are left alone.

    Args:
        predictions: folder of predicted label maps.
        references: folder of reference label maps; may hold more cases than were predicted.
        task: what to look for, and how to measure it; without a description every value found in any of the label
            maps is a label.
        only_predicted: list a reference without a prediction in `Evaluation.missing` alone. Otherwise it is counted as
            one where nothing was found too: the Dice of its labels is 0, their distances are no numbers.
        shard: the part of the references to look at, which may be none; None: all.
        workers: processes; None means as many as the machine allows.
        cluster: the address of a Dask scheduler whose workers do it; None: this machine does.
        on_progress: told after each case.

    Raises:
        InputError: a folder holds no label map, a prediction has no reference, or label maps cannot be read, lie on
            another grid than their reference or hold unknown labels; every such case is listed.
    """
    task = task or Task()
    ending = task.description.file_ending if task.description else None
    predicted = find_label_maps(predictions.absolute(), ending)
    wanted = find_label_maps(references.absolute(), ending)
    _require_references(predicted, wanted, predictions, references)
    names = shard.of(list(wanted), str) if shard else sorted(wanted)
    missing = tuple(name for name in names if name not in predicted)
    chosen = [name for name in names if not only_predicted or name in predicted]
    return evaluate_pairs(
        [(name, predicted.get(name), wanted[name]) for name in chosen],
        task,
        missing=missing,
        may_be_empty=shard is not None,
        workers=workers,
        cluster=cluster,
        on_progress=on_progress,
    )


def evaluate_pairs(
    pairs: Sequence[Pair],
    task: Task | None = None,
    *,
    missing: Sequence[str] = (),
    may_be_empty: bool = False,
    workers: int | None = None,
    cluster: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Evaluation:
    """Compare predictions with references, given by path.

    Args:
        pairs: identifier, prediction and reference of every case; for a cluster their paths are absolute.
        task: as for `evaluate_folders`.
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
    task = task or Task()
    pairs = sorted(pairs, key=lambda pair: pair[0])
    outcomes = for_each_case(
        partial(_metrics_or_problem, task=task),
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
    return evaluation_of(cases, task, missing)


def evaluation_of(cases: Sequence[CaseMetrics], task: Task, missing: Sequence[str] = ()) -> Evaluation:
    """The cases of one task put together."""
    description = task.description
    names = description.targets if description else names_of(cases)
    dataset = description.name if description else ""
    return Evaluation(completed(cases, names), names, tuple(missing), dataset, task.measures)


def _on_cluster(address: str, pairs: Sequence[Pair]) -> OnCluster:
    """The folders must be there for all, and a file of each, by which a folder of the same name is told apart."""
    firsts = [*[prediction for _, prediction, _ in pairs if prediction][:1], pairs[0][2]]
    return OnCluster(address, tuple(path for first in firsts for path in (first.parent, first)))


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


def _metrics_or_problem(pair: Pair, task: Task) -> CaseMetrics | str:
    """What a worker process hands back: a bad case must not keep the others from being looked at."""
    try:
        return evaluate_case(*pair, task)
    except InputError as error:
        return f"{pair[0]}: {error.problem}"
