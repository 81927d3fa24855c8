"""Trainings by umamba and by nnU-Net from raw images, as processes that tell of each epoch; for two benchmarks.

Both get the same patches, batches and U-Net: what `umamba plan` decides is written into nnU-Net's own plans before its
training. Spacing and normalisation are each one's own decision, and so are the folds, which are the same ones.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from _peer_training import Epoch, Job

from umamba_cli.pipeline.data.files import write_json
from umamba_cli.pipeline.data.workspace import Workspace
from umamba_cli.pipeline.errors import InputError, WorkError
from umamba_cli.pipeline.planning.plans import read_plans

CONFIGURATION = "3d_fullres"
NNUNET = "nnunet"
_PREPARE = (
    "from nnunetv2.experiment_planning import plan_and_preprocess_entrypoints as e; e.plan_and_preprocess_entry()"
)
_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
_NETWORK = ("n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage", "n_conv_per_stage_decoder")


@dataclass(frozen=True)
class System:
    """Who trains, on what, and where the files are."""

    name: str
    """A model of ours, or `nnunet`."""

    dataset: Path
    """In nnU-Net raw layout; its folder is called DatasetNNN_NAME."""

    folder: Path
    """All is written below it."""

    plans: Path
    """Our plans, which both follow."""

    preset: str
    cores: int
    """For worker processes, and for threads on a CPU."""

    peer: Path
    """Python of nnU-Net's environment."""

    peer_workers: int | None = None
    """Processes that augment for nnU-Net; None: what it takes by itself."""

    def prepare(self) -> float:
        """Fingerprint, plans and preprocessed cases from the raw images; the seconds of the commands.

        Raises:
            WorkError: a command failed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        seconds = self._prepare_theirs() if self.name == NNUNET else self._prepare_ours()
        return round(seconds, 3)

    def train(self, job: Job) -> Iterator[Epoch]:
        """The epochs of a training, one by one.

        Args:
            job: what to train; `model`, `data` and `started` are set here.

        Raises:
            WorkError: it ended before its last epoch.
        """
        data = self.dataset.name if self.name == NNUNET else str(self._workspace.folder)
        python = self.peer if self.name == NNUNET else Path(sys.executable)
        script = "_peer_training.py" if self.name == NNUNET else "_our_training.py"
        file, log = self.folder / "job.json", self.folder / "training.log"
        write_json(file, asdict(replace(job, model=self.name, data=data, started=time.time())))
        command = [python, Path(__file__).with_name(script), file]
        told = 0
        with log.open("w") as errors, _started(command, self._environment(), errors) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    told += 1
                    yield Epoch(**json.loads(line))
            finally:
                if told < job.epochs:
                    _kill(process)
        if told < job.epochs or process.returncode:
            raise _failed(f"the training of {self.name}", log)

    @property
    def _workspace(self) -> Workspace:
        return Workspace(self.folder / "workspace")

    def _prepare_ours(self) -> float:
        workspace = self._workspace.folder
        umamba = [sys.executable, "-m", "umamba_cli"]
        return sum(
            self._command([*umamba, *map(str, arguments), "--quiet"])
            for arguments in (
                ("plan", self.dataset, "-w", workspace, "--preset", self.preset, "-j", self.cores),
                ("preprocess", workspace, "-c", CONFIGURATION, "-j", self.cores),
            )
        )

    def _prepare_theirs(self) -> float:
        for name in _FOLDERS:
            (self.folder / name).mkdir(exist_ok=True)
        raw = self.folder / "nnUNet_raw" / self.dataset.name
        raw.unlink(missing_ok=True)
        raw.symlink_to(self.dataset.resolve())
        number = str(int(self.dataset.name[7:10]))
        workers = str(self.cores)
        options = ["-d", number, "-c", CONFIGURATION, "-np", workers, "-npfp", workers, "--no_pbar"]
        seconds = self._command([str(self.peer), "-c", _PREPARE, *options])
        self._adapt(self.folder / "nnUNet_preprocessed" / self.dataset.name / "nnUNetPlans.json")
        return seconds

    def _adapt(self, file: Path) -> None:
        """Write patch, batch and network of our plans into nnU-Net's."""
        ours = json.loads(self.plans.read_text())["configurations"][CONFIGURATION]
        plans = json.loads(file.read_text())
        theirs = plans["configurations"][CONFIGURATION]
        if not np.allclose(theirs["spacing"], ours["spacing"], rtol=1e-3):
            raise WorkError(
                f"nnU-Net resamples to {theirs['spacing']} mm, umamba to {ours['spacing']} mm",
                next_step="take a dataset for which they decide alike",
            )
        for key in ("patch_size", "batch_size", "batch_dice"):
            theirs[key] = ours[key]
        network = ours["architecture"]["arch_kwargs"]
        theirs["architecture"]["arch_kwargs"].update({key: network[key] for key in _NETWORK})
        write_json(file, plans)

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        if self.name == NNUNET:
            environment.update({name: str(self.folder / name) for name in _FOLDERS})
            environment["nnUNet_def_n_proc"] = str(self.cores)
            if self.peer_workers is not None:
                environment["nnUNet_n_proc_DA"] = str(self.peer_workers)
        return environment

    def _command(self, command: list[str]) -> float:
        log = self.folder / "prepare.log"
        began = time.perf_counter()
        with log.open("a") as file, _started(command, self._environment(), file, quiet=True) as process:
            try:
                process.wait()
            finally:
                if process.returncode is None:
                    _kill(process)
        if process.returncode:
            raise _failed(f"{self.name}: preprocessing", log)
        return time.perf_counter() - began


def plan_both(dataset: Path, folder: Path, preset: str) -> Path:
    """The plans that both sides follow; `umamba plan` writes them.

    Raises:
        InputError: the dataset's folder has no name that nnU-Net knows, or cannot be planned for.
    """
    if not (dataset.name[:7] == "Dataset" and dataset.name[7:10].isdigit() and dataset.name[10:11] == "_"):
        raise InputError(f"{dataset} is not called DatasetNNN_NAME", next_step="give it a name that nnU-Net takes")
    from umamba_cli.pipeline.planning.planner import PlanOptions
    from umamba_cli.pipeline.workflows.plan import plan_workspace

    planned = plan_workspace(dataset, folder, PlanOptions(preset=preset))  # type: ignore[arg-type]
    read_plans(planned.workspace.plans_file).configuration(CONFIGURATION)
    return planned.workspace.plans_file


def end_by_signal() -> None:
    """Let SIGTERM end this process as Ctrl-C does, and with it all that it started."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def keep_to(cores: int) -> None:
    """Let this process and all that it starts run on so many cores, where the system can see to it.

    Raises:
        InputError: there are fewer.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < cores:
        raise InputError(f"there are only {len(usable)} cores", next_step="give fewer --cores")
    os.sched_setaffinity(0, usable[:cores])


def _started(
    command: list[Any], environment: Mapping[str, str], errors: Any, *, quiet: bool = False
) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=errors if quiet else subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,  # so that its workers end with it
        )
    except OSError as error:
        raise InputError(f"{command[0]} cannot be run: {error}", next_step="give a Python as --peer") from error


def _kill(process: subprocess.Popen[str]) -> None:
    """End a process and all that it started: workers of nnU-Net would go on without it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _failed(what: str, log: Path) -> WorkError:
    last = " ".join(log.read_text(errors="replace").strip().splitlines()[-1:])
    return WorkError(f"{what} failed: {last[:300]}", next_step=f"read {log} (kept with --keep)")
