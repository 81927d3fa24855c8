"""The training memory that umamba counts without running a model, against what the allocator reports while it trains.

Each model makes two training steps (forward, loss, backward, clipping, optimizer) in a process of its own; the second
one is looked at. On a CPU the allocator's own reports are summed, as torch.profiler records them; on a GPU they are
`torch.cuda.memory_allocated` and `max_memory_allocated`. Compared are

- saved: what the forward pass and the loss added to what was allocated before, against the bytes counted as saved for
  the backward pass. The allocator's figure holds the logits besides, which are alive but not saved: bar 5 %.
- peak: the most that was allocated at one time, against the counted peak. The count sees what operations give out, not
  what they allocate inside themselves (workspaces, reordered copies). In float32 that seldom matters; in bfloat16 some
  convolutions of a CPU work on float32 copies, which are larger than what they give out, above all in networks of few
  feature maps. It is known then that the count is low by up to an eighth: bar 15 %, about what one more patch in a
  batch of eight takes, so that the choice of patch and batch size does not depend on it.

"resident" has no bar: on a CPU how much a process that does nothing but two such steps grew, what malloc keeps of freed
memory and what oneDNN takes past the allocator included; on a GPU `max_memory_reserved`. Models are in channels_last;
weights, images and labels are random.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _report import Bar, Parser, finish, positive, run

if TYPE_CHECKING:
    from umamba_cli.pipeline.devices import Compute
    from umamba_cli.pipeline.networks.registry import NetworkPlan
    from umamba_cli.pipeline.training.settings import TrainingSettings

MODELS = ("unet", "umamba-none", "umamba-bot", "umamba-enc")
SETTINGS = {
    "3d": ((40, 56, 40), (32, 64, 128, 256), 2),
    "3d-narrow": ((40, 56, 40), (8, 16, 32, 64), 2),
    "2d": ((256, 256), (32, 64, 128, 256, 512), 4),
}
"""Patch, feature maps of each stage, patches a step."""

SAVED_OFF, PEAK_OFF = 5.0, 15.0  # %
MIB = 1024**2
MARK = "mark: "


def main() -> None:
    arguments = parse_arguments()
    if arguments.measure:
        setting, model, precision = arguments.measure
        print(json.dumps(measure(setting, model, precision, arguments.device)))
        return
    rows, saved_off, peak_off = [], [0.0], [0.0]
    for case in cases(arguments):
        counted, measured = count(*case, arguments.device), measure_apart(*case, arguments.device)
        off = [100 * (counted[kind] / measured[kind] - 1) for kind in ("saved", "peak")]
        saved_off.append(abs(off[0]))
        peak_off.append(abs(off[1]))
        figures = (counted["saved"], measured["saved"], off[0], counted["peak"], measured["peak"], off[1])
        rows.append((*case, *figures, measured["resident"]))
    finish(
        (
            "setting", "model", "precision", "saved MiB", "measured", "% off",
            "peak MiB", "peak measured", "peak % off", "resident",
        ),
        rows,
        [
            Bar("saved: largest difference in %", max(saved_off), SAVED_OFF, at_most=True),
            Bar("peak: largest difference in %", max(peak_off), PEAK_OFF, at_most=True),
        ],
        as_json=arguments.json,
    )  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("-m", "--models", default=",".join(MODELS), help="separated by commas; default: %(default)s")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="default: %(default)s")
    parser.add_argument("--precisions", default="fp32,bf16", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default: %(default)s")
    parser.add_argument("--threads", type=positive, default=2, help="on a CPU; default: %(default)s")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # what measure_apart asks of its process
    arguments = parser.parse_args()
    if unknown := set(arguments.settings.split(",")) - set(SETTINGS):
        parser.error(f"there are no settings {', '.join(sorted(unknown))}")
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # before torch is loaded, here and in the processes
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return arguments


def cases(arguments: argparse.Namespace) -> list[tuple[str, str, str]]:
    """Setting, model and precision of each measurement."""
    return [
        (setting, model, precision)
        for setting in arguments.settings.split(",")
        for model in arguments.models.split(",")
        for precision in arguments.precisions.split(",")
    ]


def prepare(setting: str, precision: str, device: str) -> tuple[NetworkPlan, TrainingSettings, Compute]:
    from umamba_cli.pipeline.devices import choose_compute
    from umamba_cli.pipeline.networks.registry import NetworkPlan
    from umamba_cli.pipeline.training.settings import TrainingSettings

    patch, features, batch_size = SETTINGS[setting]
    stages, axes = len(features), len(patch)
    plan = NetworkPlan(
        input_channels=1,
        outputs=3,
        patch_size=patch,
        features_per_stage=features,
        strides=((1,) * axes, *(((2,) * axes),) * (stages - 1)),
        kernel_sizes=((3,) * axes,) * stages,
        convolutions_per_stage=(2,) * stages,
        convolutions_per_stage_decoder=(2,) * (stages - 1),
        blocks_per_stage=(2,) * stages,
        blocks_per_stage_decoder=(2,) * (stages - 1),
    )
    settings = TrainingSettings(epochs=1, iterations=2, batch_size=batch_size, validation_iterations=1)
    return plan, settings, choose_compute(device, precision)


def count(setting: str, model: str, precision: str, device: str) -> dict[str, float]:
    """MiB by our count."""
    from umamba_cli.pipeline.networks.registry import find_model
    from umamba_cli.pipeline.training.losses import SegmentationLoss
    from umamba_cli.pipeline.workflows.models import model_needs

    plan, settings, compute = prepare(setting, precision, device)
    needs = model_needs(find_model(model), plan, settings, compute, loss=SegmentationLoss(batch_dice=False))
    if needs.memory is None:
        print(f"{model}: {needs.problem}", file=sys.stderr)
        return {"saved": math.inf, "peak": math.inf}  # counts as missed
    return {"saved": needs.memory.saved_bytes / MIB, "peak": needs.memory.peak_bytes / MIB}


def measure_apart(setting: str, model: str, precision: str, device: str) -> dict[str, float]:
    """MiB by the allocator, from a process of its own."""
    command = [sys.executable, __file__, "--device", device, "--measure", setting, model, precision]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(setting: str, model: str, precision: str, device: str) -> dict[str, float]:
    """Train two steps; MiB of the second."""
    plan, settings, compute = prepare(setting, precision, device)
    return (measure_on_gpu if device.startswith("cuda") else measure_on_cpu)(model, plan, settings, compute)


def measure_on_cpu(model: str, plan: NetworkPlan, settings: TrainingSettings, compute: Compute) -> dict[str, float]:
    import psutil
    from torch.profiler import ProfilerActivity, profile, record_function

    def mark(name: str) -> None:
        with record_function(MARK + name):
            pass

    axes, stages = len(plan.patch_size), len(plan.features_per_stage)
    small = replace(plan, patch_size=(32,) * axes, features_per_stage=(8,) * stages)
    two_steps(model, small, settings, compute, lambda name: None)  # loads what is loaded when first used
    before = psutil.Process().memory_info().rss
    two_steps(model, plan, settings, compute, lambda name: None)  # before the profiler takes memory itself
    resident = peak_resident() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        two_steps(model, plan, settings, compute, mark)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    level, peak = levels(events)
    saved = level["forward"] - level["begin"]
    return {"saved": saved / MIB, "peak": peak / MIB, "resident": resident / MIB}


def levels(events: list[dict[str, Any]]) -> tuple[dict[str, int], int]:
    """From the profiler's trace: bytes allocated at each mark, and the most between `begin` and `end`."""
    wanted = [e for e in events if e.get("name") == "[memory]" or str(e.get("name")).startswith(MARK)]
    at_mark: dict[str, int] = {}
    now = peak = 0
    for event in sorted(wanted, key=lambda e: float(e["ts"])):
        if event["name"] == "[memory]":
            now += int(event["args"]["Bytes"])
        else:
            at_mark.setdefault(event["name"].removeprefix(MARK), now)
        if "begin" in at_mark and "end" not in at_mark:
            peak = max(peak, now)
    return at_mark, peak


def peak_resident() -> int:
    """The most that this process ever held, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_on_gpu(model: str, plan: NetworkPlan, settings: TrainingSettings, compute: Compute) -> dict[str, float]:
    import torch

    level: dict[str, int] = {}

    def mark(name: str) -> None:
        level[name] = torch.cuda.memory_allocated()
        if name == "begin":
            torch.cuda.reset_peak_memory_stats()

    two_steps(model, plan, settings, compute, mark)
    saved, peak = level["forward"] - level["begin"], torch.cuda.max_memory_allocated()
    return {"saved": saved / MIB, "peak": peak / MIB, "resident": torch.cuda.max_memory_reserved() / MIB}


def two_steps(model: str, plan: NetworkPlan, settings: TrainingSettings, compute: Compute, mark: Any) -> None:
    """Two steps as the training loop makes them, the second with marks: begin, forward, end."""
    import torch

    from umamba_cli.pipeline.devices import channels_last
    from umamba_cli.pipeline.networks.registry import build_network
    from umamba_cli.pipeline.training.loader import Batch
    from umamba_cli.pipeline.training.losses import SegmentationLoss
    from umamba_cli.pipeline.training.schedule import new_optimizer
    from umamba_cli.pipeline.training.step import TrainingStep

    class MarkedStep(TrainingStep):
        """Its forward pass begins where gradients are gone, and ends with the loss."""

        def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            mark("begin")
            result = super().forward(batch)
            mark("forward")
            return result

    torch.manual_seed(0)
    layout = channels_last(len(plan.patch_size))
    network = build_network(model, plan).train()
    network.to(compute.device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = new_optimizer(network.parameters(), settings)
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")
    size = (settings.batch_size, *plan.patch_size)
    images = torch.randn(size[0], plan.input_channels, *size[1:]).to(compute.device, memory_format=layout)
    batch = Batch(images, torch.randint(0, plan.outputs, size).to(compute.device))
    loss = SegmentationLoss(batch_dice=False)
    for kind in (TrainingStep, MarkedStep):
        kind(network, optimizer, scaler, compute, settings.gradient_clip, loss)(batch)
    mark("end")


if __name__ == "__main__":
    run(main)
