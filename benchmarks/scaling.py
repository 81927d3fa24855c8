"""What one training step costs against the volume of the patch: time and memory, with and without attention.

Networks of two stages, so that the bottleneck has an eighth as many tokens as the patch has voxels: `umamba-bot` (a
Mamba layer in the bottleneck), `umamba-enc` (one in each stage), and `attention`, the same network with a transformer
block in the bottleneck (layer norm, self-attention of every token to every token, layer norm, two linear layers;
Vaswani et al. 2017, Dosovitskiy et al. 2021). PyTorch's fused attention never holds the matrix of all pairs, so its
memory is linear; its time is not. Besides three published transformers: `unetr++`, whose bottleneck attends to 64
projected tokens and among channels, and two of the extra `monai`, to whose multiples smaller patches are padded:
`unetr`, which attends from every token to every other, but whose tokens are 16x16x16 voxels, and `swin-unetr`, whose
five stages attend within windows. A step is the training loop's own, with a batch of 1. Because the convolutions hide
much of the layers' cost, forward and backward pass of one Mamba layer, of the same with the other state space models
(`--mixer`), and of one transformer block, with as many tokens as the bottleneck has, are rows of their own.

The volume doubles from row to row. Seconds are the fastest of the rounds, each of which goes through all volumes.
Memory is the most that is allocated at one time during a step on top of what was before it (parameters, the optimizer's
state, the batch): on a CPU from the allocations that torch.profiler records, on a GPU from
`torch.cuda.max_memory_allocated`. The exponent is the slope of a straight line through log(cost) against log(volume),
by least squares over the larger half of the volumes, where fixed costs no longer count.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from _report import Bar, Parser, Table, finish, positive, run

if TYPE_CHECKING:
    from torch import nn

    from umamba_cli.pipeline.devices import Compute
    from umamba_cli.pipeline.networks.architecture import Mixer
    from umamba_cli.pipeline.networks.registry import NetworkPlan

FEATURES = (16, 32)
STRIDES = ((1, 1, 1), (2, 2, 2))
CLASSES = 3
SMALLEST, DOUBLINGS = {"cpu": (16, 32, 32), "cuda": (32, 64, 64)}, {"cpu": 4, "cuda": 6}

SECONDS_OF_CLOCK = 1.0
"""So long a step is repeated in a round, but at least once."""

NETWORKS = ("umamba-bot", "umamba-enc", "attention", "unetr++", "unetr", "swin-unetr")
LAYERS: tuple[tuple[str, Mixer], ...] = (("Mamba layer", "mamba"), ("S4D layer", "s4d"), ("Mamba-2 layer", "mamba2"))
LARGEST_EXPONENT = 1.1
LINEAR = ("umamba-bot", "umamba-enc", "Mamba layer")
MIB = 1024**2

Shape = tuple[int, ...]


@dataclass
class Subject:
    """Something whose cost is measured."""

    name: str
    prepare: Callable[[Shape], Callable[[], None]]
    """Takes a patch size and gives what is to be timed."""

    is_layer: bool = False
    """Not a whole training step."""

    seconds: dict[int, float] = field(default_factory=dict)
    """By volume, the fastest."""

    mib: dict[int, float] = field(default_factory=dict)

    def exponents(self) -> tuple[float, float]:
        """Of time and memory."""
        return exponent(self.seconds), exponent(self.mib)

    def last_doubling(self) -> tuple[float, float]:
        """How many times as much time and memory the largest volume takes as the one before it."""
        *_, before, last = sorted(self.seconds)
        return self.seconds[last] / self.seconds[before], self.mib[last] / self.mib[before]


def main() -> None:
    arguments = parse_arguments()
    sizes = patch_sizes(arguments.smallest, arguments.doublings)
    subjects = make_subjects(arguments)
    for number in range(arguments.rounds):
        for size in sizes:
            for subject in subjects:
                measure(subject, size, arguments.device, with_memory=number == 0)
            print(f"round {number + 1} of {arguments.rounds}: {size}", file=sys.stderr)
    if arguments.plot:
        plot(subjects, arguments.plot)
    exponents = {subject.name: subject.exponents() for subject in subjects}
    finish(
        ("what", "patch", "voxels", "tokens", "seconds", "MiB"),
        [
            (subject.name, "x".join(map(str, size)), volume, volume // 8, subject.seconds[volume], subject.mib[volume])
            for subject in subjects
            for size in sizes
            for volume in (math.prod(size),)
        ],
        [
            Bar(f"{name}: exponent of {cost}", value, LARGEST_EXPONENT, at_most=True)
            for name in LINEAR
            for cost, value in zip(("time", "memory"), exponents[name], strict=True)
        ],
        as_json=arguments.json,
        more=Table(
            "exponents, and how many times as much the last doubling takes",
            ("what", "time", "memory", "times time", "times memory"),
            [(each.name, *exponents[each.name], *each.last_doubling()) for each in subjects],
        ),
    )


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default: %(default)s")
    parser.add_argument("--precision", default="auto", help="auto, fp32, bf16; default: %(default)s")
    parser.add_argument("--threads", type=positive, default=2, help="on a CPU; default: %(default)s")
    parser.add_argument("--rounds", type=positive, default=3, help="default: %(default)s")
    parser.add_argument(
        "--smallest", type=shape, metavar="Z,Y,X", help="patch, of even sizes; default: 16,32,32, on a GPU 32,64,64"
    )
    parser.add_argument("--doublings", type=positive, help="of the volume; default: 4, on a GPU 6")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw time and memory into this PNG, PDF or SVG")
    arguments = parser.parse_args()
    kind = arguments.device.split(":")[0]
    if kind not in SMALLEST:
        parser.error(f"--device must be cpu or cuda, not {arguments.device}")
    arguments.smallest = arguments.smallest or SMALLEST[kind]
    arguments.doublings = arguments.doublings or DOUBLINGS[kind]
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # before torch is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return arguments


def shape(text: str) -> Shape:
    """Three even numbers, as the type of an argument."""
    sizes = tuple(positive(part) for part in text.split(","))
    if len(sizes) != len(STRIDES[0]) or any(size % 2 for size in sizes):
        raise ArgumentTypeError(f"{text!r} is not three even numbers")
    return sizes


def patch_sizes(smallest: Shape, doublings: int) -> list[Shape]:
    """The smallest, then again and again its shortest axis doubled."""
    sizes = [smallest]
    for _ in range(doublings):
        axis = sizes[-1].index(min(sizes[-1]))
        sizes.append(tuple(n * 2 if i == axis else n for i, n in enumerate(sizes[-1])))
    return sizes


def make_subjects(arguments: Namespace) -> list[Subject]:
    import torch

    from umamba_cli.pipeline.devices import choose_compute, keep_freed_memory, use_threads
    from umamba_cli.pipeline.networks.mamba import MambaLayer

    compute = choose_compute(arguments.device, arguments.precision)
    if compute.device.type == "cpu":
        use_threads(arguments.threads)
        keep_freed_memory()  # as a training does
    torch.manual_seed(0)
    steps = [Subject(name, step_of(name, compute)) for name in NETWORKS]
    return [
        *steps,
        *(Subject(name, layer_of(MambaLayer(FEATURES[-1], mixer=m), compute), is_layer=True) for name, m in LAYERS),
        Subject("transformer block", layer_of(transformer_block(FEATURES[-1]), compute), is_layer=True),
    ]


def network_plan(patch: Shape) -> NetworkPlan:
    from umamba_cli.pipeline.networks.registry import NetworkPlan

    stages, kernels = len(FEATURES), ((3, 3, 3),) * len(FEATURES)
    encoder, decoder = (1,) * stages, (1,) * (stages - 1)
    return NetworkPlan(1, CLASSES, patch, FEATURES, STRIDES, kernels, encoder, decoder, encoder, decoder)


def step_of(name: str, compute: Compute) -> Callable[[Shape], Callable[[], None]]:
    """A training step of a network by patch size."""
    import torch

    from umamba_cli.pipeline.devices import channels_last
    from umamba_cli.pipeline.networks.registry import build_network
    from umamba_cli.pipeline.networks.unet import UNet
    from umamba_cli.pipeline.training.loader import Batch
    from umamba_cli.pipeline.training.losses import SegmentationLoss
    from umamba_cli.pipeline.training.schedule import new_optimizer
    from umamba_cli.pipeline.training.settings import TrainingSettings
    from umamba_cli.pipeline.training.step import TrainingStep

    layout = channels_last(len(STRIDES[0]))
    settings = TrainingSettings(epochs=1, iterations=1, batch_size=1, validation_iterations=1)

    def prepare(size: Shape) -> Callable[[], None]:
        torch.manual_seed(0)
        network = build_network("umamba-none" if name == "attention" else name, network_plan(size))
        if name == "attention":
            assert isinstance(network, UNet)
            network.encoder.mamba_layers[-1] = transformer_block(FEATURES[-1])
        network.to(compute.device, memory_format=layout)  # type: ignore[call-overload]
        optimizer = new_optimizer(network.parameters(), settings)
        scaler = torch.amp.GradScaler(compute.device.type, enabled=False)
        loss = SegmentationLoss(batch_dice=False)
        step = TrainingStep(network, optimizer, scaler, compute, settings.gradient_clip, loss)
        batch = Batch(torch.randn(1, 1, *size), torch.randint(0, CLASSES, (1, *size))).to(compute.device, layout)

        def go() -> None:
            step(batch)
            optimizer.zero_grad(set_to_none=True)

        return go

    return prepare


def layer_of(layer: nn.Module, compute: Compute) -> Callable[[Shape], Callable[[], None]]:
    """Forward and backward pass of a layer of the bottleneck by patch size."""
    import torch

    from umamba_cli.pipeline.devices import channels_last

    layer.to(compute.device)

    def prepare(size: Shape) -> Callable[[], None]:
        low = [n // step for n, step in zip(size, STRIDES[-1], strict=True)]
        x = torch.randn(1, FEATURES[-1], *low, device=compute.device)
        x = x.to(memory_format=channels_last(len(low))).requires_grad_()

        def go() -> None:
            with compute.autocast():
                y = layer(x)
            y.sum().backward()
            layer.zero_grad(set_to_none=True)
            x.grad = None

        return go

    return prepare


def transformer_block(channels: int, heads: int = 2, expand: int = 4) -> nn.Module:
    """Self-attention over all voxels of a map (B, C, z, y, x), then two linear layers, each added to its input."""
    import torch.nn.functional as F
    from torch import Tensor, nn

    class TransformerBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_attention, self.norm_linear = nn.LayerNorm(channels), nn.LayerNorm(channels)
            self.query_key_value = nn.Linear(channels, 3 * channels)
            self.project = nn.Linear(channels, channels)
            self.linear = nn.Sequential(
                nn.Linear(channels, expand * channels), nn.GELU(), nn.Linear(expand * channels, channels)
            )

        def forward(self, x_BCzyx: Tensor) -> Tensor:
            tokens_BLC = x_BCzyx.flatten(2).transpose(1, 2)
            split = self.query_key_value(self.norm_attention(tokens_BLC)).unflatten(-1, (3, heads, -1))
            query, key, value = split.permute(2, 0, 3, 1, 4)  # each (B, heads, L, C / heads)
            mixed_BLC = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
            tokens_BLC = tokens_BLC + self.project(mixed_BLC)
            tokens_BLC = tokens_BLC + self.linear(self.norm_linear(tokens_BLC))
            y_BCzyx: Tensor = tokens_BLC.transpose(1, 2).reshape(x_BCzyx.shape)
            return y_BCzyx

    return TransformerBlock()


def measure(subject: Subject, size: Shape, device: str, *, with_memory: bool) -> None:
    """Once to warm up, once with an eye on the memory where that is asked for, then with a clock for a second."""
    go = subject.prepare(size)
    go()
    volume = math.prod(size)
    if with_memory:
        subject.mib[volume] = (peak_on_gpu if device.startswith("cuda") else peak_on_cpu)(go) / MIB
    until = time.perf_counter() + SECONDS_OF_CLOCK
    while True:
        wait(device)
        began = time.perf_counter()
        go()
        wait(device)
        now = time.perf_counter()
        subject.seconds[volume] = min(now - began, subject.seconds.get(volume, math.inf))
        if now > until:
            return


def wait(device: str) -> None:
    """Until a GPU has done what it was told."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def peak_on_cpu(go: Callable[[], None]) -> float:
    """The most bytes allocated at one time beyond those that were before, from what torch's allocator reports."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        go()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    changes = sorted((float(e["ts"]), int(e["args"]["Bytes"])) for e in events if e.get("name") == "[memory]")
    return float(np.cumsum([change for _, change in changes]).max())


def peak_on_gpu(go: Callable[[], None]) -> float:
    """The same, on a GPU."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    go()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before)


def exponent(cost_by_volume: dict[int, float]) -> float:
    """The slope of log(cost) against log(volume) over the larger half of the volumes, at least two."""
    volumes = sorted(cost_by_volume)[-max(2, math.ceil(len(cost_by_volume) / 2)) :]
    slope, _ = np.polyfit(np.log(volumes), np.log([cost_by_volume[volume] for volume in volumes]), 1)
    return float(slope)


def plot(subjects: list[Subject], file: Path) -> None:
    """Both costs against the volume, on logarithmic axes."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, panels = plt.subplots(1, 2, figsize=(11, 5.5), layout="constrained")
    for panel, index, unit in zip(panels, (0, 1), ("seconds", "MiB"), strict=True):
        for subject in subjects:
            costs = (subject.seconds, subject.mib)[index]
            label = f"{subject.name}: exponent {subject.exponents()[index]:.2f}"
            panel.loglog(list(costs), list(costs.values()), "s--" if subject.is_layer else "o-", label=label)
        panel.set(xlabel="voxels of the patch", ylabel=unit)
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(which="both", alpha=0.3)
        panel.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    figure.savefig(file, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    run(main)
