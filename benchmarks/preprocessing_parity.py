"""Our fingerprints, preprocessed cases and resampled grids against nnU-Net's, from the same image files.

GOLDENS holds a folder for each dataset, with nnU-Net's dataset_fingerprint.json, its nnUNetPlans.json, and
CASE_CONFIGURATION.npz: the case as nnU-Net preprocessed it (`data` and `seg`, its geometry in the .json beside it);
and resampling*.npz, single grids that nnU-Net resampled, described in the .json beside it. DATA holds the datasets'
raw images in folders of the same names. All that is found is compared:

  shapes, spacings     of every case, cropped; cases that differ, largest relative difference
  intensities          |ours - theirs| / max(|theirs|, std), the largest of all statistics and channels, where std is
                       nnU-Net's standard deviation of the channel: a percentile near 0 has no scale of its own.
                       nnU-Net draws voxels at random, so these agree only in the limit
  relative size        median share of a case that cropping leaves, absolute difference
  data                 largest absolute difference of the preprocessed image (standardised intensities)
  labels               voxels whose label differs, the -1 outside the nonzero mask included
  geometry             entries of the .json that differ: spacing, shapes before and after cropping, box
  resampled data       largest absolute difference
  resampled labels     voxels whose label differs
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _report import Bar, Parser, finish, in_short, positive, run
from numpy.typing import NDArray

from umamba_cli.pipeline.data.dataset import Dataset, open_dataset
from umamba_cli.pipeline.data.images import read_image, read_label_map
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.planning.planner import PlanOptions
from umamba_cli.pipeline.planning.plans import read_plans
from umamba_cli.pipeline.preprocessing.case import CaseGeometry, preprocess
from umamba_cli.pipeline.preprocessing.resampling import resample_image, resample_labels
from umamba_cli.pipeline.workflows.plan import plan_workspace

LIMITS = {
    "shapes": 0,
    "spacings": 1e-6,
    "intensities": 0.02,
    "relative size": 1e-6,
    "data": 1e-4,
    "labels": 0,
    "geometry": 0,
    "resampled data": 1e-4,
    "resampled labels": 0,
    "not compared": 0,
}
"""The largest difference allowed of each kind; `not compared` counts what was asked for and could not be."""


@dataclass(frozen=True)
class Finding:
    """One difference between ours and theirs."""

    dataset: str
    golden: str
    kind: str
    difference: float
    note: str = ""


def main() -> None:
    shared = Path(os.environ.get("UMAMBA_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    parser = Parser(__doc__)
    parser.add_argument("--data", type=Path, default=shared / "data", help="default: %(default)s")
    parser.add_argument("--goldens", type=Path, default=shared / "goldens" / "preprocessing")
    parser.add_argument("-d", "--dataset", action="append", metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("-j", "--workers", type=positive, help="processes that measure the fingerprint")
    arguments = parser.parse_args()
    found = list(compare_all(arguments))
    bars = []
    for kind, limit in LIMITS.items():
        differences = [finding.difference for finding in found if finding.kind == kind]
        if kind == "not compared":
            bars.append(Bar("not compared: count", len(differences), limit, at_most=True))
        elif differences:
            bars.append(Bar(f"{kind}: largest difference", largest(differences), limit, at_most=True))
    finish(
        ("dataset", "golden", "compared", "difference", "note"),
        [(f.dataset, f.golden, f.kind, f.difference, f.note) for f in found],
        bars,
        as_json=arguments.json,
    )


def compare_all(arguments: Namespace) -> Iterator[Finding]:
    """Every golden that was asked for.

    Raises:
        InputError: there is nothing to compare, or a dataset that was asked for has no golden.
    """
    files = [
        file for name in ("dataset_fingerprint", "nnUNetPlans") for file in arguments.goldens.glob(f"*/{name}.json")
    ]
    folders = {file.parent.name: file.parent for file in sorted(files)}
    grids = [] if arguments.dataset else sorted(arguments.goldens.glob("resampling*.npz"))
    wanted = arguments.dataset or list(folders)
    if unknown := [name for name in wanted if name not in folders]:
        raise InputError(
            f"{arguments.goldens} has no goldens of {', '.join(unknown)}",
            next_step=f"choose one of {', '.join(folders) or 'those in --goldens FOLDER'}",
        )
    if not wanted and not grids:
        raise InputError(f"{arguments.goldens} holds nothing to compare", next_step="name another with --goldens")
    for name in wanted:
        yield from dataset_findings(folders[name], arguments.data / name, arguments.workers)
    for file in grids:
        yield from guarded("", file.stem, partial(grid_findings, file))


def guarded(dataset: str, golden: str, compare: Callable[[], list[Finding]]) -> list[Finding]:
    """What `compare` finds; where it fails, that golden was not compared, and the others still are."""
    try:
        return compare()
    except Exception as error:  # whatever went wrong with one golden is a result of the comparison
        return [Finding(dataset, golden, "not compared", math.inf, in_short(error))]


def dataset_findings(goldens: Path, raw: Path, workers: int | None) -> Iterator[Finding]:
    """The fingerprint of one dataset and its preprocessed cases."""
    name = goldens.name
    try:
        dataset = open_dataset(raw)
    except InputError as error:
        yield Finding(name, "all", "not compared", math.inf, in_short(error))
        return
    fingerprint = goldens / "dataset_fingerprint.json"
    if fingerprint.exists():
        yield from guarded(name, "fingerprint", partial(fingerprint_findings, fingerprint, dataset, workers))
    for file in sorted(goldens.glob("*_*.npz")):
        yield from guarded(name, file.stem, partial(case_findings, file, dataset))


def fingerprint_findings(file: Path, dataset: Dataset, workers: int | None) -> list[Finding]:
    """Our fingerprint, measured as `umamba plan` does, against theirs."""
    theirs = json.loads(file.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        planned = plan_workspace(dataset.folder, Path(folder) / "work", PlanOptions(), workers=workers)
        ours = json.loads(planned.workspace.fingerprint_file.read_text(encoding="utf-8"))

    def finding(kind: str, difference: float, note: str = "") -> Finding:
        return Finding(dataset.name, "fingerprint", kind, difference, note)

    cases = len(theirs["shapes_after_crop"])
    if len(ours["shapes_after_crop"]) != cases:
        return [finding("not compared", math.inf, f"{len(ours['shapes_after_crop'])} cases of ours, {cases} of theirs")]
    pairs = zip(ours["shapes_after_crop"], theirs["shapes_after_crop"], strict=True)
    spacings = np.asarray(ours["spacings"]), np.asarray(theirs["spacings"])
    share = "median_relative_size_after_cropping"
    statistics = "foreground_intensity_properties_per_channel"
    return [
        finding("shapes", sum(list(a) != list(b) for a, b in pairs), f"of {cases} cases"),
        finding("spacings", float(np.max(np.abs(spacings[0] - spacings[1]) / spacings[1])), f"of {cases} cases"),
        finding("relative size", abs(ours[share] - theirs[share])),
        finding("intensities", *intensity_difference(ours[statistics], theirs[statistics])),
    ]


def intensity_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[float, str]:
    """The largest difference of all channels' statistics (see the module's docstring), and which it is."""
    if ours.keys() != theirs.keys():
        return math.inf, f"channels {', '.join(ours)} of ours, {', '.join(theirs)} of theirs"
    found: list[tuple[float, str]] = []
    strictest = 0.0
    for channel, statistics in theirs.items():
        for name, value in statistics.items():
            difference = number(abs(ours[channel][name] - value))
            scale = max(abs(value), statistics["std"]) or 1.0
            found.append((difference / scale, f"{name} of channel {channel}: {ours[channel][name]:.6g}, {value:.6g}"))
            strictest = max(strictest, difference / abs(value) if value else math.inf if difference else 0.0)
    difference, which = max(found)
    return difference, f"{which}; of |theirs| alone {strictest:.1e} at most"


def case_findings(file: Path, dataset: Dataset) -> list[Finding]:
    """One case of one configuration, preprocessed by nnU-Net's own plans, which lie beside it.

    Raises:
        InputError: the file's name tells no configuration, or the dataset has no such case or no label of it.
    """
    plans = read_plans(file.with_name("nnUNetPlans.json"))
    configurations = [name for name in plans.configurations if file.stem.endswith(f"_{name}")]
    if not configurations:
        raise InputError(
            f"{file.name} ends with no configuration of the plans", next_step="name it CASE_CONFIGURATION.npz"
        )
    configuration = max(configurations, key=len)
    (case,) = dataset.select([file.stem.removesuffix(f"_{configuration}")])
    if case.label is None:
        raise InputError(f"{case.identifier} has no label", next_step=f"bring it to {dataset.folder / 'labelsTr'}")
    labels = read_label_map(case.label).labels
    ours = preprocess(read_image(case.images), labels, plans, plans.configuration(configuration))
    if ours.labels is None:
        raise ValueError("labels went in, none came out")
    with np.load(file) as theirs:
        differences = {
            "data": image_difference(ours.image, theirs["data"]),
            "labels": label_difference(ours.labels, theirs["seg"][0]),
        }
    if file.with_suffix(".json").exists():
        differences["geometry"] = geometry_difference(ours.geometry, json.loads(file.with_suffix(".json").read_text()))
    return [Finding(dataset.name, file.stem, kind, *difference) for kind, difference in differences.items()]


def geometry_difference(ours: CaseGeometry, theirs: dict[str, Any]) -> tuple[int, str]:
    """How many entries of nnU-Net's properties of a case ours contradicts, and which. All but spacing is transposed."""
    expected: dict[str, Any] = {
        "spacing": ours.grid.spacing_mm,
        "shape_before_cropping": [ours.grid.shape[axis] for axis in ours.transpose],
        "bbox_used_for_cropping": list(zip(ours.crop.start, ours.crop.stop, strict=True)),
        "shape_after_cropping_and_before_resampling": ours.crop.shape,
    }
    compared = [key for key in expected if key in theirs]
    differing = [key for key in compared if not np.allclose(expected[key], theirs[key], rtol=1e-6, atol=0)]
    return len(differing), ", ".join(differing) or f"of {len(compared)} entries"


def grid_findings(file: Path) -> list[Finding]:
    """Single grids whose input is a formula: see `grid_input`."""
    cases = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    by_prefix = {f"case{case['case']}": case for case in cases}
    with np.load(file) as goldens:
        return [
            found
            for key in goldens.files
            for found in guarded("", key, partial(grid_finding, key, by_prefix[key.split("_")[0]], goldens[key][0]))
        ]


def grid_finding(key: str, case: dict[str, Any], theirs: NDArray[Any]) -> list[Finding]:
    """One grid (z, y, x), resampled as its key says: `caseN_data_orderK` or `caseN_seg_order1`."""
    _, what, order = key.split("_")
    image, labels = grid_input(case["input_shape"])
    grids = (tuple(case["output_shape"]), case["current_spacing"], case["new_spacing"])
    if what == "seg":
        return [Finding("", key, "resampled labels", *label_difference(resample_labels(labels, *grids), theirs))]
    resampled = resample_image(image[None], *grids, order=int(order.removeprefix("order")))[0]
    return [Finding("", key, "resampled data", *image_difference(resampled, theirs))]


def grid_input(shape: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Waves and concentric ellipsoids 1, 2, 3 on a grid (z, y, x), as goldens/README.md gives them."""
    z, y, x = np.indices(shape).astype(float)
    image = np.sin(0.61 * z + 0.3) + np.cos(0.37 * y) * np.sin(0.23 * x + 1)
    image += 0.1 * np.sin(2.1 * z + 1.7 * y + 2.9 * x)
    squares = (((i - n / 2) / (n / 2)) ** 2 for i, n in zip((z, y, x), shape, strict=True))
    radius = np.sqrt(sum(squares, np.zeros(tuple(shape))))
    labels = sum((radius < limit).astype(np.int8) for limit in (0.9, 0.6, 0.3))
    return image.astype(np.float32), np.asarray(labels)


def image_difference(ours: NDArray[Any], theirs: NDArray[Any]) -> tuple[float, str]:
    """The largest absolute difference, and over how many voxels; infinite where the shapes differ."""
    if ours.shape != theirs.shape:
        return math.inf, f"{ours.shape} is our shape, {theirs.shape} theirs"
    difference = np.max(np.abs(ours.astype(np.float64) - theirs), initial=0)
    return number(float(difference)), f"of {theirs.size} voxels"


def label_difference(ours: NDArray[Any], theirs: NDArray[Any]) -> tuple[float, str]:
    """How many voxels differ, and of how many; infinite where the shapes differ."""
    if ours.shape != theirs.shape:
        return math.inf, f"{ours.shape} is our shape, {theirs.shape} theirs"
    return int(np.count_nonzero(ours != theirs)), f"of {theirs.size} voxels"


def number(value: float) -> float:
    """The value, or infinity for NaN: what is no number must not pass for a small difference."""
    return math.inf if math.isnan(value) else value


def largest(values: Sequence[float]) -> float:
    """The largest value; whole numbers stay so."""
    return max(number(value) for value in values)


if __name__ == "__main__":
    run(main)
