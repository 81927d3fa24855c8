"""Evaluating predictions: `umamba evaluate` against surface-distance, MONAI and nnU-Net.

**CTs.** 5 CTs of 512x512x200 voxels are drawn with 14 organs, from a nodule of twenty voxels to a liver, and what a
model made of them: moved, dented, rough, with false findings far off (see `_synthetic_organs.py`). surface-distance,
MONAI and ours work out surface Dice at 2 mm and the 95 % Hausdorff distance, each in one process of its own, of masks
in memory: reading files does not count (see `_surface_libraries.py`). Then the whole of ours: `umamba evaluate` with
all its metrics, from starting Python to the file it writes, in two processes; held against the others' computing alone.
The median over cases and repeats counts, of whole processes that over repeats. Memory is the highest resident memory of
a single process, as the kernel has it.

Both figures are to be those of surface-distance. MONAI's differ, and how far is shown: it counts edge voxels, whatever
area they stand for, so that thick slices and slanted surfaces weigh more or less than they cover.

**Hippocampus.** 26 predictions of nnU-Net's, each of about 36x50x35 voxels: `umamba evaluate`, with all that it
computes, against `nnUNetv2_evaluate_simple`, with its defaults and with `-np 1`; whole processes, in turn.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _process_memory import process_tree
from _report import Bar, Parser, Table, finish, positive, run
from _surface_libraries import LIBRARIES
from _synthetic_organs import SHAPE, write_cases

from umamba_cli.pipeline.data.files import read_json
from umamba_cli.pipeline.errors import InputError

HERE = Path(__file__).resolve().parent
GIB = 2**30
TOLERANCE_MM = 2.0
WORKERS = 2

LEAST = {"surface-distance": 2.0, "MONAI": 10.0}
"""Times that ours is to be faster, its computing and the whole."""

LEAST_SMALL = {"by default": 4.0, "with -np 1": 2.0}
"""The same for whole processes on the hippocampus, against nnU-Net."""

MOST_APART, MOST_DICE_APART, MOST_GIB = 1e-3, 1e-6, 0.5

Figures = dict[str, dict[str, list[float]]]
"""Surface Dice and HD95 by case and label."""


@dataclass
class Runs:
    """What was seen of one program."""

    case_s: list[float] = field(default_factory=list)
    """Of computing one case; of whole programs, the whole over the cases."""

    whole_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    figures: Figures = field(default_factory=dict)

    @property
    def each_s(self) -> float:
        """The median."""
        return statistics.median(self.case_s)


def main() -> None:
    shared = Path(os.environ.get("UMAMBA_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    parser = Parser(__doc__)
    parser.add_argument("--peer", type=Path, required=True, metavar="PYTHON", help="of an environment with nnunetv2")
    parser.add_argument("--shared", type=Path, default=shared, help="with data/ and goldens/; default: %(default)s")
    parser.add_argument("--cts", type=positive, default=5, help="to draw; default: %(default)s")
    parser.add_argument("--planes", type=positive, default=SHAPE[0], help="of each CT; default: %(default)s")
    parser.add_argument("--repeats", type=positive, default=3, help="the median counts; default: %(default)s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, bars = compare_cts(arguments, Path(folder))
        small, small_bars = compare_small(arguments, Path(folder) / "small")
    finish(
        ("program", "s a case", "whole (s)", "peak of a process (GiB)", "surface Dice apart", "HD95 apart (mm)"),
        rows,
        [*bars, *small_bars],
        as_json=arguments.json,
        more=Table("hippocampus", ("program", "whole (s)", "times faster"), small),
    )


def compare_cts(arguments: Namespace, folder: Path) -> tuple[list[tuple[object, ...]], list[Bar]]:
    """All programs on drawn CTs, in turn."""
    predictions, references = write_cases(folder, arguments.cts, (arguments.planes, *SHAPE[1:]))
    libraries = {name: Runs() for name in LIBRARIES}
    whole = Runs()
    for _ in range(arguments.repeats):
        for name, runs in libraries.items():
            measure_library(name, runs, predictions, references)
        measure_whole(whole, predictions, references, arguments.cts)
    programs = {**libraries, "umamba evaluate, all metrics": whole}
    wanted = libraries["surface-distance"].figures
    apart = {name: largest_differences(runs.figures, wanted) for name, runs in programs.items()}
    rows = [
        (name, runs.each_s, statistics.median(runs.whole_s), runs.peak_bytes / GIB, *apart[name])
        for name, runs in programs.items()
    ]
    bars = []
    for (peer, least), (what, ours) in itertools.product(
        LEAST.items(), {"surfaces": libraries["umamba"], "all metrics and files": whole}.items()
    ):
        faster = libraries[peer].each_s / ours.each_s
        bars.append(Bar(f"CTs, {what}: times faster than {peer}", faster, least, at_most=False))
    figures = ("surface Dice", "HD95 in mm")
    bars += [
        Bar(f"CTs, {figure}: apart from surface-distance", difference, MOST_APART, at_most=True)
        for figure, difference in zip(figures, apart["umamba evaluate, all metrics"], strict=True)
    ]
    bars.append(Bar("CTs: GiB of a process", whole.peak_bytes / GIB, MOST_GIB, at_most=True))
    return rows, bars


def measure_library(name: str, runs: Runs, predictions: Path, references: Path) -> None:
    """Run one library on all cases and add what was seen."""
    file = predictions.parent / "figures.json"
    script = str(HERE / "_surface_libraries.py")
    seconds, peak = watched([sys.executable, script, name, predictions, references, str(TOLERANCE_MM), file])
    content = read_json(file)
    runs.case_s += content["seconds"]
    runs.figures = content["figures"]
    runs.whole_s.append(seconds)
    runs.peak_bytes = max(runs.peak_bytes, peak)


def measure_whole(runs: Runs, predictions: Path, references: Path, cases: int) -> None:
    """Run `umamba evaluate` on all cases and add what was seen."""
    file = predictions.parent / "summary.json"
    options = ["--tolerance", str(TOLERANCE_MM), "-j", str(WORKERS)]
    seconds, peak = watched(our_command(predictions, references, file, options))
    runs.whole_s.append(seconds)
    runs.case_s.append(seconds / cases)
    runs.peak_bytes = max(runs.peak_bytes, peak)
    runs.figures = {
        case["case"]: {
            label: [math.nan if metrics[key] is None else metrics[key] for key in ("surface_dice", "hd95")]
            for label, metrics in case["labels"].items()
        }
        for case in read_json(file)["cases"]
    }


def our_command(predictions: Path, references: Path, file: Path, options: Sequence[str]) -> list[Any]:
    return [sys.executable, "-m", "umamba_cli", "evaluate", predictions, references, "-q", "-o", file, *options]


def largest_differences(figures: Figures, wanted: Figures) -> tuple[float, float]:
    """How far surface Dice and HD95 are apart at most, over all cases and labels; infinite where only one is a number.

    Where a mask is empty, the distance is no number here and infinite there: both say that there is none.
    """
    largest = [0.0, 0.0]
    for case, labels in wanted.items():
        for label, values in labels.items():
            found = figures[case].get(label, [math.nan] * len(values))
            for index, (theirs, ours) in enumerate(zip(values, found, strict=True)):
                if math.isfinite(theirs) != math.isfinite(ours):
                    largest[index] = math.inf
                elif math.isfinite(theirs):
                    largest[index] = max(largest[index], abs(theirs - ours))
    return largest[0], largest[1]


def watched(command: Sequence[Any]) -> tuple[float, int]:
    """Run a process to its end: seconds, and the most memory that it or a process below it had by itself, in bytes.

    Raises:
        InputError: it failed.
    """
    with tempfile.TemporaryFile() as errors:
        began, peak = time.perf_counter(), 0
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            peak = max(peak, *map(highest_resident_bytes, process_tree(process.pid)))
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        if process.returncode:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()
            raise InputError(
                f"{' '.join(map(str, command[:4]))} ended with {process.returncode}: {said[-500:]}",
                next_step="see that the extra `bench` is installed, and run it by hand",
            )
    return seconds, peak


def highest_resident_bytes(process: int) -> int:
    """Of a process since it began; 0 where it has ended, or the system does not tell."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def compare_small(arguments: Namespace, folder: Path) -> tuple[list[tuple[object, ...]], list[Bar]]:
    """Whole processes on the hippocampus, in turn.

    Raises:
        InputError: the data are not there, or a program fails.
    """
    predictions = arguments.shared / "goldens" / "nnunet_model" / "predictions" / "mirroring"
    data = arguments.shared / "data" / "Dataset004_Hippocampus"
    names = sorted(path.name for path in predictions.glob("*.nii.gz"))
    if not names or not (data / "labelsTr").is_dir():
        raise InputError(f"{arguments.shared} lacks {predictions} or {data}", next_step="name another --shared")
    references = folder / "references"  # nnU-Net refuses references without a prediction
    references.mkdir(parents=True)
    for name in names:
        shutil.copy(data / "labelsTr" / name, references)
    labels = [str(label) for label in read_json(data / "dataset.json")["labels"].values() if label]
    theirs, ours = folder / "theirs.json", folder / "ours.json"
    peer = [arguments.peer.parent / "nnUNetv2_evaluate_simple", references, predictions, "-l", *labels, "-o", theirs]
    commands = {
        "by default": peer,
        "with -np 1": [*peer, "-np", "1"],
        "umamba": our_command(predictions, references, ours, ["--dataset", str(data / "dataset.json")]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(arguments.repeats):
        for name, command in commands.items():
            seconds[name].append(watched(command)[0])
    median = {name: statistics.median(values) for name, values in seconds.items()}
    faster = {name: median[name] / median["umamba"] for name in LEAST_SMALL}
    rows: list[tuple[object, ...]] = [(f"nnU-Net {name}", median[name], faster[name]) for name in LEAST_SMALL]
    rows.append(("umamba", median["umamba"], ""))
    bars = [
        Bar(f"hippocampus: times faster than nnU-Net {name}", faster[name], least, at_most=False)
        for name, least in LEAST_SMALL.items()
    ]
    apart = abs(json.loads(theirs.read_text())["foreground_mean"]["Dice"] - read_json(ours)["foreground_mean"]["dice"])
    bars.append(Bar("hippocampus: mean Dice apart from nnU-Net's", apart, MOST_DICE_APART, at_most=True))
    return rows, bars


if __name__ == "__main__":
    run(main)
