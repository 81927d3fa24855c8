"""Workspaces with trainings that were never run: logs, and predictions made by spoiling the references."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.data.images import read_label_map, write_label_map
from umamba_cli.pipeline.data.splits import read_folds
from umamba_cli.pipeline.data.workspace import Run, open_workspace

CONFIGURATION = "3d_fullres"


def write_log(run: Run, epochs: int, labels: Sequence[str]) -> None:
    """A log in which all goes well."""
    run.folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for epoch in range(1, epochs + 1):
        dice = 1 - math.exp(-epoch / 5)
        entry = {
            "epoch": epoch,
            "train_loss": -dice,
            "val_loss": 0.1 - dice,
            "dice": dict.fromkeys(labels, dice),
            "mean_dice": dice,
            "learning_rate": 0.01 * (1 - epoch / (epochs + 1)),
            "seconds": 2.0,
            "memory_bytes": 2**30,
        }
        lines.append(json.dumps(entry) + "\n")
    run.log_file.write_text("".join(lines))


def write_record(run: Run, model: str, fold: int, held_back: Sequence[str], *, epochs: int = 10) -> None:
    """As much of run.json as a survey reads."""
    run.folder.mkdir(parents=True, exist_ok=True)
    record = {
        "model": model,
        "configuration": CONFIGURATION,
        "fold": fold,
        "settings": {"epochs": epochs, "batch_size": 2, "learning_rate": 0.01, "checkpointing": False},
        "train_cases": ["a", "b"],
        "val_cases": list(held_back),
        "device": {"device": "cpu", "precision": "fp32"},
        "versions": {"umamba": "0.1.0", "torch": "2.9"},
    }
    run.configuration_file.write_text(json.dumps(record))


def spoiled(labels: NDArray[np.uint8], by: int) -> NDArray[np.uint8]:
    """The labels moved by some voxels along the last axis."""
    return np.roll(labels, by, axis=2)


def add_model(
    folder: Path,
    model: str,
    *,
    by: int | Mapping[str, int],
    folds: Sequence[int] = (0, 1),
    epochs: int = 10,
    tag: str = "",
) -> None:
    """Add a model whose predictions are the references moved by so many voxels, of all cases or of each.

    `summary.json` holds Dice and IoU of every case and label as they are.
    """
    workspace = open_workspace(folder)
    dataset = workspace.dataset()
    for fold in folds:
        run = workspace.run(model, CONFIGURATION, fold, tag)
        names = read_folds(workspace.splits_file)[fold].val
        write_record(run, model, fold, names, epochs=epochs)
        write_log(run, epochs, list(dataset.description.targets.values()))
        cases = []
        for case in dataset.select(names):
            assert case.label is not None
            reference = read_label_map(case.label)
            wanted = reference.labels.astype(np.uint8)
            found = spoiled(wanted, by if isinstance(by, int) else by[case.identifier])
            ending = dataset.description.file_ending
            write_label_map(run.validation / f"{case.identifier}{ending}", found, reference.grid)
            cases.append({"case": case.identifier, "labels": scores(found, wanted, dataset.description)})
        names_of = {str(label): name for label, name in dataset.description.targets.items()}
        summary = {"cases": cases, "label_names": names_of, "foreground_mean": {"dice": 0.5}, "unit": "mm"}
        (run.validation / "summary.json").write_text(json.dumps(summary))
        run.checkpoint("final").write_bytes(b"")


def scores(
    found: NDArray[np.uint8], wanted: NDArray[np.uint8], description: DatasetDescription
) -> dict[str, dict[str, float | None]]:
    """Dice and IoU, and a made-up distance, of every label; null where the label is in neither."""
    result: dict[str, dict[str, float | None]] = {}
    for label in description.targets:
        both = int(np.count_nonzero((found == label) & (wanted == label)))
        total = int(np.count_nonzero(found == label) + np.count_nonzero(wanted == label))
        dice = 2 * both / total if total else None
        iou = both / (total - both) if total else None
        result[str(label)] = {"dice": dice, "iou": iou, "hd95": 3.0, "sizes": None}  # type: ignore[dict-item]
    return result
