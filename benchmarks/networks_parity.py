"""Our networks against the released ones: the same weights must give the same outputs and gradients.

Each FILE.json is a golden with a FILE.npz beside it: a configuration of U-Mamba_Bot, U-Mamba_Enc, PlainConvUNet or
ResidualEncoderUNet, its parameters' names, shapes and gradient norms, the loss (the sum over heads of the mean square)
and the outputs of all heads, computed in float64. Weights and input are formulas. They go through the renaming that
imports a checkpoint, so every name and shape is looked at, too. Compared are, in float32, the outputs of each head, by
its largest magnitude; in float64, the loss and the gradient norms, but for those below 1e-6 of the largest.

With --peer, nnU-Net's PlainConvUNet and ResidualEncoderUNet of that Python's dynamic-network-architectures make such
goldens on the spot. --write-goldens keeps them: tests/networks/goldens was made so.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from _golden_networks import image, weight
from _report import Bar, Parser, finish, in_short, run
from torch import Tensor

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.interop.released import nnunet_weights, released_umamba, umamba_weights
from umamba_cli.pipeline.networks.architecture import Architecture
from umamba_cli.pipeline.networks.registry import NetworkPlan, build_network
from umamba_cli.pipeline.networks.unet import UNet

NOISE = 1e-6
"""Gradient norms below this share of the largest are rounding errors: biases before a norm."""

MOST_OUTPUT, MOST_LOSS, MOST_GRADIENT = 1e-3, 1e-3, 1e-3
RELEASED: dict[str, Literal["bot", "enc"]] = {"U-Mamba_Bot": "bot", "U-Mamba_Enc": "enc"}
NNUNET = {"PlainConvUNet": ("unet", "n_conv_per_stage"), "ResidualEncoderUNet": ("resenc", "n_blocks_per_stage")}
"""Our model, and their name for the layers of the encoder's stages."""

_THIN, _FLAT, _CUBE = (1, 2, 2), (1, 3, 3), (3, 3, 3)

PEER_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain_2d": {
        "variant": "PlainConvUNet",
        "patch_size": (16, 24),
        "features_per_stage": (4, 8, 12, 12),
        "kernel_sizes": ((3, 3),) * 4,
        "strides": ((1, 1), (2, 2), (2, 2), (1, 2)),
        "input_channels": 3,
        "num_classes": 4,
        "n_conv_per_stage": (2, 2, 1, 3),
        "n_conv_per_stage_decoder": (1, 2, 3),
    },
    "plain_3d_thick": {
        "variant": "PlainConvUNet",
        "patch_size": (4, 16, 16),
        "features_per_stage": (4, 6, 8),
        "kernel_sizes": (_FLAT, _FLAT, _CUBE),
        "strides": ((1, 1, 1), _THIN, (2, 2, 2)),
        "input_channels": 2,
        "num_classes": 3,
        "n_conv_per_stage": (2, 2, 2),
        "n_conv_per_stage_decoder": (2, 2),
    },
    "resenc_2d": {
        "variant": "ResidualEncoderUNet",
        "patch_size": (32, 16),
        "features_per_stage": (4, 8, 8, 16, 16),
        "kernel_sizes": ((3, 3),) * 5,
        "strides": ((1, 1), (2, 2), (2, 2), (2, 1), (2, 2)),
        "input_channels": 1,
        "num_classes": 2,
        "n_blocks_per_stage": (1, 3, 4, 2, 2),
        "n_conv_per_stage_decoder": (1, 1, 2, 1),
    },
    "resenc_3d": {
        "variant": "ResidualEncoderUNet",
        "patch_size": (8, 12, 8),
        "features_per_stage": (8, 16, 16),
        "kernel_sizes": (_CUBE,) * 3,
        "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        "input_channels": 8,
        "num_classes": 2,
        "n_blocks_per_stage": (2, 1, 3),
        "n_conv_per_stage_decoder": (1, 1),
    },
    "resenc_3d_thick": {
        "variant": "ResidualEncoderUNet",
        "patch_size": (4, 16, 16),
        "features_per_stage": (4, 6, 8, 8),
        "kernel_sizes": (_FLAT, _FLAT, _CUBE, _CUBE),
        "strides": ((1, 1, 1), _THIN, (2, 2, 2), _THIN),
        "input_channels": 2,
        "num_classes": 3,
        "n_blocks_per_stage": (1, 3, 2, 1),
        "n_conv_per_stage_decoder": (1, 1, 1),
    },
}


@dataclass(frozen=True)
class Finding:
    """How far one golden's network is from ours, as shares."""

    file: str
    variant: str
    parameters: int
    output: float
    loss: float
    gradient: float
    note: str = ""


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE.json", help="such as ../shared/goldens/umamba_networks/*.json"
    )
    parser.add_argument("--peer", type=Path, metavar="PYTHON", help="that has dynamic-network-architectures")
    parser.add_argument("--write-goldens", type=Path, metavar="FOLDER", help="keep what --peer computed")
    arguments = parser.parse_args()
    if not (arguments.files or arguments.peer):
        parser.error("there is nothing to compare: give files or --peer")
    if arguments.write_goldens and not arguments.peer:
        parser.error("--write-goldens needs --peer")
    findings = [compare(file) for file in arguments.files]
    if arguments.peer:
        with tempfile.TemporaryDirectory() as temporary:
            findings += [compare(file) for file in ask(arguments.peer, arguments.write_goldens or Path(temporary))]
    finish(
        ("file", "network", "parameters", "outputs, float32", "loss, float64", "gradient norms, float64", "note"),
        [(f.file, f.variant, f.parameters, f.output, f.loss, f.gradient, f.note) for f in findings],
        bars(findings),
        as_json=arguments.json,
    )


def bars(findings: Iterable[Finding]) -> list[Bar]:
    """The largest differences of all goldens."""
    found = list(findings)
    failed = sum(bool(f.note) for f in found)
    return [
        Bar(f"networks of {len(found)} that lack a parameter or could not be compared", failed, 0, at_most=True),
        *(
            Bar(f"{name} difference", max(figures), most, at_most=True)
            for name, figures, most in (
                ("outputs by their largest magnitude, largest", [f.output for f in found], MOST_OUTPUT),
                ("loss, largest relative", [f.loss for f in found], MOST_LOSS),
                ("gradient norms, largest relative", [f.gradient for f in found], MOST_GRADIENT),
            )
        ),
    ]


def compare(file: Path) -> Finding:
    """One golden; where it fails, that one is not compared, and the others still are."""
    variant, parameters = "?", 0
    try:
        golden = json.loads(file.read_text(encoding="utf-8"))
        variant, parameters = golden["variant"], len(golden["parameters"])
        with np.load(file.with_suffix(".npz")) as content:
            outputs = [content[f"output_{i}"] for i in range(len(content.files))]
        return Finding(file.stem, variant, parameters, *differences(golden, outputs))
    except Exception as error:  # whatever went wrong with one golden is a result of the comparison
        return Finding(file.stem, variant, parameters, math.inf, math.inf, math.inf, in_short(error))


def differences(golden: dict[str, Any], expected: list[Any]) -> tuple[float, float, float]:
    """Of the outputs in float32, and of the loss and the gradient norms in float64.

    Raises:
        InputError: the names or shapes of the parameters differ.
    """
    theirs = {p["name"]: torch.from_numpy(weight(p["name"], p["shape"])) for p in golden["parameters"]}
    network = UNet(architecture(golden)).train()
    rename = umamba_weights if golden["variant"] in RELEASED else nnunet_weights
    weights = rename(theirs, network.architecture)
    x = torch.from_numpy(image(golden["input_channels"], golden["patch_size"]))
    network.load_state_dict(weights)
    with torch.no_grad():
        output = worst_output(network(x.float()), expected)

    network.double().load_state_dict(weights)
    loss = torch.stack([y.square().mean() for y in network(x)]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    their_names = {id(tensor): name for name, tensor in theirs.items()}
    norms = {
        their_names[id(weights[name])]: float(p.grad.norm()) if p.grad is not None else math.nan
        for name, p in network.named_parameters()
    }
    return output, relative(loss.item(), golden["loss"]), worst_norm(norms, golden["parameters"])


def architecture(golden: dict[str, Any]) -> Architecture:
    """Ours for a golden's configuration, as an import or a plan would build it.

    Raises:
        InputError: the golden is of no network that we know.
    """
    variant = golden["variant"]
    if variant in RELEASED:
        return released_umamba(
            RELEASED[variant],
            patch_size=golden["patch_size"],
            features_per_stage=golden["features_per_stage"],
            kernel_sizes=golden["kernel_sizes"],
            strides=golden["strides"],
            input_channels=golden["input_channels"],
            outputs=golden["num_classes"],
            n_conv_per_stage=golden["n_blocks_per_stage_encoder"],
            n_conv_per_stage_decoder=golden["n_conv_per_stage_decoder"],
        )
    if variant in NNUNET:
        return planned_architecture(golden, *NNUNET[variant])
    raise InputError(f"{variant} is not known", next_step=f"give goldens of {', '.join((*RELEASED, *NNUNET))}")


def planned_architecture(golden: dict[str, Any], model: str, layers_key: str) -> Architecture:
    """That of our model for a plan such as the golden's."""
    layers = tuple(golden[layers_key])
    decoder = tuple(golden["n_conv_per_stage_decoder"][::-1])
    plan = NetworkPlan(
        input_channels=golden["input_channels"],
        outputs=golden["num_classes"],
        patch_size=tuple(golden["patch_size"]),
        features_per_stage=tuple(golden["features_per_stage"]),
        strides=tuple(tuple(axes) for axes in golden["strides"]),
        kernel_sizes=tuple(tuple(axes) for axes in golden["kernel_sizes"]),
        convolutions_per_stage=layers,
        convolutions_per_stage_decoder=decoder,
        blocks_per_stage=layers,
        blocks_per_stage_decoder=decoder,
    )
    network = build_network(model, plan)
    assert isinstance(network, UNet)
    return network.architecture


def worst_output(ours: list[Tensor], theirs: list[Any]) -> float:
    """The largest difference of any head, by that head's largest magnitude.

    Raises:
        InputError: there are more or fewer heads, or of other sizes.
    """
    shapes = [tuple(y.shape) for y in ours], [y.shape for y in theirs]
    if shapes[0] != shapes[1]:
        raise InputError(f"the heads' outputs are {shapes[0]}, theirs {shapes[1]}", next_step="compare the heads")
    return worst(float(np.abs(a.numpy() - b).max() / np.abs(b).max()) for a, b in zip(ours, theirs, strict=True))


def worst_norm(ours: dict[str, float], theirs: list[dict[str, Any]]) -> float:
    """The largest relative difference of those above the noise."""
    least = NOISE * max(p["grad_norm"] for p in theirs)
    return worst(relative(ours[p["name"]], p["grad_norm"]) for p in theirs if p["grad_norm"] >= least)


def relative(ours: float, theirs: float) -> float:
    """The difference as a share of theirs."""
    return abs(ours - theirs) / abs(theirs)


def worst(differences: Iterable[float]) -> float:
    """The largest; what is no number is worse than any."""
    return max(math.inf if math.isnan(difference) else difference for difference in differences)


def ask(python: Path, folder: Path) -> list[Path]:
    """Goldens of nnU-Net's networks, computed by that Python into `folder`.

    Raises:
        InputError: it cannot be run, or lacks the networks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.json" for name in PEER_CONFIGURATIONS]
    for file, configuration in zip(files, PEER_CONFIGURATIONS.values(), strict=True):
        file.write_text(json.dumps(configuration), encoding="utf-8")
    script = Path(__file__).with_name("_peer_networks.py")
    try:
        subprocess.run([python, script, *files], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        last = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
        raise InputError(
            f"nnU-Net's networks cannot be run with {python}: {last}",
            next_step="name the Python of an environment that has dynamic-network-architectures with --peer",
        ) from error
    return files


if __name__ == "__main__":
    run(main)
