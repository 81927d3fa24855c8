"""One training step on a CPU: `unet` against nnU-Net's own `train_step`, and what Mamba adds to a step.

A step is what a training repeats: gradients to none, forward pass, loss at every resolution, backward pass, gradient
clipping, optimizer step. Ours is the training loop's own `TrainingStep`, theirs `nnUNetTrainer.train_step` on the CPU
(float32, without torch.compile, as nnU-Net does there), in a process of its own that steps when it is told to. Both
have the same network (four stages), the same initial weights, the same batch and as many threads. All sides step in
turn, so that they meet the same noise; a ratio is the median over the rounds of the ratios within a round.

The loss that is compared is that of the first step, before anything was learnt, in float32: |ours - theirs| / |theirs|.
`umamba-none`, `umamba-bot` and `umamba-enc` have the same stages, two residual blocks in each.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _report import Bar, Parser, finish, positive, run

from umamba_cli.pipeline.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from umamba_cli.pipeline.training.loader import Batch
    from umamba_cli.pipeline.training.step import TrainingStep

PATCH, BATCH_SIZE, CLASSES = (40, 56, 40), 2, 3
FEATURES = (32, 64, 128, 256)
STRIDES = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
KERNELS = ((3, 3, 3),) * 4

TIMES_FASTER = {"unet auto": 1.7, "unet fp32": 1.0}  # than nnU-Net, at least
TIMES_SLOWER = {"umamba-bot auto": 1.15, "umamba-enc auto": 1.75}  # than umamba-none, at most
MOST_OF_LOSS = 1e-5


@dataclass
class Side:
    """One network in one precision."""

    name: str
    precision: str
    step: Callable[[], tuple[float, float]]
    """Makes a step; its seconds and its loss."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def go(self) -> None:
        """Make a step."""
        seconds, loss = self.step()
        self.seconds.append(seconds)
        self.losses.append(loss)


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as name, peer(arguments, Path(name)) as nnunet:
        sides = {"nnU-Net": nnunet, **our_sides(arguments, Path(name))}
        for done in range(arguments.warm_up + arguments.repeats):
            for side in sides.values():
                side.go()
            print(f"round {done + 1} of {arguments.warm_up + arguments.repeats}", file=sys.stderr)
    for side in sides.values():
        side.seconds = side.seconds[arguments.warm_up :]
    none = sides["umamba-none auto"]
    finish(
        ("network", "precision", "median s", "fastest s", "nnU-Net's / its", "its / umamba-none's", "first loss"),
        [
            (
                side.name, side.precision, statistics.median(side.seconds), min(side.seconds),
                ratio(nnunet, side), ratio(side, none), side.losses[0],
            )
            for side in sides.values()
        ],
        bars(sides),
        as_json=arguments.json,
    )  # fmt: skip


def bars(sides: dict[str, Side]) -> list[Bar]:
    nnunet, none = sides["nnU-Net"], sides["umamba-none auto"]
    difference = abs(sides["unet fp32"].losses[0] / nnunet.losses[0] - 1)
    return [
        *(
            Bar(f"{name}: times faster than nnU-Net", ratio(nnunet, sides[name]), least, at_most=False)
            for name, least in TIMES_FASTER.items()
        ),
        Bar("unet fp32: first loss, relative difference", difference, MOST_OF_LOSS, at_most=True),
        *(
            Bar(f"{name}: a step in steps of umamba-none", ratio(sides[name], none), most, at_most=True)
            for name, most in TIMES_SLOWER.items()
        ),
    ]


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--peer", type=Path, required=True, metavar="PYTHON", help="of an environment with nnunetv2")
    parser.add_argument("--repeats", type=positive, default=7, help="rounds; default: %(default)s")
    parser.add_argument("--warm-up", type=positive, default=2, help="rounds before those; default: %(default)s")
    parser.add_argument("--threads", type=positive, default=2, help="of either side; default: %(default)s")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # before torch is loaded, here and in the peer
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # whoever waits must not disturb the other
    return arguments


def ratio(slower: Side, faster: Side) -> float:
    """How many times as long the first side takes: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(slower.seconds, faster.seconds, strict=True))


@contextmanager
def peer(arguments: Namespace, folder: Path) -> Iterator[Side]:
    """nnU-Net in a process of its own; leaves weights.npz in the folder.

    Raises:
        InputError: there is no nnU-Net, or it does not run.
    """
    write_task(folder)
    script = Path(__file__).with_name("_peer_step.py")
    with (folder / "peer.log").open("w+") as log:
        try:
            process = subprocess.Popen(
                [arguments.peer, script, folder, str(arguments.threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        except OSError as error:
            raise InputError(f"{arguments.peer} cannot be run: {error}", next_step="give a Python as --peer") from error

        def answer() -> dict[str, Any]:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                process.wait()
                last = (folder / "peer.log").read_text().strip().splitlines()[-1:]
                raise InputError(
                    f"nnU-Net does not run with {arguments.peer}: {' '.join(last)}",
                    next_step="name the Python of an environment that has nnunetv2 2.8.1 with --peer",
                )
            content: dict[str, Any] = json.loads(line)
            return content

        def step() -> tuple[float, float]:
            assert process.stdin is not None
            process.stdin.write("step\n")
            process.stdin.flush()
            told = answer()
            return told["seconds"], told["loss"]

        try:
            yield Side(f"nnU-Net {answer()['version']}", "fp32", step)
        finally:
            process.kill()
            process.communicate()


def write_task(folder: Path) -> None:
    """The batch, and plans and dataset.json from which nnU-Net builds the network of `unet`."""
    random = np.random.default_rng(0)
    images = random.standard_normal((BATCH_SIZE, 1, *PATCH)).astype(np.float32)
    labels = random.integers(0, CLASSES, (BATCH_SIZE, *PATCH))
    np.savez(folder / "batch.npz", images=images, labels=labels)
    names = {"background": 0, **{f"class{label}": label for label in range(1, CLASSES)}}
    dataset = {"channel_names": {"0": "image"}, "labels": names, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    network = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": len(FEATURES),
            "features_per_stage": FEATURES,
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": KERNELS,
            "strides": STRIDES,
            "n_conv_per_stage": (2,) * len(FEATURES),
            "n_conv_per_stage_decoder": (2,) * (len(FEATURES) - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": BATCH_SIZE,
        "patch_size": PATCH,
        "batch_dice": False,
        "architecture": network,
    }
    plans = {
        "dataset_name": "Dataset999_Step",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "configurations": {"3d_fullres": configuration},
    }
    (folder / "plans.json").write_text(json.dumps(plans))


def our_sides(arguments: Namespace, folder: Path) -> dict[str, Side]:
    """Our networks by name and precision; `unet` with nnU-Net's initial weights."""
    import torch

    from umamba_cli.pipeline.devices import keep_freed_memory, use_threads
    from umamba_cli.pipeline.training.loader import Batch

    use_threads(arguments.threads)
    keep_freed_memory()  # as a training does
    with np.load(folder / "weights.npz") as file:
        weights = {name: torch.from_numpy(file[name]) for name in file.files}
    with np.load(folder / "batch.npz") as file:
        batch = Batch(*(torch.from_numpy(file[name]) for name in ("images", "labels")))
    sides = {
        "unet auto": our_side("unet", "auto", batch, weights),
        "unet fp32": our_side("unet", "fp32", batch, weights),
    }
    for model in ("umamba-none", "umamba-bot", "umamba-enc"):
        sides[f"{model} auto"] = our_side(model, "auto", batch)
    return sides


def our_side(model: str, precision: str, batch: Batch, weights: dict[str, Tensor] | None = None) -> Side:
    """A network as a training has it."""
    import torch

    from umamba_cli.pipeline.devices import channels_last, choose_compute
    from umamba_cli.pipeline.interop.released import nnunet_weights
    from umamba_cli.pipeline.networks.registry import NetworkPlan, build_network
    from umamba_cli.pipeline.networks.unet import UNet
    from umamba_cli.pipeline.training.losses import SegmentationLoss
    from umamba_cli.pipeline.training.schedule import new_optimizer
    from umamba_cli.pipeline.training.settings import TrainingSettings
    from umamba_cli.pipeline.training.step import TrainingStep

    stages = len(FEATURES)
    layers, layers_decoder = (2,) * stages, (2,) * (stages - 1)
    plan = NetworkPlan(1, CLASSES, PATCH, FEATURES, STRIDES, KERNELS, layers, layers_decoder, layers, layers_decoder)
    torch.manual_seed(0)
    network = build_network(model, plan)
    if weights is not None:
        assert isinstance(network, UNet)
        network.load_state_dict(nnunet_weights(weights, network.architecture))
    layout, compute = channels_last(len(PATCH)), choose_compute("cpu", precision)
    network.to(memory_format=layout)  # type: ignore[call-overload]
    settings = TrainingSettings(epochs=1, iterations=1, batch_size=BATCH_SIZE, validation_iterations=1)
    step = TrainingStep(
        network,
        new_optimizer(network.parameters(), settings),
        torch.amp.GradScaler("cpu", enabled=False),
        compute,
        gradient_clip=settings.gradient_clip,
        loss=SegmentationLoss(batch_dice=False),
    )
    data = batch.to(compute.device, layout)
    return Side(model, compute.precision, lambda: timed(step, data))


def timed(step: TrainingStep, batch: Batch) -> tuple[float, float]:
    began = time.perf_counter()
    loss = float(step(batch)[0])
    return time.perf_counter() - began, loss


if __name__ == "__main__":
    run(main)
