"""The folder that one dataset's work lies in, and the folder of one training run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umamba_cli.pipeline.data.dataset import Dataset, open_dataset
from umamba_cli.pipeline.data.files import read_json, replacing, write_json
from umamba_cli.pipeline.errors import InputError

WORKSPACE_FORMAT = 1
DEFAULT_ROOT = "umamba_work"


def default_workspace(dataset: Path) -> Path:
    """`umamba_work/DATASETNAME` in the current folder."""
    return Path(DEFAULT_ROOT) / dataset.resolve().name


@dataclass(frozen=True)
class Workspace:
    """The places in a workspace. Making one reads and writes nothing; see `create_workspace` and `open_workspace`."""

    folder: Path

    @property
    def description_file(self) -> Path:
        """Format version, and where the dataset is."""
        return self.folder / "workspace.json"

    @property
    def fingerprint_file(self) -> Path:
        """What was measured on the dataset."""
        return self.folder / "fingerprint.json"

    @property
    def plans_file(self) -> Path:
        """Every decision drawn from the fingerprint."""
        return self.folder / "plans.json"

    @property
    def previous_plans_file(self) -> Path:
        """The plans before the last `umamba plan`, where it changed them."""
        return self.folder / "plans.previous.json"

    @property
    def splits_file(self) -> Path:
        """The folds."""
        return self.folder / "splits.json"

    @property
    def imported(self) -> Path:
        """Datasets without images, made of what another program preprocessed; see `interop`."""
        return self.folder / "imported"

    @property
    def logs(self) -> Path:
        """One log file a command."""
        return self.folder / "logs"

    @property
    def runs(self) -> Path:
        """One folder a model and configuration, one below it a fold."""
        return self.folder / "runs"

    def set_plans_aside(self, text: str) -> bool:
        """Keep the plans.json that is there, where it is another text than the one to come; say whether it was."""
        if not self.plans_file.exists():
            return False
        previous = self.plans_file.read_bytes()
        if previous == text.encode():
            return False
        with replacing(self.previous_plans_file) as temporary:
            temporary.write_bytes(previous)
        return True

    def preprocessed(self, configuration: str) -> Path:
        """The preprocessed store of a configuration."""
        return self.folder / "preprocessed" / configuration

    def run(self, model: str, configuration: str, fold: int | str, tag: str = "") -> Run:
        """The run of a model, a configuration and a fold (0, 1, ... or `all`)."""
        name = "__".join(part for part in (model, configuration, tag) if part)
        return Run(self.runs / name / f"fold_{fold}")

    @property
    def dataset_folder(self) -> Path:
        """Where workspace.json says that the dataset is; it may have been moved.

        Raises:
            InputError: workspace.json is missing or damaged.
        """
        return Path(str(_read_description(self)["dataset"]))

    def dataset(self) -> Dataset:
        """Open the dataset that the workspace was planned for.

        Raises:
            InputError: it is no longer where it was.
        """
        folder = self.dataset_folder
        if not folder.is_dir():
            raise InputError(
                f"the dataset of workspace {self.folder} is no longer at {folder}",
                next_step=f"move it back, or correct `dataset` in {self.description_file}",
            )
        return open_dataset(folder)


@dataclass(frozen=True)
class Run:
    """The places in the folder of one fold's training."""

    folder: Path

    @property
    def configuration_file(self) -> Path:
        """The whole configuration, versions, seed and device."""
        return self.folder / "run.json"

    @property
    def log_file(self) -> Path:
        """One line an epoch."""
        return self.folder / "log.jsonl"

    @property
    def progress_picture(self) -> Path:
        """Losses, Dice and epoch time."""
        return self.folder / "progress.png"

    @property
    def validation_patch(self) -> Path:
        """A patch of a held-back case: image, reference, and what the network makes of it so far."""
        return self.folder / "validation_patch.png"

    @property
    def validation(self) -> Path:
        """Predictions of the fold's own cases, and summary.json."""
        return self.folder / "validation"

    def checkpoint(self, kind: str) -> Path:
        """The checkpoint `latest`, `best` or `final`."""
        return self.folder / f"checkpoint_{kind}.safetensors"

    @property
    def is_finished(self) -> bool:
        """True once the last epoch is done."""
        return self.checkpoint("final").is_file()


def create_workspace(folder: Path, dataset: Dataset) -> Workspace:
    """Make the workspace of a dataset, or take the one that is there.

    Raises:
        InputError: the folder is the workspace of another dataset, or holds something else.
    """
    require_own_folder(folder, dataset)
    workspace = Workspace(folder)
    write_json(workspace.description_file, {"format": WORKSPACE_FORMAT, "dataset": dataset.folder})
    return workspace


def require_own_folder(folder: Path, dataset: Dataset) -> None:
    """Make sure that a folder is, or can become, the workspace of a dataset; nothing is written.

    Raises:
        InputError: the folder is the workspace of another dataset, or holds something else.
    """
    workspace = Workspace(folder)
    if workspace.description_file.exists():
        other = workspace.dataset_folder
        if other.name != dataset.folder.name:
            raise InputError(
                f"{folder} is the workspace of {other}, not of {dataset.folder}",
                next_step="choose another folder with -w, or remove that one",
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} is not empty and no workspace", next_step="choose another folder with -w, or empty that one"
        )


def open_workspace(folder: Path) -> Workspace:
    """Open a workspace.

    Raises:
        InputError: the folder is none, or was made by a newer version.
    """
    workspace = Workspace(folder)
    how = "make it with `umamba plan DATASET -w WORKSPACE`"
    if not workspace.description_file.is_file():
        raise InputError(f"{folder} is no workspace (no workspace.json in it)", next_step=how)
    version = _read_description(workspace)["format"]
    if version != WORKSPACE_FORMAT:
        raise InputError(
            f"{folder} has workspace format {version}, this umamba knows {WORKSPACE_FORMAT}",
            next_step="update umamba, or plan again in a new folder",
        )
    return workspace


def _read_description(workspace: Workspace) -> dict[str, Any]:
    content = read_json(workspace.description_file)
    if not isinstance(content, dict) or not {"format", "dataset"} <= content.keys():
        raise InputError(
            f"{workspace.description_file} does not say what it must: format and dataset",
            next_step="remove it, then run `umamba plan` again with this folder as -w; what is in the folder is kept",
        )
    return content


def valid_tag(tag: str) -> str:
    """The tag itself, where it can be part of a folder's name.

    Raises:
        InputError: it holds other than letters, digits, dots and hyphens.
    """
    if tag and not re.fullmatch(r"[A-Za-z0-9.-]+", tag):
        raise InputError(f"tag {tag!r} cannot be part of a folder's name", next_step="use letters, digits, '.' and '-'")
    return tag
