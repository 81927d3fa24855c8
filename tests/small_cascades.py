"""A workspace with a cascade, and runs in it that are finished without any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from umamba_cli.pipeline.data.splits import choose_fold, read_folds
from umamba_cli.pipeline.data.workspace import Run, Workspace, open_workspace
from umamba_cli.pipeline.planning.plans import read_plans
from umamba_cli.pipeline.preprocessing.dataset import preprocess_workspace
from umamba_cli.pipeline.runs.checkpoint import Checkpoint, write_checkpoint
from umamba_cli.pipeline.runs.network import recorded_network
from umamba_cli.pipeline.runs.record import RunRecord, write_record

LOWRES, CASCADE = "3d_lowres", "3d_cascade_fullres"


def add_cascade(folder: Path) -> Workspace:
    """Add a 3d_lowres of half the resolution and its cascade to the plans of a workspace, and preprocess the former."""
    workspace = open_workspace(folder)
    plans = json.loads(workspace.plans_file.read_text())
    full = plans["configurations"]["3d_fullres"]
    lower = {
        "data_identifier": "lowres",
        "spacing": [1.4 * n for n in full["spacing"]],
        "patch_size": [8, 16, 16],
        "next_stage": CASCADE,
    }
    plans["configurations"] |= {
        LOWRES: {**full, **lower},
        CASCADE: {"inherits_from": "3d_fullres", "previous_stage": LOWRES},
    }
    workspace.plans_file.write_text(json.dumps(plans))
    preprocess_workspace(workspace, LOWRES, workers=1)
    return workspace


def new_record(workspace: Workspace, configuration: str, fold: int | str, **other: Any) -> RunRecord:
    """The record of a training of `unet` that begins."""
    dataset = workspace.dataset()
    cases = choose_fold(read_folds(workspace.splits_file), fold, [case.identifier for case in dataset.cases])
    content: dict[str, Any] = {
        "model": "unet",
        "configuration": configuration,
        "fold": fold,
        "settings": {},
        "train_cases": cases.train,
        "val_cases": cases.val,
        "mirror_axes": (),
        "dataset": dataset.description,
        "plans": read_plans(workspace.plans_file),
    }
    return RunRecord(**{**content, **other})


def finish(workspace: Workspace, record: RunRecord, *, finds: int | None = None, surely: float = 10.0) -> Run:
    """The finished run of a record: with random weights, or with a network that finds one label everywhere."""
    run = workspace.run(record.model, record.configuration, record.fold, record.tag)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = recorded_network(record)
    weights = network.state_dict()
    if finds is not None:
        for name, tensor in weights.items():
            if name.startswith("heads."):
                tensor.zero_()
                if name.endswith("bias"):
                    tensor[finds] = surely
    write_record(run, record)
    write_checkpoint(run.checkpoint("final"), Checkpoint(1, weights))
    return run


def finish_lowres(workspace: Workspace, *folds: int | str, **other: Any) -> dict[int | str, Run]:
    """Finished runs of 3d_lowres; fold 0 finds label 0 everywhere, fold 1 label 1, ... (`all` label 3)."""
    return {
        fold: finish(workspace, new_record(workspace, LOWRES, fold, **other), finds=3 if fold == "all" else int(fold))
        for fold in folds
    }
