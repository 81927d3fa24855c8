"""Where all trainings of a workspace are. Only logs and JSON files are read, nothing is written, torch is not needed.

Trainings may be at work meanwhile: files are replaced and removed under the reader, or were cut off when a machine went
down. What cannot be read is said of its run and hides no other one.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from umamba_cli.pipeline.data.workspace import Run, Workspace
from umamba_cli.pipeline.networks.architecture import ModelVariant
from umamba_cli.pipeline.runs.lock import holder, lock_file, running_file
from umamba_cli.pipeline.runs.log import read_log

RUNNING, VALIDATING, FINISHED, STOPPED, DAMAGED = "running", "validating", "finished", "stopped", "damaged"
NOT_EVALUATED = "not evaluated"
"""Trained to the end, but nobody is predicting the held-back cases, and there is no result of them."""

_EPOCHS_TO_JUDGE_BY = 10


@dataclass(frozen=True)
class RunStatus:
    """Where one run is; None stands for what is not known, or not there."""

    run: Path
    """Its folder."""

    title: str
    """What to call it: model, configuration and tag, see `ModelVariant.named`."""

    model: str
    """Or its variant, such as `umamba-bot+s4d`."""

    configuration: str
    tag: str
    fold: str
    """`0`, `1`, ... or `all`."""

    state: str
    """`running`, `validating`, `stopped`, `not evaluated`, `finished` or `damaged`."""

    host: str | None = None
    process: int | None = None
    """Who is at work, while it runs or validates."""

    epoch: int = 0
    """Epochs done."""

    epochs: int | None = None
    """Epochs there will be."""

    best_dice: float | None = None
    """The best mean Dice on validation patches, and the epoch that reached it."""

    best_epoch: int | None = None

    validation_dice: float | None = None
    """Mean Dice over the labels of the whole held-back cases, predicted with the final weights."""

    train_loss: float | None = None
    """Of the last epoch, as the learning rate and the precision."""

    learning_rate: float | None = None
    precision: str | None = None

    skipped_steps: int = 0
    """Steps of all epochs that had no finite loss or gradient."""

    seconds_left: float | None = None
    """Told by a run that is at work; guessed from the last epochs for one that was stopped."""

    moved: datetime | None = None
    """When it last wrote something, in UTC."""

    problem: str = ""
    """What could not be read."""

    @property
    def state_text(self) -> str:
        """The state in a few words: `running on HOST pid N`, `stopped at epoch 3 of 10`, ..."""
        if self.state in (RUNNING, VALIDATING):
            who = [f"on {self.host}"] if self.host else []
            who += [f"pid {self.process}"] if self.process is not None else []
            return " ".join([self.state, *who])
        if self.state == STOPPED:
            return f"stopped at epoch {self.epoch}" + (f" of {self.epochs}" if self.epochs is not None else "")
        return self.state

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON knows them; `moved` is ISO 8601."""
        return {**asdict(self), "moved": self.moved.isoformat() if self.moved else None}


def survey_runs(workspace: Workspace) -> list[RunStatus]:
    """The status of every run in a workspace, by name and fold."""
    return [run_status(Run(folder)) for folder in _run_folders(workspace)]


def run_status(run: Run) -> RunStatus:
    """Where one run is."""
    record, problem = _read_object(run.configuration_file)
    note = holder(run)
    entries, unreadable = read_log(run)
    summary, summary_problem = _read_object(run.validation / "summary.json")
    log_problem = f"{unreadable} lines of {run.log_file.name} cannot be read" if unreadable else ""
    state = _state(run, record, problem, note, entries, summary)
    return RunStatus(
        run=run.folder,
        **_names(run, record),
        state=state,
        **_epochs(record, note or {}, entries, state),
        **_who(note),
        **_best(entries),
        **_last(entries),
        validation_dice=_number(_mapping(summary.get("foreground_mean")).get("dice")) if summary else None,
        moved=_moved(run),
        problem="; ".join(text for text in (problem, log_problem, summary_problem) if text),
    )


def _run_folders(workspace: Workspace) -> list[Path]:
    """`runs/*/fold_*`, by name, then fold number; `all` stands after the numbers."""

    def order(folder: Path) -> tuple[str, int, str]:
        fold = folder.name.removeprefix("fold_")
        return folder.parent.name, int(fold) if fold.isdecimal() else 10**6, fold

    found = [folder for model in _folders(workspace.runs) for folder in _folders(model) if folder.name[:5] == "fold_"]
    return sorted(filter(_was_begun, found), key=order)


def _was_begun(folder: Path) -> bool:
    """Whether a folder holds more than the lock of a training that was refused."""
    with suppress(OSError):
        return {path.name for path in folder.iterdir()} != {lock_file(Run(folder)).name}
    return False


def _folders(parent: Path) -> Iterator[Path]:
    with suppress(OSError):  # removed meanwhile
        yield from (path for path in parent.iterdir() if not path.name.startswith(".") and path.is_dir())


def _read_object(path: Path) -> tuple[dict[str, Any], str]:
    """A JSON file's object and "", or an empty one and what is wrong; that the file is missing is not wrong."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        return {}, f"{path.name} cannot be read: {error.strerror or error}"
    except (ValueError, RecursionError):
        return {}, f"{path.name} is no valid JSON"
    return (content, "") if isinstance(content, dict) else ({}, f"{path.name} holds something else")


def _names(run: Run, record: Mapping[str, Any]) -> dict[str, Any]:
    """Model, configuration, tag and fold as run.json has them, otherwise by the folders' names."""
    parts = [*run.folder.parent.name.split("__"), "", ""]
    by_name = {"model": parts[0], "configuration": parts[1], "tag": parts[2], "mixer": "mamba"}
    by_name |= {"scan_directions": "forward", "fold": run.folder.name.removeprefix("fold_")}
    known = {key: str(record.get(key, value)) for key, value in by_name.items()}
    variant = ModelVariant(known["model"], known.pop("mixer"), known.pop("scan_directions"))  # type: ignore[arg-type]
    return {**known, "model": variant.title, "title": variant.named(known["configuration"], known["tag"])}


def _state(
    run: Run,
    record: Mapping[str, Any],
    problem: str,
    note: Mapping[str, Any] | None,
    entries: Sequence[object],
    summary: Mapping[str, Any],
) -> str:
    if note is not None:
        return VALIDATING if note.get("stage") == "validate" else RUNNING
    if problem or (not record and (entries or run.is_finished)):
        return DAMAGED
    if not run.is_finished:
        return STOPPED
    return FINISHED if summary or not record.get("val_cases") else NOT_EVALUATED


def _epochs(
    record: Mapping[str, Any], note: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], state: str
) -> dict[str, Any]:
    epochs = _whole(_mapping(record.get("settings")).get("epochs"))
    epochs = _whole(note.get("epochs")) if epochs is None else epochs
    done = int(entries[-1]["epoch"]) if entries else _whole(note.get("epoch")) or 0
    if state in (FINISHED, NOT_EVALUATED) and not entries:
        done = epochs or 0  # without a log the final checkpoint alone tells
    left = _number(note.get("seconds_left"))
    if left is None and epochs is not None and state in (RUNNING, STOPPED):
        recent = [_number(entry.get("seconds")) for entry in entries[-_EPOCHS_TO_JUDGE_BY:]]
        known = [seconds for seconds in recent if seconds is not None]
        left = statistics.median(known) * max(0, epochs - done) if known else None
    return {"epoch": done, "epochs": epochs, "seconds_left": left}


def _who(note: Mapping[str, Any] | None) -> dict[str, Any]:
    if note is None:
        return {}
    host = note.get("host")
    return {"host": str(host) if host else None, "process": _whole(note.get("process"))}


def _best(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    known = [(dice, entry["epoch"]) for entry in entries if (dice := _number(entry.get("mean_dice"))) is not None]
    if not known:
        return {}
    dice, epoch = max(known, key=lambda pair: pair[0])
    return {"best_dice": dice, "best_epoch": epoch}


def _last(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not entries:
        return {}
    last = entries[-1]
    return {
        "train_loss": _number(last.get("train_loss")),
        "learning_rate": _number(last.get("learning_rate")),
        "precision": str(last["precision"]) if last.get("precision") else None,
        "skipped_steps": sum(_whole(entry.get("skipped_steps")) or 0 for entry in entries),
    }


def _moved(run: Run) -> datetime | None:
    """The latest change of a file that a training writes; a folder changes with every prediction put into it."""
    files = [run.configuration_file, run.log_file, running_file(run), run.validation, run.validation / "summary.json"]
    files += [run.checkpoint(kind) for kind in ("latest", "best", "final")]
    times = []
    for path in files:
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return datetime.fromtimestamp(max(times), timezone.utc).replace(microsecond=0) if times else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    """A finite number, otherwise None: nothing that a file may hold must stop the survey."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with suppress(OverflowError):
        return float(value) if math.isfinite(value) else None
    return None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
