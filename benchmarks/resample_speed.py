"""How long resampling takes on one thread, against scikit-image and batchgenerators: calls in turn, medians.

An image (float32, waves and noise, standard deviation 1) is resized with cubic splines: our `resample_image` against
`skimage.transform.resize(order=3, mode="edge", anti_aliasing=False)`, as nnU-Net calls it. A label map (int16, organs
of very different sizes with uneven surfaces, and background) is resized linearly, label by label: our `resample_labels`
against batchgenerators' `resize_segmentation(order=1)`. No axis is resampled apart. Every number is compared. CPU
seconds that exceed the seconds would tell of a second thread.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from _report import Bar, Parser, finish, positive, run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
ISOTROPIC = (1.0, 1.0, 1.0)
SMALL, SMALL_NEW = (6, 7, 8), (8, 9, 7)
"""Sizes that each function is called with once before the clock runs: imports and compilation are not measured."""

TIMES_FASTER, LARGEST_DIFFERENCE, DIFFERING_VOXELS = 10.0, 1e-4, 0

Shape = tuple[int, ...]
Resize = Callable[["NDArray[Any]", Shape], "NDArray[Any]"]


@dataclass
class Function:
    """One function that is timed."""

    name: str
    resize: Resize
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def timed(self, array: NDArray[Any], shape: Shape) -> NDArray[Any]:
        """Call it and note how long that took."""
        began, cpu_began = time.perf_counter(), time.process_time()
        result = self.resize(array, shape)
        self.seconds.append(time.perf_counter() - began)
        self.cpu_seconds.append(time.process_time() - cpu_began)
        return result

    def row(self, task: str) -> tuple[str, str, float, float]:
        """Its line of the table: median seconds."""
        return task, self.name, statistics.median(self.seconds), statistics.median(self.cpu_seconds)


def main() -> None:
    arguments = parse_arguments()
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # before numpy is loaded
    import numpy as np
    from threadpoolctl import threadpool_limits

    old, new = arguments.shape, arguments.new_shape
    image_functions, label_functions = functions()
    with threadpool_limits(1):
        ours, theirs = in_turn(image_functions, image_phantom(old), image_phantom(SMALL), new, arguments.repeats)
        difference = float(np.max(np.abs(ours.astype(np.float64) - theirs)))
        labels = label_phantom(old, arguments.labels)
        ours, theirs = in_turn(label_functions, labels, label_phantom(SMALL, 2), new, arguments.repeats)
        differing = int(np.count_nonzero(ours != theirs))
    tasks = {"image, order 3": image_functions, f"{arguments.labels} labels": label_functions}
    ratios = [statistics.median(b.seconds) / statistics.median(a.seconds) for a, b in tasks.values()]
    finish(
        ("task", "function", "seconds", "CPU seconds"),
        [function.row(task) for task, pair in tasks.items() for function in pair],
        [
            Bar("image: times faster than scikit-image", ratios[0], TIMES_FASTER, at_most=False),
            Bar("image: largest difference", difference, LARGEST_DIFFERENCE, at_most=True),
            Bar("labels: times faster than batchgenerators", ratios[1], TIMES_FASTER, at_most=False),
            Bar("labels: differing voxels", differing, DIFFERING_VOXELS, at_most=True),
        ],
        as_json=arguments.json,
    )


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--shape", type=shape, default=(96, 256, 256), metavar="Z,Y,X", help="default: 96,256,256")
    parser.add_argument(
        "--new-shape", type=shape, default=(128, 320, 320), metavar="Z,Y,X", help="default: 128,320,320"
    )
    parser.add_argument("--labels", type=positive, default=14, help="besides the background; default: %(default)s")
    parser.add_argument("--repeats", type=positive, default=3)
    arguments = parser.parse_args()
    if arguments.shape == arguments.new_shape:
        parser.error("--shape and --new-shape are the same: nothing would be resampled")
    return arguments


def shape(text: str) -> Shape:
    """`96,256,256` as three whole numbers above 0."""
    parts = text.split(",")
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not Z,Y,X")
    return tuple(positive(part) for part in parts)


def functions() -> tuple[tuple[Function, Function], tuple[Function, Function]]:
    """Ours and theirs for images, ours and theirs for label maps; each takes an array (z, y, x)."""
    from batchgenerators.augmentations.utils import resize_segmentation
    from skimage.transform import resize

    from umamba_cli.pipeline.preprocessing.resampling import resample_image, resample_labels

    def our_image(image: NDArray[Any], new: Shape) -> Any:
        return resample_image(image[None], new, ISOTROPIC, ISOTROPIC)[0]

    def their_image(image: NDArray[Any], new: Shape) -> Any:
        return resize(image, new, order=3, mode="edge", anti_aliasing=False)

    def our_labels(labels: NDArray[Any], new: Shape) -> Any:
        return resample_labels(labels, new, ISOTROPIC, ISOTROPIC)

    def their_labels(labels: NDArray[Any], new: Shape) -> Any:
        return resize_segmentation(labels, new, order=1)

    return (
        (Function("umamba", our_image), Function(f"scikit-image {version('scikit-image')}", their_image)),
        (Function("umamba", our_labels), Function(f"batchgenerators {version('batchgenerators')}", their_labels)),
    )


def in_turn(
    pair: tuple[Function, Function], array: NDArray[Any], small: NDArray[Any], new: Shape, repeats: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Time both in turn, so that both meet the same noise, and return what each gave last."""
    for function in pair:
        function.resize(small, SMALL_NEW)
    results: list[NDArray[Any]] = []
    for _ in range(repeats):
        results = [function.timed(array, new) for function in pair]
    return results[0], results[1]


def image_phantom(size: Shape) -> NDArray[np.float32]:
    """Waves and noise (z, y, x), standard deviation 1."""
    import numpy as np

    z, y, x = np.meshgrid(*(np.linspace(0, 1, n, dtype=np.float32) for n in size), indexing="ij")
    waves = np.sin(9 * z + 2) + np.cos(14 * y) * np.sin(11 * x + 1) + 0.3 * np.sin(90 * (x + y) + 40 * z)
    noisy = waves + 0.3 * np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    return np.asarray((noisy - noisy.mean()) / noisy.std(), dtype=np.float32)


def label_phantom(size: Shape, organs: int) -> NDArray[np.int16]:
    """Organs 1, 2, ... (z, y, x), the first some hundred times larger than the last, which lies in front."""
    import numpy as np

    generator = np.random.default_rng(0)
    labels = np.zeros(size, dtype=np.int16)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in size), indexing="ij")
    for organ in range(1, organs + 1):
        radius = 0.45 * 0.15 ** ((organ - 1) / max(organs - 1, 1))
        radii = radius * generator.uniform(0.7, 1.4, 3)
        centre = generator.uniform(-1, 1, 3) * (0.85 - radius)
        phases = generator.uniform(0, 2 * math.pi, 3)
        dz, dy, dx = ((axis - c) / r for axis, c, r in zip((z, y, x), centre, radii, strict=True))
        uneven = 1 + 0.2 * np.sin(4 * dz + phases[0]) * np.sin(4 * dy + phases[1]) * np.sin(4 * dx + phases[2])
        labels[dz**2 + dy**2 + dx**2 < uneven] = organ
    return labels


if __name__ == "__main__":
    run(main)
