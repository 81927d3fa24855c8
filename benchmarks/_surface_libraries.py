"""NSD and HD95 of every label of some cases by one library, timed: run by `evaluate_speed.py` as a process of its own.

Usage: `_surface_libraries.py LIBRARY PREDICTIONS REFERENCES TOLERANCE_MM FILE`; LIBRARY is one of LIBRARIES. FILE takes
the seconds of each case, of which reading it is no part, and the figures. Every library is given one label after the
other, as masks of the whole CT, of which each finds the part to look at itself.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Measure = Callable[[NDArray[np.bool_], NDArray[np.bool_], tuple[float, ...], float], tuple[float, float]]
"""Surface Dice and HD95 of a predicted and a reference mask, with a spacing and a tolerance in mm."""


def main() -> None:
    from umamba_cli.pipeline.data.images import read_label_map

    library, predictions, references, tolerance, file = sys.argv[1:]
    measure = LIBRARIES[library]()
    seconds, figures = [], {}
    for path in sorted(Path(references).iterdir()):
        reference, prediction = read_label_map(path), read_label_map(Path(predictions) / path.name)
        spacing = reference.grid.spacing_mm
        began = time.perf_counter()
        found = {
            int(label): measure(prediction.labels == label, reference.labels == label, spacing, float(tolerance))
            for label in range(1, int(reference.labels.max()) + 1)
        }
        seconds.append(time.perf_counter() - began)
        figures[path.name.split(".")[0]] = found
    Path(file).write_text(json.dumps({"seconds": seconds, "figures": figures}), encoding="utf-8")


def umamba() -> Measure:
    from umamba_cli.pipeline.evaluation.surfaces import surface_metrics

    def measure(prediction: Any, reference: Any, spacing: Any, tolerance: float) -> tuple[float, float]:
        metrics = surface_metrics(prediction, reference, spacing, tolerance)
        return metrics.surface_dice, metrics.hd95

    return measure


def surface_distance() -> Measure:
    """DeepMind's package, which is from before numpy 2."""
    np.Inf = np.inf
    warnings.simplefilter("ignore", DeprecationWarning)
    import surface_distance as package

    def measure(prediction: Any, reference: Any, spacing: Any, tolerance: float) -> tuple[float, float]:
        distances = package.compute_surface_distances(reference, prediction, spacing)
        return (
            float(package.compute_surface_dice_at_tolerance(distances, tolerance)),
            float(package.compute_robust_hausdorff(distances, 95)),
        )

    return measure


def monai() -> Measure:
    """MONAI's, with its defaults: edge voxels are counted, whatever their area."""
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    def measure(prediction: Any, reference: Any, spacing: Any, tolerance: float) -> tuple[float, float]:
        masks = [torch.from_numpy(mask)[None, None] for mask in (prediction, reference)]
        dice = compute_surface_dice(*masks, class_thresholds=[tolerance], include_background=True, spacing=spacing)
        distance = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=spacing)
        return float(dice), float(distance)

    return measure


LIBRARIES: dict[str, Callable[[], Measure]] = {
    "umamba": umamba,
    "surface-distance": surface_distance,
    "MONAI": monai,
}


if __name__ == "__main__":
    main()
