"""Patches a second of whole trainings, data loading and augmentation included: `unet` and `umamba-bot` against nnU-Net.

Drawn cases are written on the spot; `umamba` and nnU-Net plan and preprocess them, and train on the same device in
turn, each with its own defaults for that device: precision, torch.compile, worker processes, augmentation. All have the
same patch, batch size and U-Net: those of nnU-Net's default 3D plan, patches of 128x128x128 and batches of 2. With
--small they are those of the preset `cpu` for small volumes, for a try on a CPU.

Timed are the training steps of an epoch, from the end of its first to the end of its last for ours and from its start
for nnU-Net, waiting for batches included; validation, checkpoints and the first epochs (compilation, cuDNN's choices)
are not. Given are medians over the epochs. The share that steps waited for their batches is held against a bar.

nnU-Net compiles its network on a GPU, which needs a C compiler; with nnUNet_compile=f in the environment it does not.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from _peer_training import Epoch, Job
from _report import Bar, Parser, finish, positive, run
from _trainings import NNUNET, System, end_by_signal, keep_to, plan_both

from umamba_cli.pipeline.resources import usable_cores
from umamba_cli.pipeline.workflows.phantom import draw_phantom_dataset

MOST_WAITING = 0.05
DATASET = "Dataset998_Speed"
SIZES = {"default": (160, 160, 160), "cpu": (38, 54, 38)}
"""Of the drawn cases, by preset."""

BATCH_SIZE = 2  # of both presets, as nnU-Net's default plan has it for large volumes


def main() -> None:
    arguments = parse_arguments()
    end_by_signal()
    cores = arguments.cores or usable_cores()
    keep_to(cores)
    with tempfile.TemporaryDirectory() as name:
        found = measure(arguments, cores, Path(name))
    speeds = {system: statistics.median(map(patches_a_second, epochs)) for system, epochs in found.items()}
    shares = {system: statistics.median(map(waiting_share, epochs)) for system, epochs in found.items()}
    finish(
        ("system", "patches/s", "times nnU-Net's", "ms a step", "waiting", "precision", "version"),
        [
            (
                system,
                speed,
                speed / speeds[NNUNET],
                1000 * BATCH_SIZE / speed,
                shares[system],
                found[system][0].precision,
                found[system][0].version,
            )
            for system, speed in speeds.items()
        ],
        [
            Bar(f"{system}: share of waiting for data", share, MOST_WAITING, at_most=True)
            for system, share in shares.items()
            if system != NNUNET
        ],
        as_json=arguments.json,
    )


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--peer", type=Path, required=True, metavar="PYTHON", help="of an environment with nnunetv2")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="default: %(default)s")
    parser.add_argument("--models", default="unet,umamba-bot", help="separated by commas; default: %(default)s")
    parser.add_argument("--small", action="store_true", help="small volumes and networks, by preset cpu")
    parser.add_argument("--cases", type=positive, default=6, help="that are drawn; default: %(default)s")
    parser.add_argument("--epochs", type=positive, default=3, help="that are timed; default: %(default)s")
    parser.add_argument("--warm-up", type=positive, default=1, help="epochs before those; default: %(default)s")
    parser.add_argument("--iterations", type=positive, default=100, help="steps an epoch; default: %(default)s")
    parser.add_argument("--repeats", type=positive, default=1, help="rounds of all systems; default: %(default)s")
    parser.add_argument("--cores", type=positive, help="that each may use; default: all")
    parser.add_argument("--peer-workers", type=positive, help="that augment for nnU-Net; default: its own choice")
    arguments = parser.parse_args()
    if arguments.iterations < 2:
        parser.error("--iterations 1 leaves nothing to time")
    return arguments


def measure(arguments: Namespace, cores: int, folder: Path) -> dict[str, list[Epoch]]:
    """The timed epochs of each system, over all rounds."""
    preset = "cpu" if arguments.small else "default"
    dataset = folder / DATASET
    print("cases are drawn and preprocessed", file=sys.stderr)
    draw_phantom_dataset(dataset, cases=arguments.cases, shape=SIZES[preset], spacing_mm=(1.0, 1.0, 1.0))
    plans = plan_both(dataset, folder / "plans", preset)
    names = [NNUNET, *arguments.models.split(",")]
    systems = [
        System(name, dataset, folder / name, plans, preset, cores, arguments.peer, arguments.peer_workers)
        for name in names
    ]
    for system in systems:
        system.prepare()
    found: dict[str, list[Epoch]] = {name: [] for name in names}
    for _ in range(arguments.repeats):
        for system in systems:
            for epoch in system.train(job(arguments, cores)):
                told = f"{patches_a_second(epoch):.2f} patches/s, {waiting_share(epoch):.1%} waiting"
                print(f"{system.name}: epoch {epoch.epoch}: {told}", file=sys.stderr)
                if epoch.epoch > arguments.warm_up:
                    found[system.name].append(epoch)
    return found


def job(arguments: Namespace, cores: int) -> Job:
    """The training that all systems do."""
    return Job(
        model="",
        data="",
        epochs=arguments.warm_up + arguments.epochs,
        iterations=arguments.iterations,
        validation_iterations=max(1, arguments.iterations // 5),
        seed=0,
        device=arguments.device,
        threads=cores if arguments.device == "cpu" else 1,  # on a GPU nnU-Net's command takes one
        evaluates=False,
        started=0.0,
    )


def patches_a_second(epoch: Epoch) -> float:
    """In the timed steps."""
    return epoch.steps * BATCH_SIZE / epoch.step_seconds


def waiting_share(epoch: Epoch) -> float:
    """Of the time of the steps."""
    return epoch.waiting_seconds / epoch.step_seconds


if __name__ == "__main__":
    run(main)
