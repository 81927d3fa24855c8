"""Goldens of other people's networks: weights by formula, and what must come out of ours."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from umamba_cli.pipeline.networks.unet import UNet

NOISE = 1e-6
"""Gradient norms below this share of the largest are rounding errors: biases before a norm."""


def read_golden(file: Path) -> dict[str, Any]:
    """The configuration, parameters and loss of the .json, and the heads' outputs of the .npz beside it."""
    golden: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    with np.load(file.with_suffix(".npz")) as content:
        golden["outputs"] = [torch.from_numpy(content[f"output_{i}"]) for i in range(len(content.files))]
    return golden


def formula_weights(golden: dict[str, Any]) -> dict[str, Tensor]:
    """The golden's parameters by their names, as its formula has them (float64)."""
    return {p["name"]: _weight(p["name"], tuple(p["shape"])) for p in golden["parameters"]}


def _weight(name: str, shape: tuple[int, ...]) -> Tensor:
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    noise = np.random.RandomState(seed).standard_normal(math.prod(shape)).reshape(shape)
    if name.endswith("A_log"):
        noise = np.log(1 + np.arange(shape[1])) + 0.1 * noise
    elif name.endswith("dt_proj.bias"):
        noise = -4 + noise
    elif len(shape) > 1:
        noise = noise / math.sqrt(math.prod(shape[1:]))
    else:
        noise = (1 if name.endswith(("weight", ".D")) else 0) + 0.1 * noise
    return torch.from_numpy(noise)


def check_outputs_and_gradients(
    network: UNet, golden: dict[str, Any], theirs: dict[str, Tensor], renamed: dict[str, Tensor]
) -> None:
    """Outputs in float32, loss and gradient norms in float64.

    Args:
        network: ours.
        golden: what `read_golden` gave.
        theirs: weights under their names.
        renamed: the same tensors under ours.
    """
    x = torch.from_numpy(np.random.RandomState(0).standard_normal((1, golden["input_channels"], *golden["patch_size"])))
    network.train().load_state_dict(renamed)
    with torch.no_grad():
        outputs = network(x.float())
    assert [y.shape for y in outputs] == [y.shape for y in golden["outputs"]]
    for ours, expected in zip(outputs, golden["outputs"], strict=True):
        assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-3

    network.double().load_state_dict(renamed)
    loss = torch.stack([y.square().mean() for y in network(x)]).sum()
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-6)
    parameters = dict(network.named_parameters())
    our_name = {id(tensor): name for name, tensor in renamed.items()}
    least = NOISE * max(p["grad_norm"] for p in golden["parameters"])
    wrong = {}
    for p in golden["parameters"]:
        gradient = parameters[our_name[id(theirs[p["name"]])]].grad
        assert gradient is not None
        if p["grad_norm"] >= least and abs(float(gradient.norm()) / p["grad_norm"] - 1) > 1e-3:
            wrong[p["name"]] = (float(gradient.norm()), p["grad_norm"])
    assert wrong == {}
