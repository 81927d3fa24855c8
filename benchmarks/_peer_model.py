"""A tiny model of nnU-Net's, made by hand: run by `predict_memory.py --peer` in a Python that has nnunetv2.

Usage: `_peer_model.py FOLDER`. FOLDER holds plans.json, dataset.json and drawn.npz (image (z, y, x) as the network sees
it, and kinds, the organ of each voxel), and takes fold_0/checkpoint_final.pth. The network is that of the plans, its
weights are random, but for the way from the image to the labels that passes no lower stage: this carries the image's
brightness, bent in another place for each feature map, and the last layer is fitted to the kinds (linear discriminant
analysis). So labels come in regions of an organ's size and not voxel by voxel, and no training is needed. Labels that
are no kind are worked out like all, but never the likeliest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

BENDS = (-1.0, 2.0)
"""Where the first layer bends, from its first to its last feature map; brightness has mean 0 and deviation 1."""

TILES = 6
"""That the last layer is fitted to."""

HIGHEST = 20.0
"""Of all logits there."""


def main() -> None:
    folder = Path(sys.argv[1])
    torch.manual_seed(0)
    plans, dataset = (json.loads((folder / name).read_text()) for name in ("plans.json", "dataset.json"))
    configuration = plans["configurations"]["3d_fullres"]
    architecture = configuration["architecture"]
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        len(dataset["labels"]),
        deep_supervision=False,
    ).eval()
    with torch.inference_mode(), np.load(folder / "drawn.npz") as file:
        carry_brightness(network)
        fit_last_layer(network, file["image"], file["kinds"], configuration["patch_size"])
    (folder / "fold_0").mkdir()
    content = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres", "fold": 0, "plans": plans, "dataset_json": dataset},
        "inference_allowed_mirroring_axes": (0, 1, 2),
        "current_epoch": 0,
    }
    torch.save(content, folder / "fold_0" / "checkpoint_final.pth")


def carry_brightness(network: nn.Module) -> None:
    """Let every feature map of the first and the last stage carry the brightness on, bent once, noise averaged out."""
    first, *others = [*network.encoder.stages[0][0].convs, *network.decoder.stages[-1].convs]
    count = first.conv.weight.shape[0]
    for block in (first, *others):
        block.conv.weight.zero_()
        block.conv.bias.zero_()
        block.norm.weight.fill_(1)
        block.norm.bias.zero_()
        skipped = block.conv.weight.shape[1] - count  # what comes from the stage below is first in the last stage
        for index in range(count):
            kernel = block.conv.weight[index, 0 if block is first else skipped + index]
            if block is others[0]:
                kernel.fill_(1 / kernel.numel())
            else:
                kernel[1, 1, 1] = 1
    first.norm.bias.copy_(-torch.linspace(*BENDS, count))


def fit_last_layer(network: nn.Module, image: Any, kinds: Any, patch_size: list[int]) -> None:
    """Weights with which the most likely kind wins where features are normally distributed, alike in every kind."""
    head, count = network.decoder.seg_layers[-1], int(kinds.max()) + 1
    seen: list[Any] = []
    watching = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].flatten(1).T.double().numpy()))
    generator = np.random.default_rng(0)
    wanted = []
    for _ in range(TILES):
        starts = generator.integers(0, np.array(image.shape) - patch_size + 1)
        tile = tuple(slice(start, start + size) for start, size in zip(starts, patch_size, strict=True))
        network(torch.from_numpy(image[tile])[None, None])
        wanted.append(kinds[tile].ravel())
    watching.remove()
    features, known = np.concatenate(seen), np.concatenate(wanted)
    counts = np.bincount(known, minlength=count)
    sums = [np.bincount(known, weights=feature, minlength=count) for feature in features.T]
    means = np.stack(sums, axis=1) / counts[:, None]
    rest = features - means[known]
    covariance = rest.T @ rest / len(rest) + 1e-3 * np.eye(len(sums))
    weights = np.linalg.solve(covariance, means.T).T
    bias = np.log(counts / len(known)) - (weights * means).sum(1) / 2
    weights, bias = weights - weights.mean(0), bias - bias.mean()  # what all share decides nothing
    scale = HIGHEST / np.abs(features @ weights.T + bias).max()
    head.weight.zero_()
    head.bias.fill_(-HIGHEST)
    head.weight[:count] = torch.from_numpy(scale * weights)[:, :, None, None, None]
    head.bias[:count] = torch.from_numpy(scale * bias)


if __name__ == "__main__":
    main()
