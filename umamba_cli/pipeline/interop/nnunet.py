"""A dataset that nnU-Net planned and preprocessed, taken as a workspace: nothing is measured or computed again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from umamba_cli.pipeline.data.checks import CheckReport
from umamba_cli.pipeline.data.dataset import Case, Dataset, DatasetDescription, open_dataset
from umamba_cli.pipeline.data.files import read_model, write_text
from umamba_cli.pipeline.data.splits import Fold, make_folds, read_folds, write_folds
from umamba_cli.pipeline.data.workspace import Workspace, create_workspace, require_own_folder
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.interop.nnunet_case import ImportJob, check_case, import_case
from umamba_cli.pipeline.interop.nnunet_files import CaseFiles, find_identifiers
from umamba_cli.pipeline.parallel import for_each_case
from umamba_cli.pipeline.planning.fingerprint import Fingerprint
from umamba_cli.pipeline.planning.plans import Plans
from umamba_cli.pipeline.preprocessing.dataset import stored_as, workers_for
from umamba_cli.pipeline.progress import OnProgress, ignore_progress
from umamba_cli.pipeline.resources import require_disk

_GIVE_FOLDER = "give the folder of a dataset in nnUNet_preprocessed, with dataset.json and nnUNetPlans.json"


@dataclass(frozen=True)
class Preprocessed:
    """A dataset's folder in nnUNet_preprocessed, as it was found."""

    folder: Path
    plans_file: Path
    plans: Plans
    description: DatasetDescription

    folders: dict[str, Path]
    """The preprocessed cases of each configuration; children of a cascade share their parent's."""

    not_preprocessed: tuple[str, ...]
    """Configurations of the plans whose folder is not there."""

    identifiers: tuple[str, ...]
    """The cases of which there is any file, sorted."""

    folds: tuple[Fold, ...]
    """Of `splits_final.json`; none where it is not there."""


@dataclass(frozen=True)
class ImportResult:
    """What was imported, and where it lies."""

    workspace: Workspace
    dataset: Dataset
    source: Preprocessed

    kept: int
    """Cases that were there already with all their configurations, made of the same files."""

    rebuilt: tuple[str, ...]
    """Cases whose label map was rebuilt from the preprocessed labels: resampled twice, it is not quite the original."""

    folds_kept: bool
    """True where the workspace had a splits.json already, which was left as it is."""

    plans_replaced: bool
    """True where the workspace had another plans.json, which is `plans.previous.json` now."""


def import_preprocessed(
    folder: Path,
    workspace_folder: Path,
    *,
    raw: Path | None = None,
    workers: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> ImportResult:
    """Take what nnU-Net planned and preprocessed as a workspace, ready to train on.

    Images are linked where the file system allows it, so that they take no second place on the disk. Nothing is written
    before every case was found usable. What is there already is kept, so it can be run again after a kill.

    Args:
        folder: of the dataset in nnUNet_preprocessed, or one plans file in it.
        workspace_folder: the workspace to make.
        raw: the dataset that it was made of. Without it the workspace gets a dataset of label maps without images:
            enough to train and validate, not to preprocess anything anew.
        workers: processes; None means as many as the machine allows.
        on_progress: told after each case.

    Raises:
        InputError: the folder, a case or the workspace's folder cannot be used; every bad case is listed.
        WorkError: a worker died or a file could not be written.
    """
    source = open_preprocessed(folder)
    workspace = Workspace(workspace_folder)
    raw = raw or _raw_known_to(workspace, source)
    dataset = _raw_dataset(raw, source) if raw else _dataset_in(workspace, source)
    folds = source.folds or tuple(make_folds(source.identifiers))
    require_own_folder(workspace_folder, dataset)
    jobs = _jobs(source, workspace, dataset, is_raw=raw is not None)
    todo = [job for job in jobs if job.todo]
    workers = workers or _workers_for(source, todo)
    _check(source, dataset, todo, workers, on_progress)
    require_disk(workspace_folder, sum(_bytes_to_write(job) for job in todo))

    create_workspace(workspace_folder, dataset)
    if raw is None:
        _write_dataset(dataset, source)
    for_each_case(import_case, todo, task="import", name=_name, workers=workers, on_progress=on_progress)
    folds_kept, plans_replaced = _write_decisions(workspace, source, folds)
    return ImportResult(
        workspace=workspace,
        dataset=dataset,
        source=source,
        kept=len(jobs) - len(todo),
        rebuilt=tuple(_name(job) for job in jobs if job.reference is None),
        folds_kept=folds_kept,
        plans_replaced=plans_replaced,
    )


def open_preprocessed(folder: Path) -> Preprocessed:
    """Find the plans, the configurations and the cases in a folder of nnUNet_preprocessed; no case is read.

    Args:
        folder: the dataset's folder, or one plans file in it.

    Raises:
        InputError: there are no plans, or several to choose from, or no configuration is preprocessed, or a file does
            not hold what it must.
    """
    plans_file = _find_plans(folder.resolve())
    folder = plans_file.parent
    plans = read_model(plans_file, Plans, next_step=_GIVE_FOLDER)
    description = read_model(folder / "dataset.json", DatasetDescription, next_step=_GIVE_FOLDER)
    if description.num_channels != len(plans.foreground_intensity_properties_per_channel):
        raise InputError(
            f"{plans_file} is made for {len(plans.foreground_intensity_properties_per_channel)} channels, "
            f"dataset.json beside it knows {description.num_channels}",
            next_step="plan and preprocess again in nnU-Net",
        )
    places = {name: folder / _data_identifier(plans, name) for name in plans.configurations}
    folders = {name: place for name, place in places.items() if place.is_dir()}
    identifiers = sorted(set().union(*(find_identifiers(place) for place in folders.values())))
    if not identifiers:
        wanted = ", ".join(sorted({place.name for place in places.values()}))
        raise InputError(
            f"no configuration of {plans_file} is preprocessed: no case in {wanted}",
            next_step="run nnUNetv2_preprocess first",
        )
    splits = folder / "splits_final.json"
    return Preprocessed(
        folder=folder,
        plans_file=plans_file,
        plans=plans,
        description=description,
        folders=folders,
        not_preprocessed=tuple(name for name in places if name not in folders),
        identifiers=tuple(identifiers),
        folds=tuple(read_folds(splits)) if splits.is_file() else (),
    )


def _find_plans(folder: Path) -> Path:
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder", next_step=_GIVE_FOLDER)
    usual = folder / "nnUNetPlans.json"
    found = [usual] if usual.is_file() else sorted(folder.glob("*Plans*.json"))
    if not found:
        raise InputError(f"{folder} holds no plans (no *Plans*.json)", next_step=_GIVE_FOLDER)
    if len(found) > 1:
        raise InputError(
            f"{folder} holds {len(found)} plans",
            details=[path.name for path in found],
            next_step="give one of these files instead of the folder",
        )
    return found[0]


def _data_identifier(plans: Plans, configuration: str) -> str:
    return plans.configuration(configuration).data_identifier or f"{plans.plans_name}_{configuration}"


def _raw_known_to(workspace: Workspace, source: Preprocessed) -> Path | None:
    """The raw dataset that the workspace was made for, where it is still there and has the imported one's name."""
    if not workspace.description_file.is_file():
        return None
    known = workspace.dataset_folder
    is_raw = known.is_dir() and not known.is_relative_to(workspace.imported.resolve())
    return known if is_raw and known.name == source.folder.name else None


def _raw_dataset(raw: Path, source: Preprocessed) -> Dataset:
    """The raw dataset, where it is the one that was preprocessed."""
    dataset = open_dataset(raw)
    there, here = dataset.description, source.description
    differing = [
        key
        for key in ("labels", "regions_class_order", "channel_names", "file_ending")
        if getattr(there, key) != getattr(here, key)
    ]
    if differing:
        raise InputError(
            f"{' and '.join(differing)} in {dataset.folder}/dataset.json and {source.folder}/dataset.json differ",
            next_step="give the dataset that nnU-Net preprocessed, or leave it out",
        )
    return dataset


def _dataset_in(workspace: Workspace, source: Preprocessed) -> Dataset:
    """The dataset of label maps that the workspace will hold."""
    folder = workspace.imported.resolve() / source.folder.name
    labels = ((name, folder / "labelsTr" / f"{name}{source.description.file_ending}") for name in source.identifiers)
    return Dataset(folder, source.description, tuple(Case(name, (), label) for name, label in labels))


def _write_dataset(dataset: Dataset, source: Preprocessed) -> None:
    """Write its dataset.json, and remove label maps of cases that an earlier import brought."""
    write_text(dataset.folder / "dataset.json", (source.folder / "dataset.json").read_text(encoding="utf-8-sig"))
    wanted = {case.label for case in dataset.cases}
    for path in (dataset.folder / "labelsTr").glob(f"*{dataset.description.file_ending}"):
        if path not in wanted:
            path.unlink()


def _jobs(source: Preprocessed, workspace: Workspace, dataset: Dataset, *, is_raw: bool) -> list[ImportJob]:
    """One for each case that can be looked at; which cannot, `_check` says."""
    cases = {case.identifier: case for case in dataset.cases}
    owned = {stored_as(source.plans, name, source.description): folder for name, folder in source.folders.items()}
    jobs = []
    for name in source.identifiers:
        case = cases.get(name)
        if case is None or case.label is None:
            continue
        given = case.label if is_raw else source.folder / "gt_segmentations" / case.label.name
        files = {configuration: CaseFiles(folder, name) for configuration, folder in owned.items()}
        reference = given if given.is_file() else None
        jobs.append(ImportJob(case, case.label, reference, files, workspace, source.plans, source.description))
    return jobs


def _check(
    source: Preprocessed, dataset: Dataset, jobs: Sequence[ImportJob], workers: int, on_progress: OnProgress
) -> None:
    """Refuse the import where any case cannot be used; every one is listed with all that is wrong with it."""
    problems: dict[str, tuple[str, ...]] = defaultdict(tuple)
    in_folds = {name for fold in source.folds for name in (*fold.train, *fold.val)}
    for name in in_folds - set(source.identifiers):
        problems[name] += ("in splits_final.json, but not preprocessed",)
    known = {case.identifier: case for case in dataset.cases}
    for name in source.identifiers:
        if name not in known:
            problems[name] += (f"not in {dataset.folder}",)
        elif known[name].label is None:
            problems[name] += (f"no label in {dataset.folder}/labelsTr",)
    checked = for_each_case(check_case, jobs, task="check", name=_name, workers=workers, on_progress=on_progress)
    for job, phrases in zip(jobs, checked, strict=True):
        if phrases:
            problems[_name(job)] += phrases
    CheckReport(len(in_folds.union(source.identifiers)), dict(sorted(problems.items()))).raise_if_bad()


def _workers_for(source: Preprocessed, jobs: Sequence[ImportJob]) -> int:
    # The label maps tell how large the images were.
    channels = source.description.num_channels
    sized = [Case(_name(job), (job.reference,) * channels) for job in jobs if job.reference is not None]
    return min(workers_for(source.plans, name, sized) for name in source.folders)


def _bytes_to_write(job: ImportJob) -> int:
    """About how much a case will take: nothing for images that can be linked."""
    place = job.workspace.folder.resolve()
    while not place.exists():
        place = place.parent
    total = 0
    for name in job.todo:
        image, *labels = (path.stat() for path in job.files[name].arrays)
        can_be_linked = labels and image.st_dev == place.stat().st_dev
        total += sum(state.st_size for state in labels) + (0 if can_be_linked else image.st_size)
    return total


def _write_decisions(workspace: Workspace, source: Preprocessed, folds: Sequence[Fold]) -> tuple[bool, bool]:
    """Write fingerprint, plans and folds, which make the workspace one to train on.

    Returns:
        Were folds that were there kept? Were other plans that were there set aside?
    """
    fingerprint = source.folder / "dataset_fingerprint.json"
    with suppress(InputError):  # training does not need it
        read_model(fingerprint, Fingerprint, next_step=_GIVE_FOLDER)
        write_text(workspace.fingerprint_file, fingerprint.read_text(encoding="utf-8-sig"))
    text = source.plans_file.read_text(encoding="utf-8-sig")
    plans_replaced = workspace.set_plans_aside(text)
    write_text(workspace.plans_file, text)
    folds_kept = workspace.splits_file.exists()
    if not folds_kept:
        write_folds(workspace.splits_file, folds)
    return folds_kept, plans_replaced


def _name(job: ImportJob) -> str:
    return job.case.identifier
