"""Seconds from raw images to a mean Dice on the held-back cases of fold 0: `unet` and `umamba-bot` against nnU-Net.

Every run begins with raw images: `umamba plan` and `umamba preprocess`, or `nnUNetv2_plan_and_preprocess`, then a
training, in processes whose start counts too. All have the same folds, patch, batch size, U-Net (features, strides,
kernels, by preset `cpu`), steps an epoch, epochs, validation batches and schedule (SGD with Nesterov momentum 0.99, a
learning rate that falls from 0.01). Each does the rest as it does by default: nnU-Net trains in float32 without
torch.compile, which it switches off on a CPU whatever it is told.

At each epoch's end the clock stands still while the held-back cases are predicted: whole volumes, tiles half a patch
apart, no mirroring, by each system's own predictor, exported to the images' own grids; one function gives the Dice
against the raw labels. Workers may make batches meanwhile, until their queues are full: about six batches here, about
twelve of nnU-Net's.

The systems take turns, seed by seed. nnU-Net's workers draw their augmentation from the system's entropy: its runs
cannot be repeated exactly. How many of them are best on this machine is tried first. Finished runs are kept in the
folder of --keep, and are not done again.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from _peer_training import Epoch, Job
from _report import Bar, Parser, Table, finish, positive, run
from _trainings import NNUNET, System, end_by_signal, keep_to, plan_both

from umamba_cli.pipeline.data.files import write_json
from umamba_cli.pipeline.errors import InputError

TIMES_SOONER = {"unet": 2.5, "umamba-bot": 2.0}
"""Than nnU-Net, at least."""

COLOURS = {NNUNET: "tab:gray", "unet": "tab:blue", "umamba-bot": "tab:orange"}
TRIAL_EPOCHS, TRIAL_ITERATIONS = 3, 20
"""By which the number of nnU-Net's workers is chosen; the first epoch is not counted."""

STATISTICS: Mapping[str, Callable[[Iterable[float]], float]] = {"min": min, "median": statistics.median, "max": max}


@dataclass(frozen=True)
class Run:
    """One system with one seed, from the raw images to the last epoch."""

    system: str
    seed: int
    prepare_seconds: float
    epochs: tuple[Epoch, ...]

    @property
    def curve(self) -> list[tuple[float, float]]:
        """Seconds since the beginning, and Dice, at each epoch's end."""
        return [(self.prepare_seconds + epoch.seconds, epoch.dice or 0.0) for epoch in self.epochs]

    def seconds_to(self, dice: float) -> float:
        """When the Dice was first reached; infinite where it was not."""
        return next((seconds for seconds, reached in self.curve if reached >= dice), math.inf)

    @property
    def final_dice(self) -> float:
        """After the last step."""
        return self.curve[-1][1]

    @property
    def step_seconds(self) -> float:
        """The median over the epochs."""
        return statistics.median(epoch.step_seconds / epoch.steps for epoch in self.epochs)

    @property
    def waiting_share(self) -> float:
        """Of the time of the steps."""
        return sum(epoch.waiting_seconds for epoch in self.epochs) / sum(epoch.step_seconds for epoch in self.epochs)


def main() -> None:
    arguments = parse_arguments()
    end_by_signal()
    keep_to(arguments.cores)
    folder = arguments.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        runs = all_runs(arguments, folder)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)
    if arguments.plot:
        draw(runs, arguments.dice, arguments.plot)
    show(runs, arguments)


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("dataset", type=Path, help="in nnU-Net raw layout")
    parser.add_argument("--peer", type=Path, required=True, metavar="PYTHON", help="of an environment with nnunetv2")
    parser.add_argument("--seeds", type=positive, default=3, help="default: %(default)s")
    parser.add_argument("--models", default="unet,umamba-bot", help="separated by commas; default: %(default)s")
    parser.add_argument("--dice", type=float, default=0.80, help="to be reached; default: %(default)s")
    parser.add_argument("--epochs", type=positive, default=20, help="default: %(default)s")
    parser.add_argument("--iterations", type=positive, default=100, help="steps an epoch; default: %(default)s")
    parser.add_argument("--cores", type=positive, default=2, help="that each may use; default: %(default)s")
    parser.add_argument("--peer-workers", type=positive, help="processes that augment for nnU-Net; default: try 1, 2")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="learning curves, as .png")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep finished runs here, and go on with them")
    return parser.parse_args()


def all_runs(arguments: Namespace, folder: Path) -> list[Run]:
    """Every system with every seed; what is in the folder already is not done again.

    Raises:
        InputError: the folder holds runs with other settings.
        WorkError: a training failed.
    """
    names = ("epochs", "iterations", "cores")
    settings = {name: getattr(arguments, name) for name in names} | {"dataset": arguments.dataset.resolve().name}
    results = folder / "results.json"
    kept: dict[str, Any] = {"settings": settings, "peer_workers": arguments.peer_workers, "runs": []}
    if results.is_file():
        kept = json.loads(results.read_text())
        if kept["settings"] != settings:
            raise InputError(f"{results} has other settings: {kept['settings']}", next_step="keep these elsewhere")
    plans = plan_both(arguments.dataset, folder / "plans", "cpu")
    fixed = (arguments.dataset, folder / "work", plans, "cpu", arguments.cores, arguments.peer)
    if kept["peer_workers"] is None:
        kept["peer_workers"] = best_workers(System(NNUNET, *fixed), arguments)
        write_json(results, kept)
    systems = [System(name, *fixed, kept["peer_workers"]) for name in (NNUNET, *arguments.models.split(","))]
    done = [read_run(entry) for entry in kept["runs"]]
    for seed in range(arguments.seeds):
        for system in systems:
            if not any((old.system, old.seed) == (system.name, seed) for old in done):
                done.append(one_run(system, arguments, seed))
                write_json(results, {**kept, "runs": [asdict(each) for each in done]})
    wanted = {system.name for system in systems}
    return [each for each in done if each.system in wanted and each.seed < arguments.seeds]


def read_run(entry: Mapping[str, Any]) -> Run:
    """A run as it was kept."""
    return Run(**{**entry, "epochs": tuple(Epoch(**epoch) for epoch in entry["epochs"])})


def one_run(system: System, arguments: Namespace, seed: int) -> Run:
    """From raw images, in an empty folder, to the last epoch."""
    shutil.rmtree(system.folder, ignore_errors=True)
    prepared = system.prepare()
    epochs = []
    for epoch in system.train(job(arguments, seed)):
        epochs.append(epoch)
        print(f"{system.name} {seed}: epoch {epoch.epoch}, {epoch.seconds:.1f} s, Dice {epoch.dice}", file=sys.stderr)
    shutil.rmtree(system.folder)
    return Run(system.name, seed, prepared, tuple(epochs))


def job(arguments: Namespace, seed: int) -> Job:
    """The training that all systems do; validation batches are as many as `umamba train` takes, and nnU-Net's share."""
    return Job(
        model="",
        data="",
        epochs=arguments.epochs,
        iterations=arguments.iterations,
        validation_iterations=max(1, arguments.iterations // 5),
        seed=seed,
        device="cpu",
        threads=arguments.cores,
        evaluates=True,
        started=0.0,
    )


def best_workers(nnunet: System, arguments: Namespace) -> int:
    """How many processes shall augment for nnU-Net: of 1 to the number of cores, that with the shortest epochs."""
    shutil.rmtree(nnunet.folder, ignore_errors=True)
    nnunet.prepare()
    short = replace(
        job(arguments, 0),
        epochs=TRIAL_EPOCHS,
        iterations=TRIAL_ITERATIONS,
        validation_iterations=TRIAL_ITERATIONS // 5,
        evaluates=False,
    )
    seconds = {}
    for workers in range(1, arguments.cores + 1):
        ends = [epoch.seconds for epoch in replace(nnunet, peer_workers=workers).train(short)]
        seconds[workers] = (ends[-1] - ends[0]) / (len(ends) - 1)
        print(f"{NNUNET} with {workers} workers: {seconds[workers]:.2f} s an epoch of the trial", file=sys.stderr)
    shutil.rmtree(nnunet.folder)
    return min(seconds, key=lambda workers: seconds[workers])


def show(runs: Sequence[Run], arguments: Namespace) -> None:
    """The table of all runs, that of the systems, and the bars."""
    by_system = {
        name: [each for each in runs if each.system == name] for name in (NNUNET, *arguments.models.split(","))
    }
    goal = f"s to Dice {arguments.dice:g}"
    rows = [
        (
            each.system,
            each.seed,
            each.prepare_seconds,
            reached(each.seconds_to(arguments.dice)),
            each.final_dice,
            each.step_seconds,
            each.waiting_share,
            each.epochs[0].precision,
            each.epochs[0].version,
        )
        for each in sorted(runs, key=lambda each: (list(by_system).index(each.system), each.seed))
    ]
    medians = {
        name: statistics.median(each.seconds_to(arguments.dice) for each in group) for name, group in by_system.items()
    }
    sooner = {name: times_sooner(medians[NNUNET], seconds) for name, seconds in medians.items()}
    finish(
        ("system", "seed", "prepare s", goal, "final Dice", "s a step", "waiting", "precision", "version"),
        rows,
        [bar for name in by_system if name != NNUNET for bar in bars(name, by_system, sooner[name])],
        as_json=arguments.json,
        more=Table(
            "minimum, median and maximum over the seeds",
            ("system", *(f"{what} {goal}" for what in STATISTICS), *(f"{w} final Dice" for w in STATISTICS), "sooner"),
            [
                (
                    name,
                    *(reached(of(each.seconds_to(arguments.dice) for each in group)) for of in STATISTICS.values()),
                    *(of(each.final_dice for each in group) for of in STATISTICS.values()),
                    sooner[name],
                )
                for name, group in by_system.items()
            ],
        ),
    )


def reached(seconds: float) -> float | str:
    """Seconds for a table."""
    return seconds if math.isfinite(seconds) else "not reached"


def times_sooner(theirs: float, ours: float) -> float:
    """How many times as long they take; not a number where the Dice was not reached."""
    return theirs / ours if math.isfinite(theirs) and math.isfinite(ours) else math.nan


def bars(name: str, by_system: Mapping[str, Sequence[Run]], sooner: float) -> list[Bar]:
    """What a model of ours is held against."""
    median = statistics.median(each.final_dice for each in by_system[name])
    lowest = min(each.final_dice for each in by_system[NNUNET])
    found = [Bar(f"{name}: final Dice, median, against nnU-Net's lowest", median, round(lowest, 4), at_most=False)]
    if name in TIMES_SOONER:
        found.insert(0, Bar(f"{name}: times sooner than nnU-Net", sooner, TIMES_SOONER[name], at_most=False))
    return found


def draw(runs: Sequence[Run], goal: float, file: Path) -> None:
    """Learning curves of all runs, one colour a system."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    named = set()
    for each in runs:
        seconds, dice = zip(*each.curve, strict=True)
        name = "nnU-Net " + each.epochs[0].version if each.system == NNUNET else each.system
        label = None if name in named else name
        named.add(name)
        axes.plot(seconds, dice, color=COLOURS.get(each.system), marker=".", markersize=4, linewidth=1, label=label)
    axes.axhline(goal, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="seconds from raw images", ylabel="mean Dice of the held-back cases", xlim=(0, None), ylim=(0, 1))
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    run(main)
