"""Augmentation: batchgenerators' transforms against the same distribution as batched torch operations.

Speed: patches a second, and CPU seconds a patch, of batchgenerators (one process, one thread, as one worker of the
DataLoader) and of the batched form (batches of 2; one and two threads, or a GPU with --device cuda), on patches of
40x56x40 and of 128x128x128 with one channel, from what is read for them to what the network gets.

Distributions: each transform by itself, on the same images, until it has touched --samples patches twice over with
batchgenerators and once in the batched form. The effect is the difference that it makes to a voxel. Two histograms, of
the intensities that come out and of the effect, are compared by total variation distance (0 alike, 1 apart), and the
yardstick is the distance between two random halves of batchgenerators' own patches. "in yardsticks" is the larger of
the two histograms' distances so measured, about 1 where the distributions are the same; "shares apart" is the
difference between the shares of patches that are touched, in standard errors.

A known difference: the batched form turns and scales images with linear interpolation (as nnU-Net 2 does), ours with
batchgenerators by cubic splines. `turn` shows it and has no bar; `turn, linear` has linear interpolation on both sides.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from _report import Bar, Parser, Table, finish, positive, run
from numpy.typing import NDArray

from umamba_cli.pipeline.errors import InputError

if TYPE_CHECKING:
    from umamba_cli.pipeline.training.augmentation import AugmentationPlan
    from umamba_cli.pipeline.training.augmentation.draws import Draw

SIZES = ((40, 56, 40), (128, 128, 128))
BATCH_SIZE = 2
PATCHES = ((200, 1000), (30, 150))  # of each size, batchgenerators and batched: enough for each transform
COMPARED_SIZE = (20, 28, 24)
IMAGES, BINS, SPLITS = 8, 48, 200

TIMES_FEWER_CPU_SECONDS = 4.0  # than batchgenerators, at least
MOST_YARDSTICKS = 2.0
MOST_STANDARD_ERRORS = 4.0

Patches = Callable[[int], NDArray[np.float32] | None]
"""The patch of a seed, None where the transform left it alone."""


def main() -> None:
    arguments = parse_arguments()
    speeds = [
        row for size, patches in zip(SIZES, PATCHES, strict=True) for row in measured_speeds(arguments, size, patches)
    ]
    compared = [compare(name, arguments.samples) for name in transform_names()]
    columns = (
        "transform",
        "form",
        "share touched",
        "mean effect",
        "variance of effect",
        "in yardsticks",
        "shares apart",
    )
    finish(
        ("patch", "form", "patches a second", "CPU ms a patch", "times fewer CPU s"),
        [speed.row for speed in speeds],
        [*speed_bars(speeds), *(bar for comparison in compared for bar in comparison.bars)],
        as_json=arguments.json,
        more=Table("distributions", columns, [row for comparison in compared for row in comparison.rows]),
    )


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--samples", type=positive, default=150, help="touched patches; default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the batched form; default: cpu")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a thread that waits is not work
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no CUDA device here", next_step="leave out --device cuda")
    return arguments


# Speed


@dataclass
class Speed:
    """How fast one form is."""

    size: tuple[int, ...]
    form: str
    patches: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    times_fewer: float = 1.0

    @property
    def cpu_a_patch(self) -> float:
        """Seconds."""
        return self.cpu / self.patches

    @property
    def row(self) -> tuple[object, ...]:
        """For the table."""
        name = "x".join(str(n) for n in self.size)
        return name, self.form, self.patches / self.wall, 1000 * self.cpu_a_patch, self.times_fewer


def measured_speeds(arguments: Namespace, size: tuple[int, ...], patches: tuple[int, int]) -> Iterator[Speed]:
    """Of batchgenerators and of the batched form, on the same patches."""
    import torch

    from umamba_cli.pipeline.training.augmentation import Augmentation, AugmentationPlan, BatchedAugmentation
    from umamba_cli.pipeline.training.patches import Patch

    plan = AugmentationPlan(size)
    image, labels = phantom(plan.read_size, seed=0)
    augment, batched = Augmentation(plan), BatchedAugmentation(plan)

    def one_by_one(seed: int) -> None:
        for i in range(BATCH_SIZE):
            augment(Patch(image, labels), np.random.default_rng(BATCH_SIZE * seed + i))

    def at_once(seed: int) -> None:
        batched(images, maps, range(BATCH_SIZE * seed, BATCH_SIZE * (seed + 1)))
        if arguments.device == "cuda":
            torch.cuda.synchronize()

    torch.set_num_threads(1)
    theirs = timed(Speed(size, "batchgenerators"), one_by_one, patches[0])
    yield theirs
    images = torch.from_numpy(np.stack([image] * BATCH_SIZE)).to(arguments.device)
    maps = torch.from_numpy(np.stack([labels] * BATCH_SIZE).astype(np.int64)).to(arguments.device)
    for threads in (1, 2) if arguments.device == "cpu" else (1,):
        torch.set_num_threads(threads)
        name = f"batched, {threads} thread{'s' * (threads > 1)}" if arguments.device == "cpu" else "batched, cuda"
        speed = timed(Speed(size, name), at_once, patches[1])
        speed.times_fewer = theirs.cpu_a_patch / speed.cpu_a_patch
        yield speed


def timed(speed: Speed, step: Callable[[int], None], patches: int) -> Speed:
    """Steps of a batch each, with the seeds 0, 1, ..."""
    print(f"{speed.form}, {speed.size}", file=sys.stderr)
    for seed in range(3):
        step(seed)
    while speed.patches < patches:
        wall, cpu = time.perf_counter(), time.process_time()
        step(speed.patches // BATCH_SIZE)
        speed.wall += time.perf_counter() - wall
        speed.cpu += time.process_time() - cpu
        speed.patches += BATCH_SIZE
    return speed


def speed_bars(speeds: list[Speed]) -> list[Bar]:
    return [
        Bar(
            f"{'x'.join(map(str, speed.size))}: {speed.form}, times fewer CPU seconds a patch than batchgenerators",
            speed.times_fewer, TIMES_FEWER_CPU_SECONDS, at_most=False,
        )
        for speed in speeds if speed.form != "batchgenerators"
    ]  # fmt: skip


def phantom(size: tuple[int, ...], seed: int) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """A normalised image (1, z, y, x) with two structures, and their labels; a corner lies outside."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(seed)
    shape = gaussian_filter(random.standard_normal(size).astype(np.float32), 4)
    labels = (shape > np.quantile(shape, 0.9)).astype(np.int16) + (shape > np.quantile(shape, 0.97))
    image = gaussian_filter(labels + random.standard_normal(size).astype(np.float32), 0.7)
    labels[:, : size[1] // 6, : size[2] // 6] = -1
    return ((image - image.mean()) / image.std())[None], labels


# Distributions


@dataclass
class Sample:
    """Patches that a transform touched, by their histograms."""

    intensities: NDArray[np.int64]
    effects: NDArray[np.int64]
    share: float
    tried: int
    mean: float
    variance: float


@dataclass
class Comparison:
    """Rows and bars of one transform."""

    rows: list[tuple[object, ...]] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)


def transform_names() -> list[str]:
    from umamba_cli.pipeline.training.augmentation import Augmentation, AugmentationPlan

    names = list(Augmentation(AugmentationPlan(COMPARED_SIZE)).transforms)
    return [names[0], f"{names[0]}, linear", *names[1:]]


def compare(name: str, samples: int) -> Comparison:
    """One transform by itself, in both forms."""
    from umamba_cli.pipeline.training.augmentation import AugmentationPlan

    print(name, file=sys.stderr)
    plan = AugmentationPlan(COMPARED_SIZE)
    images = [phantom(plan.read_size, seed) for seed in range(IMAGES)]
    theirs, ours = batchgenerators_patches(plan, name, images), batched_patches(plan, name, images)
    befores = [centre(image, COMPARED_SIZE) for image, _ in images]
    edges = bin_edges(theirs, befores)
    theirs_sample = collect(theirs, befores, edges, 2 * samples, first=10**6)
    our_sample = collect(ours, befores, edges, samples, first=2 * 10**6)
    apart = max(
        in_yardsticks(theirs_sample.intensities, our_sample.intensities),
        in_yardsticks(theirs_sample.effects, our_sample.effects),
    )
    errors = standard_errors(theirs_sample, our_sample)
    result = Comparison()
    for form, sample, figures in (
        ("batchgenerators", theirs_sample, ("", "")),
        ("batched", our_sample, (apart, errors)),
    ):
        result.rows.append((name, form, sample.share, sample.mean, sample.variance, *figures))
    if name != "turn":
        result.bars.append(Bar(f"{name}: distributions apart, in yardsticks", apart, MOST_YARDSTICKS, at_most=True))
    result.bars.append(
        Bar(f"{name}: shares touched apart, in standard errors", errors, MOST_STANDARD_ERRORS, at_most=True)
    )
    return result


def batchgenerators_patches(plan: AugmentationPlan, name: str, images: list[Any]) -> Patches:
    import random

    from umamba_cli.pipeline.training.augmentation import Augmentation

    transform: Any = Augmentation(plan).transforms[name.removesuffix(", linear")]
    if name.endswith(", linear"):
        transform.order_data = 1
    befores = [centre(image, plan.patch_size) for image, _ in images]

    def patch(seed: int) -> NDArray[np.float32] | None:
        image, labels = images[seed % IMAGES]
        before = befores[seed % IMAGES]
        start = image if name.startswith("turn") else before
        np.random.seed(seed)
        random.seed(seed)
        after: NDArray[np.float32] = transform(data=start[None].copy(), seg=labels[None, None].astype(np.float32))[
            "data"
        ][0]
        return None if np.array_equal(after, before) else after

    return patch


def batched_patches(plan: AugmentationPlan, name: str, images: list[Any]) -> Patches:
    import torch

    from umamba_cli.pipeline.training.augmentation.draws import draw
    from umamba_cli.pipeline.training.augmentation.intensity import change_intensities
    from umamba_cli.pipeline.training.augmentation.spatial import cut_patches

    transform = name.removesuffix(", linear")
    befores = [centre(image, plan.patch_size) for image, _ in images]

    def patch(seed: int) -> NDArray[np.float32] | None:
        image, labels = images[seed % IMAGES]
        drawn = only(draw(plan, 1, seed), transform)
        tensors = torch.from_numpy(image)[None], torch.from_numpy(labels.astype(np.int64))[None]
        with torch.no_grad():
            after, _ = cut_patches(*tensors, [drawn], plan.patch_size, plan.in_plane_only)
            change_intensities(after, [drawn], plan.in_plane_only)
        array: NDArray[np.float32] = after[0].numpy()
        return None if np.array_equal(array, befores[seed % IMAGES]) else array

    return patch


def only(drawn: Draw, transform: str) -> Draw:
    """What was drawn for one transform, and nothing for all others."""
    one = np.ones(1)
    still: dict[str, Any] = {
        "turn": None, "mirrored": (False,) * len(drawn.mirrored), "noise": 0.0, "blur": np.zeros(1),
        "brightness": one, "contrast": one, "zoom": one, "gamma_inverted": one, "gamma": one,
    }  # fmt: skip
    del still[transform]
    return replace(drawn, **still)


def centre(image: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    start = [(n - m) // 2 for n, m in zip(image.shape[1:], size, strict=True)]
    return np.ascontiguousarray(image[(slice(None), *(slice(a, a + m) for a, m in zip(start, size, strict=True)))])


def bin_edges(patches: Patches, befores: list[NDArray[np.float32]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Bins that hold about as many voxels each, of intensities and of effects."""
    seeds = [seed for seed in range(400) if patches(seed) is not None][:40]
    touched = [(patches(seed), befores[seed % IMAGES]) for seed in seeds]
    shares = np.linspace(0, 1, BINS + 1)[1:-1]
    intensities = np.concatenate([after.ravel() for after, _ in touched if after is not None])
    effects = np.concatenate([(after - before).ravel() for after, before in touched if after is not None])
    return np.unique(np.quantile(intensities, shares)), np.unique(np.quantile(effects, shares))


def collect(
    patches: Patches, befores: list[NDArray[np.float32]], edges: tuple[Any, Any], count: int, first: int
) -> Sample:
    """Histograms of as many touched patches, with seeds from `first` on."""
    intensities, effects, means, squares, seed = [], [], [], [], first
    while len(intensities) < count:
        after, before = patches(seed), befores[seed % IMAGES]
        seed += 1
        if after is None:
            continue
        effect = (after - before).ravel().astype(np.float64)
        intensities.append(np.bincount(np.searchsorted(edges[0], after.ravel()), minlength=len(edges[0]) + 1))
        effects.append(np.bincount(np.searchsorted(edges[1], effect), minlength=len(edges[1]) + 1))
        means.append(effect.mean())
        squares.append((effect**2).mean())
    mean = float(np.mean(means))
    tried = seed - first
    return Sample(
        np.array(intensities), np.array(effects), count / tried, tried, mean, float(np.mean(squares)) - mean**2
    )


def in_yardsticks(theirs: NDArray[np.int64], ours: NDArray[np.int64]) -> float:
    """The distance from ours to a half of theirs, in distances between two halves of theirs; means over splits."""
    random = np.random.default_rng(0)
    half = len(theirs) // 2
    between, within = [], []
    for _ in range(SPLITS):
        order = random.permutation(len(theirs))
        first, second = theirs[order[:half]], theirs[order[half:]]
        within.append(total_variation(first, second))
        between.append(total_variation(first, ours))
    return float(np.mean(between) / np.mean(within))


def total_variation(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    a, b = first.sum(0) / first.sum(), second.sum(0) / second.sum()
    return float(np.abs(a - b).sum() / 2)


def standard_errors(first: Sample, second: Sample) -> float:
    """How far apart two shares are."""
    pooled = (first.share * first.tried + second.share * second.tried) / (first.tried + second.tried)
    error = (pooled * (1 - pooled) * (1 / first.tried + 1 / second.tried)) ** 0.5
    return abs(first.share - second.share) / error


if __name__ == "__main__":
    run(main)
