"""How long planning and preprocessing take, against nnU-Net: whole processes in turn, medians.

Ours: `umamba plan` and `umamba preprocess`, in a fresh workspace each time. Theirs: `nnUNetv2_plan_and_preprocess`, one
process, in fresh folders; its plan seconds end where it says "Preprocessing...". Both get the same number of workers
and leave threads as they are by default. Ours checks every case, also for voxels that are not finite; theirs does so
only with --verify, which is off. Memory is the largest sum of the resident memory of a command's processes, looked at
five times a second; pages that they share count in each.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil
from _report import Bar, Parser, finish, positive, run

from umamba_cli.pipeline.data.dataset import Dataset, open_dataset
from umamba_cli.pipeline.data.images import read_image
from umamba_cli.pipeline.errors import InputError, WorkError

ENTRY = "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry as entry"
MANY_CASES, BAR_OF_MANY, BAR_OF_FEW = 100, 4.0, 2.0
SECONDS_BETWEEN_LOOKS = 0.2
MIB = 1024**2


@dataclass
class Side:
    """What the runs of one side took, one entry a run."""

    name: str
    plan_s: list[float] = field(default_factory=list)
    preprocess_s: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)

    def medians(self) -> tuple[float, float, float, float]:
        """Plan, preprocess and total seconds, and peak memory."""
        totals = [plan + preprocess for plan, preprocess in zip(self.plan_s, self.preprocess_s, strict=True)]
        columns = (self.plan_s, self.preprocess_s, totals, self.memory_mib)
        plan, preprocess, total, memory = (statistics.median(column) for column in columns)
        return plan, preprocess, total, memory


@dataclass(frozen=True)
class Finished:
    """A command that ended well."""

    seconds: float
    seconds_to_mark: float
    """When it printed the line that was waited for; `seconds` where it never did."""

    peak_bytes: int


def main() -> None:
    arguments = parse_arguments()
    dataset = open_dataset(arguments.dataset)
    version = peer_version(arguments.peer)
    is_2d = has_single_slices(dataset)
    configuration = arguments.configuration or ("2d" if is_2d else "3d_fullres")
    bar = BAR_OF_MANY if not is_2d and len(dataset.cases) >= MANY_CASES else BAR_OF_FEW
    bar = bar if arguments.bar is None else arguments.bar
    read_all_files(dataset.folder)
    ours, theirs = Side("umamba"), Side(f"nnU-Net {version}")
    for _ in range(arguments.repeats):  # in turn, so that both meet the same noise
        with tempfile.TemporaryDirectory() as folder:
            run_ours(ours, dataset, configuration, arguments.workers, Path(folder))
        with tempfile.TemporaryDirectory() as folder:
            run_theirs(theirs, dataset, configuration, arguments, Path(folder))
    ratios = [b / a for a, b in zip(ours.medians(), theirs.medians(), strict=True)]
    finish(
        ("side", "plan s", "preprocess s", "total s", "memory MiB"),
        [*((side.name, *side.medians()) for side in (ours, theirs)), ("theirs / ours", *ratios)],
        [Bar(f"{dataset.name}, {configuration}: times faster than nnU-Net", ratios[2], bar, at_most=False)],
        as_json=arguments.json,
    )


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("dataset", type=Path, help="in nnU-Net raw layout")
    parser.add_argument("--peer", type=Path, required=True, metavar="PYTHON", help="of an environment with nnunetv2")
    parser.add_argument("-c", "--configuration", help="default: 3d_fullres, or 2d where the images are single slices")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--workers", type=positive, default=2, help="of either side; default: %(default)s")
    parser.add_argument(
        "--bar",
        type=float,
        help=f"default: {BAR_OF_MANY:g} for {MANY_CASES} volumes or more, otherwise {BAR_OF_FEW:g}",
    )
    parser.add_argument("--verify", action="store_true", help="let nnU-Net check the cases, too")
    return parser.parse_args()


def peer_version(python: Path) -> str:
    """The version of nnU-Net beside `python`; its modules are loaded once, which spares its first run the disk.

    Raises:
        InputError: there is no nnU-Net.
    """
    code = f"{ENTRY}; import importlib.metadata as metadata; print(metadata.version('nnunetv2'))"
    try:
        finished = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        last = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
        raise InputError(
            f"nnU-Net cannot be run with {python}: {last}",
            next_step="name the Python of an environment that has nnunetv2 2.8.1 with --peer",
        ) from error
    return finished.stdout.split()[-1]


def has_single_slices(dataset: Dataset) -> bool:
    """Whether the first image is a single slice.

    Raises:
        InputError: there is no image, or it cannot be read.
    """
    for case in dataset.cases:
        if case.images:
            return bool(read_image(case.images).voxels.shape[1] == 1)
    raise InputError(f"{dataset.folder} has no image", next_step=f"see `umamba check {dataset.folder}`")


def read_all_files(folder: Path) -> None:
    """Bring the raw files into the system's cache, so that no side reads them from the disk for the other."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()


def run_ours(side: Side, dataset: Dataset, configuration: str, workers: int, folder: Path) -> None:
    """Plan and preprocess once."""
    umamba = [sys.executable, "-m", "umamba_cli"]
    work, number = folder / "work", str(workers)
    plan = timed([*umamba, "plan", str(dataset.folder), "-w", str(work), "-j", number])
    preprocess = timed([*umamba, "preprocess", str(work), "-c", configuration, "-j", number])
    side.plan_s.append(plan.seconds)
    side.preprocess_s.append(preprocess.seconds)
    side.memory_mib.append(max(plan.peak_bytes, preprocess.peak_bytes) / MIB)
    tell(side)


def run_theirs(side: Side, dataset: Dataset, configuration: str, arguments: Namespace, folder: Path) -> None:
    """Plan and preprocess once.

    Raises:
        WorkError: it failed, or did not preprocess all cases: it only skips a configuration that it did not plan.
    """
    match = re.fullmatch(r"Dataset(\d{3})_.+", dataset.name)
    identity, name = (int(match[1]), dataset.name) if match else (999, f"Dataset999_{dataset.name}")
    roots = {key: folder / key for key in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for root in roots.values():
        root.mkdir()
    try:
        (roots["nnUNet_raw"] / name).symlink_to(dataset.folder, target_is_directory=True)
    except OSError:  # a system without links
        shutil.copytree(dataset.folder, roots["nnUNet_raw"] / name)
    script = arguments.peer.parent / "nnUNetv2_plan_and_preprocess"
    command = [str(script)] if script.is_file() else [str(arguments.peer), "-c", f"{ENTRY}; entry()"]
    workers = str(arguments.workers)
    command += ["-d", str(identity), "-c", configuration, "-np", workers, "-npfp", workers]
    command += ["--verify_dataset_integrity"] if arguments.verify else []
    finished = timed(command, mark="Preprocessing...", **{key: str(root) for key, root in roots.items()})
    done = len(list((roots["nnUNet_preprocessed"] / name).glob(f"*_{configuration}/*.pkl")))
    if done != len(dataset.cases):
        raise WorkError(
            f"nnU-Net preprocessed {done} of {len(dataset.cases)} cases for {configuration}",
            next_step="choose a configuration that it plans, with -c",
        )
    side.plan_s.append(finished.seconds_to_mark)
    side.preprocess_s.append(finished.seconds - finished.seconds_to_mark)
    side.memory_mib.append(finished.peak_bytes / MIB)
    tell(side)


def timed(command: list[str], *, mark: str | None = None, **environment: str) -> Finished:
    """Run a command to its end.

    Args:
        command: the program and its arguments.
        mark: a line of its output whose time is noted.
        environment: variables to set, besides those of this process.

    Raises:
        InputError: it found its arguments wrong.
        WorkError: it failed.
    """
    last_lines: deque[str] = deque(maxlen=5)
    marked: list[float] = []
    began = time.perf_counter()

    def read(output: IO[str]) -> None:
        for line in output:
            last_lines.append(line.strip())
            if last_lines[-1] == mark:
                marked.append(time.perf_counter() - began)

    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        reader, memory = threading.Thread(target=read, args=(process.stdout,)), MemoryWatch(process.pid)
        reader.start()
        memory.start()
        code = process.wait()
        seconds = time.perf_counter() - began
        memory.stop()
        reader.join()  # helpers of the process may outlive it a little; the next run must not meet them
    if code:
        kind = InputError if code == InputError.exit_code else WorkError
        raise kind(f"`{' '.join(command)}` ended with {code}: {' '.join(last_lines)}", next_step="run it by itself")
    return Finished(seconds, marked[0] if marked else seconds, memory.peak_bytes)


class MemoryWatch(threading.Thread):
    """Looks at the resident memory of a process and all its descendants until it is told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._pid = pid
        self._over = threading.Event()

    def run(self) -> None:
        """Look again and again; `start` calls this."""
        while not self._over.is_set():
            self.peak_bytes = max(self.peak_bytes, self._resident())
            self._over.wait(SECONDS_BETWEEN_LOOKS)

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self.join()

    def _resident(self) -> int:
        total = 0
        try:
            root = psutil.Process(self._pid)
            for process in (root, *root.children(recursive=True)):
                total += process.memory_info().rss
        except psutil.Error:  # one of them has just ended
            return total
        return total


def tell(side: Side) -> None:
    """One line on standard error for a run that ended: all of them together take minutes."""
    latest = {"plan_s": side.plan_s[-1], "preprocess_s": side.preprocess_s[-1], "memory_mib": side.memory_mib[-1]}
    print(f"{side.name} run {len(side.plan_s)}: {json.dumps(latest)}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
