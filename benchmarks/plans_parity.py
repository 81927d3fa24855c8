"""Our plans against nnU-Net's, from the same fingerprints.

Each FILE holds a dataset.json (`dataset`), nnU-Net's fingerprint of it (`fingerprint`) and what nnU-Net planned from
exactly that (`plans`): `default_8gb` (any number of GB), `ResEncM`, `ResEncL`, `ResEncXL`. Of every configuration that
either side has, spacing, patch, batch, median size, topology, layers, normalisation, mask use, batch_dice and the place
in the cascade are compared; whole numbers and words exactly, other numbers to a relative 1e-9. A configuration counts
as identical where the axis order of its plans is identical, too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from _report import Bar, Parser, Table, finish, in_short, run

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.planning.fingerprint import Fingerprint
from umamba_cli.pipeline.planning.planner import PlanOptions, make_plans
from umamba_cli.pipeline.planning.presets import PresetName

TOLERANCE = 1e-9
WHOLE = "all"
"""Stands in the place of a configuration for what all of them share."""

CONFIGURATION_KEYS = (
    "spacing",
    "patch_size",
    "batch_size",
    "median_image_size_in_voxels",
    "normalization_schemes",
    "use_mask_for_norm",
    "batch_dice",
    "previous_stage",
    "next_stage",
)
NETWORK_KEYS = (
    "n_stages",
    "strides",
    "kernel_sizes",
    "features_per_stage",
    "n_conv_per_stage",
    "n_blocks_per_stage",
    "n_conv_per_stage_decoder",
    "n_blocks_per_stage_decoder",
)

Configurations = dict[str, dict[str, Any]]
Difference = tuple[str, str, Any, Any]
"""Configuration, key, ours, theirs."""


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="such as ../shared/goldens/plans/*.json")
    arguments = parser.parse_args()
    rows: list[tuple[str, str, int, int, int]] = []
    differing: list[tuple[str, str, str, str, str, str]] = []
    for file, golden in [(file, read_golden(file)) for file in arguments.files]:
        for name, theirs in golden["plans"].items():
            total, identical, differences = compare(golden, name, theirs)
            rows.append((file.stem, name, total, identical, len(differences)))
            differing += [(file.stem, name, where, key, str(a), str(b)) for where, key, a, b in differences]
    total, identical = sum(row[2] for row in rows), sum(row[3] for row in rows)
    finish(
        ("file", "plan", "configurations", "identical", "differences"),
        rows,
        [Bar(f"configurations identical of {total}, %", 100 * identical / max(total, 1), 100, at_most=False)],
        as_json=arguments.json,
        more=Table("differences", ("file", "plan", "configuration", "key", "ours", "theirs"), differing),
    )


def read_golden(file: Path) -> dict[str, Any]:
    """One file's dataset, fingerprint and plans.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        complete = [plans["configurations"] and plans["transpose_forward"] for plans in content["plans"].values()]
        if complete and all(complete):
            return {key: content[key] for key in ("dataset", "fingerprint", "plans")}
        problem = "it holds no plans"
    except (OSError, ValueError) as error:
        problem = str(error)
    except (KeyError, TypeError, AttributeError):
        problem = "it must hold dataset, fingerprint and plans"
    raise InputError(f"{file} cannot be compared: {problem}", next_step="give files like those of goldens/plans")


def compare(golden: dict[str, Any], name: str, theirs: dict[str, Any]) -> tuple[int, int, list[Difference]]:
    """How many configurations either side has, how many are identical, and every difference."""
    expected = resolved(theirs["configurations"])
    try:
        plans = our_plans(golden, options_for(name))
        actual = {key: plans["resolved"][key] for key in plans["configurations"]}
    except Exception as error:  # whatever went wrong in planning is a result of the comparison
        return len(expected), 0, [(WHOLE, "planning", in_short(error), "done")]
    shared = list(axis_differences(plans, theirs))
    differences = {key: configuration_differences(key, actual, expected) for key in {**expected, **actual}}
    identical = 0 if shared else sum(not found for found in differences.values())
    return len(differences), identical, [*shared, *(line for found in differences.values() for line in found)]


def options_for(name: str) -> PlanOptions:
    """`default_24gb` as --memory 24, `ResEncL` as --preset resenc-l.

    Raises:
        InputError: no preset of ours is meant.
    """
    if match := re.fullmatch(r"(?:default|(?P<residual>ResEnc)(?P<size>[A-Z]+))(?:_(?P<memory>\d+)gb)?", name):
        wanted = f"resenc-{match['size'].lower()}" if match["residual"] else "default"
        memory = float(match["memory"]) if match["memory"] else None
        for preset in get_args(PresetName):
            if preset == wanted:
                return PlanOptions(memory_gb=memory, preset=preset)
    raise InputError(f"there is no preset for {name}", next_step="give plans of the default or a ResEnc planner")


def our_plans(golden: dict[str, Any], options: PlanOptions) -> dict[str, Any]:
    """Our plans as their file holds them, and below `resolved` every configuration as it is handed out."""
    fingerprint = Fingerprint.model_validate(golden["fingerprint"])
    description = DatasetDescription.model_validate(golden["dataset"])
    plans = make_plans(fingerprint, description, "Golden", options).plans
    content: dict[str, Any] = plans.model_dump(mode="json", by_alias=True)
    content["resolved"] = {
        name: flat(plans.configuration(name).model_dump(mode="json", by_alias=True)) for name in plans.configurations
    }
    return content


def resolved(written: Configurations) -> Configurations:
    """Their configurations with what they inherit."""

    def complete(name: str) -> dict[str, Any]:
        parent = written[name].get("inherits_from")
        return {**(complete(parent) if parent else {}), **written[name]}

    return {name: flat(complete(name)) for name in written}


def flat(configuration: dict[str, Any]) -> dict[str, Any]:
    """All that is compared of a configuration, the network's arguments beside the rest."""
    architecture = configuration.get("architecture", {})
    network = architecture.get("arch_kwargs", architecture)
    return {
        **{key: configuration.get(key) for key in CONFIGURATION_KEYS},
        **{key: network.get(key) for key in NETWORK_KEYS},
    }


def axis_differences(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[Difference]:
    """Differences in the axis order; what they do not say follows from what they do."""
    forward = theirs["transpose_forward"]
    expected = {"transpose_backward": [forward.index(axis) for axis in range(len(forward))], **theirs}
    for key in (
        "transpose_forward",
        "transpose_backward",
        "original_median_spacing_after_transp",
        "original_median_shape_after_transp",
    ):
        if key in expected and not same(ours[key], expected[key]):
            yield WHOLE, key, ours[key], expected[key]


def configuration_differences(name: str, ours: Configurations, theirs: Configurations) -> list[Difference]:
    """Differences in one configuration, its existence first."""
    if name not in ours or name not in theirs:
        return [(name, "exists", name in ours, name in theirs)]
    return [
        (name, key, value, theirs[name][key]) for key, value in ours[name].items() if not same(value, theirs[name][key])
    ]


def same(ours: Any, theirs: Any) -> bool:
    """Equal, numbers with a point to a relative `TOLERANCE`."""
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    if isinstance(ours, float) or isinstance(theirs, float):
        numbers = isinstance(ours, float | int) and isinstance(theirs, float | int)
        return numbers and math.isclose(ours, theirs, rel_tol=TOLERANCE)
    return bool(ours == theirs)


if __name__ == "__main__":
    run(main)
