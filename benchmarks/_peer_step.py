"""nnU-Net's own training step, on request: run by `step_speed.py --peer` in a Python that has nnunetv2.

Usage: `_peer_step.py FOLDER THREADS`. FOLDER holds plans.json, dataset.json and batch.npz (images, labels), and takes
weights.npz, the network's initial weights. Then each line on standard input is answered by a training step and a line
on standard output: its seconds and its loss as JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


def main() -> None:
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    answers, sys.stdout = sys.stdout, sys.stderr  # nnU-Net prints a lot
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    trainer = make_trainer(folder)
    np.savez(folder / "weights.npz", **{name: tensor.numpy() for name, tensor in trainer.network.state_dict().items()})
    batch = make_batch(folder, trainer)
    trainer.network.train()
    print(json.dumps({"version": importlib.metadata.version("nnunetv2")}), file=answers, flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        loss = float(trainer.train_step(batch)["loss"])
        print(json.dumps({"seconds": time.perf_counter() - began, "loss": loss}), file=answers, flush=True)


def make_trainer(folder: Path) -> Any:
    """A trainer on the CPU, with the network of the plans; torch.compile is off there, as nnU-Net has it."""
    plans, dataset = (json.loads((folder / name).read_text()) for name in ("plans.json", "dataset.json"))
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[variable] = str(folder / variable)
    preprocessed = folder / "nnUNet_preprocessed" / plans["dataset_name"]
    for configuration in plans["configurations"].values():
        data = preprocessed / configuration["data_identifier"]
        data.mkdir(parents=True)
        (data / "case.b2nd").touch()  # it looks at the names of the files, which data it will never read

    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans["continue_training"] = False
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, dataset, device=torch.device("cpu"))
    trainer.initialize()
    return trainer


def make_batch(folder: Path, trainer: Any) -> dict[str, Any]:
    """The batch as its data loader gives it: labels at the resolution of every output."""
    from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform

    with np.load(folder / "batch.npz") as file:
        images, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"]).to(torch.int16)
    reduce = DownsampleSegForDSTransform(trainer._get_deep_supervision_scales())
    reduced = [reduce(segmentation=one[None])["segmentation"] for one in labels]
    return {"data": images, "target": [torch.stack(level) for level in zip(*reduced, strict=True)]}


if __name__ == "__main__":
    main()
