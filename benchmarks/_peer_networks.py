"""Goldens of nnU-Net's networks: run by `networks_parity.py --peer` in a Python that has them.

For each NAME.json with a configuration it computes the network in float64, adds the loss and every parameter's name,
shape and gradient norm to that file, and writes the outputs of all heads to NAME.npz beside it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _golden_networks import image, weight
from dynamic_network_architectures.architectures import unet
from torch import nn

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def main() -> None:
    torch.use_deterministic_algorithms(True)
    for file in map(Path, sys.argv[1:]):
        golden = json.loads(file.read_text(encoding="utf-8"))
        outputs = compute(golden)
        np.savez_compressed(file.with_suffix(".npz"), **{f"output_{i}": y for i, y in enumerate(outputs)})
        file.write_text(json.dumps(golden) + "\n", encoding="utf-8")


def compute(golden: dict[str, Any]) -> list[Any]:
    """The outputs of all heads; loss and parameters are added to `golden`."""
    network = build(golden).double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.from_numpy(weight(name, parameter.shape)))
    outputs = network(torch.from_numpy(image(golden["input_channels"], golden["patch_size"])))
    loss = sum(y.square().mean() for y in outputs)
    loss.backward()
    golden["loss"] = loss.item()
    golden["parameters"] = [
        {"name": name, "shape": list(parameter.shape), "grad_norm": parameter.grad.norm().item()}
        for name, parameter in network.named_parameters()
    ]
    return [y.detach().numpy().astype(np.float32) for y in outputs]


def build(golden: dict[str, Any]) -> nn.Module:
    """The network as nnU-Net's plans configure it."""
    axes = len(golden["patch_size"])
    kind = golden["variant"]
    layers = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
    return getattr(unet, kind)(
        n_stages=len(golden["strides"]),
        conv_op=CONVOLUTION[axes],
        conv_bias=True,
        norm_op=NORM[axes],
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
        **{key: golden[key] for key in ("input_channels", "features_per_stage", "kernel_sizes", "strides")},
        **{key: golden[key] for key in (layers, "num_classes", "n_conv_per_stage_decoder")},
    )


if __name__ == "__main__":
    main()
