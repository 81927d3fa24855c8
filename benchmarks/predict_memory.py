"""Predicting one large CT: memory and time of `umamba predict` and `nnUNetv2_predict_from_modelfolder`, same weights.

The CT is drawn: 512x512x300 voxels of 0.8x0.8x1.5 mm. The model has 24 labels and works at 1.5 mm, in tiles of
128x128x128; its network is tiny, with weights made by hand (see `_peer_model.py`): what lies around the network counts.
Both programs run as processes on the CPU, without mirroring, in steps of half a tile, from starting Python to the label
map on the disk. Ours runs alone then with 105 labels, on 300 and on 600 planes.

Memory is the proportional set size summed over all processes of a program at a moment, mapped files counted, looked at
every tenth of a second; the highest sum counts.

The time after the network is
- nnU-Net's: from the end of its sliding window to the end of its last process: what it calls export. That it adds tiles
  up, and divides by their weights, counts as network.
- ours: from the network's first call to the end of the process, less the time in the network's calls. Slabs leave while
  further tiles are to come; this way adding tiles up, interpolating, taking the likeliest label and writing all count,
  wherever they happen.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _process_memory import watch
from _report import Bar, Parser, finish, positive, run
from _synthetic_ct import draw_ct, normalised, write_ct, write_model_folder

from umamba_cli.pipeline.data.images import read_label_map
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.interop.checkpoints import import_model

HERE = Path(__file__).resolve().parent
SPACING_MM, TARGET_MM = (1.5, 0.8, 0.8), 1.5
LABELS, MANY_LABELS = 24, 105
GIB = 2**30

MOST_MEMORY, MOST_TIME, LEAST_EQUAL = 0.25, 0.2, 0.998
"""Shares: of nnU-Net's peak, of its time after the network, of all voxels."""

MOST_GIB, MOST_GROWTH = 6.0, 1.3
"""With many labels: the peak at 600 planes, and that over the peak at 300."""


@dataclass(frozen=True)
class Model:
    """The same weights in both forms."""

    folder: Path
    bundle: Path


@dataclass(frozen=True)
class Prediction:
    """What a prediction took."""

    program: str
    labels: int
    planes: int
    peak_bytes: int
    before_s: float
    network_s: float
    after_s: float

    @property
    def row(self) -> tuple[object, ...]:
        """As the table has it."""
        whole = self.before_s + self.network_s + self.after_s
        figures = (self.peak_bytes / GIB, whole, self.before_s, self.network_s, self.after_s)
        return (self.program, self.labels, self.planes, *figures)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--peer", type=Path, required=True, metavar="PYTHON", help="of an environment with nnunetv2")
    parser.add_argument("--size", type=positive, default=512, help="voxels along x and y; default: %(default)s")
    parser.add_argument("--planes", type=positive, default=300, help="along z; default: %(default)s")
    parser.add_argument("--precision", default="auto", help="ours computes in; default: %(default)s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        predictions, bars = compare(arguments, Path(folder))
    finish(
        ("program", "labels", "planes", "peak (GiB)", "whole (s)", "before the network", "network", "after it"),
        [prediction.row for prediction in predictions],
        bars,
        as_json=arguments.json,
    )


def compare(arguments: Namespace, folder: Path) -> tuple[list[Prediction], list[Bar]]:
    """All predictions, in turn."""
    size, planes = arguments.size, arguments.planes
    model = make_model(folder / "model", arguments.peer, (planes, size), LABELS)
    images = draw(folder / "images", (planes, size), LABELS)
    theirs = predict_theirs(arguments.peer, model, images, folder / "theirs", (LABELS, planes))
    ours = predict_ours(model, images, folder / "ours", arguments.precision, (LABELS, planes))
    equal = share_equal(folder / "theirs", folder / "ours")
    model = make_model(folder / "many", arguments.peer, (2 * planes, size), MANY_LABELS)
    alone = []
    for count in (planes, 2 * planes):
        images = draw(folder / f"many_{count}", (count, size), MANY_LABELS)
        alone.append(predict_ours(model, images, folder / f"out_{count}", arguments.precision, (MANY_LABELS, count)))
    short, long = (prediction.peak_bytes for prediction in alone)
    many = f"{MANY_LABELS} labels, {2 * planes} planes"
    bars = [
        Bar("peak memory, share of nnU-Net's", ours.peak_bytes / theirs.peak_bytes, MOST_MEMORY, at_most=True),
        Bar("time after the network, share of nnU-Net's", ours.after_s / theirs.after_s, MOST_TIME, at_most=True),
        Bar("share of labels equal", equal, LEAST_EQUAL, at_most=False),
        Bar(f"{many}: peak memory in GiB", long / GIB, MOST_GIB, at_most=True),
        Bar(f"{many}: peak memory over that of {planes} planes", long / short, MOST_GROWTH, at_most=True),
    ]
    return [theirs, ours, *alone], bars


def make_model(folder: Path, peer: Path, size: tuple[int, int], labels: int) -> Model:
    """A model folder of nnU-Net's, and the bundle that it becomes.

    Args:
        folder: is made.
        peer: nnU-Net's Python.
        size: voxels of a CT along z, and along y and x.
        labels: of the model, without the background.

    Raises:
        InputError: that Python has no nnU-Net.
    """
    write_model_folder(folder, labels, TARGET_MM)
    across = round(size[1] * SPACING_MM[1] / TARGET_MM)
    drawn = draw_ct((size[0], across, across), (TARGET_MM,) * 3, labels)
    np.savez(folder / "drawn.npz", image=normalised(drawn.voxels), kinds=drawn.kinds)
    command = [str(peer), str(HERE / "_peer_model.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(
            f"{peer} could not make a model: {done.stderr.strip()[-500:]}",
            next_step="name the Python of an environment with nnunetv2",
        )
    bundle = folder.with_suffix(".zip")
    import_model(folder, bundle)
    return Model(folder, bundle)


def draw(folder: Path, size: tuple[int, int], labels: int) -> Path:
    """A folder with one CT; arguments as for `make_model`."""
    folder.mkdir()
    planes, across = size
    write_ct(folder / "ct_0000.nii.gz", draw_ct((planes, across, across), SPACING_MM, labels).voxels, SPACING_MM)
    return folder


def predict_theirs(peer: Path, model: Model, images: Path, output: Path, what: tuple[int, int]) -> Prediction:
    """By nnU-Net; `what` is how many labels and planes."""
    options = ["-f", "0", "-device", "cpu", "--disable_tta", "--disable_progress_bar"]
    command = ["-i", str(images), "-o", str(output), "-m", str(model.folder), *options]
    return noted("nnunet", [str(peer)], command, output.with_suffix(".json"), what)


def predict_ours(model: Model, images: Path, output: Path, precision: str, what: tuple[int, int]) -> Prediction:
    """By umamba; `what` is how many labels and planes."""
    options = ["--device", "cpu", "--precision", precision, "--no-mirroring", "--quiet"]
    command = ["predict", str(model.bundle), "-i", str(images), "-o", str(output), *options]
    return noted("umamba", [sys.executable], command, output.with_suffix(".json"), what)


def noted(program: str, python: list[str], command: list[str], notes: Path, what: tuple[int, int]) -> Prediction:
    """A prediction, watched from outside and noting times inside.

    Raises:
        InputError: it failed.
    """
    script = [str(HERE / "_noted_prediction.py"), str(notes), program]
    seen = watch([*python, *script, *command])
    times = json.loads(notes.read_text(encoding="utf-8"))
    network = times["inside"] if program == "umamba" else times["window_ended"] - times["first"]
    before = times["first"] - seen.began
    return Prediction(program, *what, seen.peak_bytes, before, network, seen.seconds - before - network)


def share_equal(theirs: Path, ours: Path) -> float:
    """Share of all voxels with the same label."""
    one, other = (read_label_map(folder / "ct.nii.gz").labels for folder in (theirs, ours))
    return float(np.count_nonzero(one == other) / one.size)


if __name__ == "__main__":
    run(main)
