"""From raw images to evaluated segmentations with each model: seconds of every command, and the Dice.

Runs the six commands as processes of their own, as a user would, on a dataset in nnU-Net raw layout; the held-back
cases of fold 0 are predicted once by `train` and once more by `predict`, from the raw images.

On a GPU, a hippocampus training as users do it:
    main_job.py DATASET --preset default --device cuda --epochs 100 --iterations 250 --dice 0.88 --minutes 60
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _report import Bar, Parser, finish

STAGES = ("check", "plan", "preprocess", "train", "predict", "evaluate")


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("-c", "--configuration", default="3d_fullres")
    parser.add_argument("-m", "--models", default="umamba-bot", help="separated by commas")
    parser.add_argument("--preset", default="cpu", help="of the plans; default: %(default)s")
    parser.add_argument("--device", default="auto", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=10, help="bar for umamba-bot, all six commands together")
    parser.add_argument("--dice", type=float, default=0.80, help="bar for umamba-bot's mean Dice")
    parser.add_argument("--keep", type=Path, help="work in this folder and keep it")
    arguments = parser.parse_args()

    folder = arguments.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    rows, bars = [], []
    for model in arguments.models.split(","):
        seconds, dice = run_model(model, arguments, folder)
        total = sum(seconds.values())
        rows.append((model, *(seconds[stage] for stage in STAGES), total / 60, *dice))
        if model == "umamba-bot":
            bars.append(Bar(f"{model}: minutes for all", total / 60, arguments.minutes, at_most=True))
            bars.append(Bar(f"{model}: mean Dice", dice[-1], arguments.dice, at_most=False))
    if arguments.keep is None:
        shutil.rmtree(folder)
    finish(
        ("model", *(f"{s} s" for s in STAGES), "minutes", *label_columns(arguments.dataset)),
        rows,
        bars,
        as_json=arguments.json,
    )


def label_columns(dataset: Path) -> list[str]:
    labels = json.loads((dataset / "dataset.json").read_text())["labels"]
    return [f"Dice {name}" for name, value in sorted(labels.items(), key=lambda item: item[1]) if value] + ["mean Dice"]


def run_model(model: str, arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, float], list[float]]:
    """Seconds of each stage, and the Dice of each label and their mean; all is done anew."""
    work, images, predictions = folder / "work", folder / "images", folder / f"predictions-{model}"
    for old in (work / "preprocessed", images, predictions):
        shutil.rmtree(old, ignore_errors=True)
    dataset, configuration = arguments.dataset, arguments.configuration
    seconds = {
        "check": umamba("check", dataset),
        "plan": umamba("plan", dataset, "-w", work, "--preset", arguments.preset),
        "preprocess": umamba("preprocess", work, "-c", configuration),
        "train": umamba(
            "train", work, "-c", configuration, "-m", model, "-f", 0,
            "--epochs", arguments.epochs, "--iterations", arguments.iterations, "--restart",
            "--device", arguments.device,
        ),
    }  # fmt: skip
    images.mkdir()
    ending = json.loads((dataset / "dataset.json").read_text())["file_ending"]
    for case in json.loads((work / "splits.json").read_text())[0]["val"]:
        for path in (dataset / "imagesTr").glob(f"{case}_????{ending}"):
            shutil.copy(path, images)
    run = work / f"runs/{model}__{configuration}"
    seconds["predict"] = umamba("predict", run, "-f", 0, "-i", images, "-o", predictions, "--device", arguments.device)
    seconds["evaluate"] = umamba("evaluate", predictions, dataset / "labelsTr", "--dataset", dataset / "dataset.json")
    summary = json.loads((predictions / "summary.json").read_text())
    dice = [label["dice"] for label in summary["mean"].values()]
    return seconds, [*dice, summary["foreground_mean"]["dice"]]


def umamba(*arguments: object) -> float:
    """Run a command and return its seconds."""
    command = [sys.executable, "-m", "umamba_cli", *map(str, arguments), "--quiet"]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
