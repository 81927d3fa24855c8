"""Predicting whole folders: `umamba predict` against `nnUNetv2_predict_from_modelfolder`, the same weights.

Both are run as processes, in turn, on the cases that fold 0 of the model held back, from starting Python to the last
label map on the disk, with test-time mirroring and without. The model is imported into a bundle before; that is not
timed. nnU-Net runs with its own defaults; ours too, and once more in float32. Labels are compared voxel by voxel.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _report import Bar, Parser, finish, positive, run

from umamba_cli.pipeline.data.files import read_json
from umamba_cli.pipeline.data.images import read_label_map
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.interop.checkpoints import import_model

LEAST = {"mirroring": 3.0, "plain": 2.0}
"""Times that ours is to be faster."""

LEAST_EQUAL = 0.9995
"""Share of all voxels with the same label."""


def main() -> None:
    shared = Path(os.environ.get("UMAMBA_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    parser = Parser(__doc__)
    parser.add_argument("--peer", type=Path, required=True, metavar="PYTHON", help="of an environment with nnunetv2")
    parser.add_argument("--model", type=Path, default=shared / "goldens" / "nnunet_model", help="default: %(default)s")
    parser.add_argument("--data", type=Path, default=shared / "data" / "Dataset004_Hippocampus")
    parser.add_argument("--repeats", type=positive, default=3, help="the median counts; default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, bars = compare(arguments, Path(folder))
    finish(
        ("kind", "nnU-Net (s)", "umamba (s)", "umamba fp32 (s)", "times faster", "labels equal", "equal in fp32"),
        rows,
        bars,
        as_json=arguments.json,
    )


def compare(arguments: Namespace, folder: Path) -> tuple[list[tuple[object, ...]], list[Bar]]:
    """Both kinds, in turn."""
    bundle, images = folder / "model.zip", folder / "images"
    import_model(arguments.model, bundle, folds=[0])
    held_out = held_out_images(arguments.model, arguments.data)
    images.mkdir()
    for path in held_out:
        shutil.copy(path, images)
    rows: list[tuple[object, ...]] = []
    bars = []
    for kind, least in LEAST.items():
        commands = {
            "nnunet": peer_command(arguments, images, mirroring=kind == "mirroring"),
            "umamba": our_command(bundle, images, arguments.device, "auto", mirroring=kind == "mirroring"),
            "fp32": our_command(bundle, images, arguments.device, "fp32", mirroring=kind == "mirroring"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(arguments.repeats):
            for name, command in commands.items():
                output = folder / name
                shutil.rmtree(output, ignore_errors=True)
                seconds[name].append(timed([*command, "-o", str(output)]))
        median = {name: statistics.median(values) for name, values in seconds.items()}
        equal, equal_fp32 = (share_equal(folder / "nnunet", folder / name) for name in ("umamba", "fp32"))
        faster = median["nnunet"] / median["umamba"]
        rows.append(
            (kind, median["nnunet"], median["umamba"], median["fp32"], faster, f"{equal:.6f}", f"{equal_fp32:.6f}")
        )
        bars += [
            Bar(f"{kind}: times faster than nnU-Net", faster, least, at_most=False),
            Bar(f"{kind}: share of labels equal", equal, LEAST_EQUAL, at_most=False),
        ]
    return rows, bars


def held_out_images(model: Path, data: Path) -> list[Path]:
    """The images of the cases that fold 0 held back.

    Raises:
        InputError: one of them is not there.
    """
    splits = read_json(model / "splits_final.json")
    found = [path for name in splits[0]["val"] for path in sorted((data / "imagesTr").glob(f"{name}_[0-9]*"))]
    if len(found) < len(splits[0]["val"]):
        raise InputError(f"{data} lacks images of {model.name}'s fold 0", next_step="name another --data")
    return found


def peer_command(arguments: Namespace, images: Path, *, mirroring: bool) -> list[str]:
    """nnU-Net's, without the output."""
    program = arguments.peer.parent / "nnUNetv2_predict_from_modelfolder"
    options = ["-f", "0", "-device", arguments.device, *([] if mirroring else ["--disable_tta"])]
    return [str(program), "-i", str(images), "-m", str(arguments.model), *options]


def our_command(bundle: Path, images: Path, device: str, precision: str, *, mirroring: bool) -> list[str]:
    """Ours, without the output."""
    options = ["--device", device, "--precision", precision, *([] if mirroring else ["--no-mirroring"])]
    return [sys.executable, "-m", "umamba_cli", "predict", str(bundle), "-i", str(images), *options]


def timed(command: Sequence[str]) -> float:
    """Seconds of a process.

    Raises:
        InputError: it failed.
    """
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise InputError(
            f"{Path(command[0]).name} ended with {done.returncode}: {done.stderr.strip()[-500:]}",
            next_step="run it by hand to see why",
        )
    return seconds


def share_equal(theirs: Path, ours: Path) -> float:
    """Share of all voxels of all cases with the same label."""
    equal = total = 0
    for path in sorted(theirs.glob("*.nii.gz")):
        one, other = read_label_map(path).labels, read_label_map(ours / path.name).labels
        equal += int(np.count_nonzero(one == other))
        total += one.size
    return equal / total


if __name__ == "__main__":
    run(main)
