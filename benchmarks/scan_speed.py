"""How long the selective scan takes: every backend that runs here, the plain recurrence, and the floor.

On a CPU: forward, and forward plus backward, on one thread and on two, for maps of several sizes with 16 states, in
turn, medians; short calls are repeated for a tenth of a second each time. Beside our backends there are

- `chunked`: a chunked version in plain PyTorch, frozen as it was before there were kernels (`_chunked_scan.py`);
- `recurrence`: one token after the other, differentiated by autograd, as mamba-ssm's `selective_scan_ref` does it. It
  takes minutes and gigabytes for long sequences, so it runs up to `--recurrence-up-to` tokens;
- `floor`: the same exponentials (of states, softplus and SiLU) and multiply-adds on data that stays in the cache. It
  leaves out the rest of what is done once a token and channel, and all movement of data.

The process keeps freed memory as `umamba train` does. Extra memory is what a process of its own takes beyond its
inputs. With `--device cuda`: `triton` against mamba-ssm's CUDA kernel, where that is installed, and the share of the
memory bandwidth's limit.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from _report import Bar, Parser, finish, positive, run

from umamba_cli.pipeline.errors import InputError

if TYPE_CHECKING:
    from _scan_floor import Floor
    from torch import Tensor

STATE = 16
SHAPES = ((2, 175, 640), (2, 1120, 256), (2, 8960, 256), (2, 89600, 64))
LONG = 8000
"""Tokens from which the bars on the floor and on two threads hold: shorter calls are mostly overhead."""

TIMES_FASTER, SHARE_OF_FLOOR, TWO_THREADS, EXTRA_MIB, TIMES_CUDA = 10.0, 0.5, 1.6, 300.0, 1.0

REPETITION_SECONDS = 0.1

Shape = tuple[int, int, int]


def main() -> None:
    arguments = parse_arguments()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded, as the command line does
    if arguments.measure_memory:
        print(extra_mib(arguments.measure_memory))
        return
    if arguments.device == "cuda":
        on_cuda(arguments)
    on_cpu(arguments)


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=positive, default=7)
    parser.add_argument(
        "--recurrence-up-to", type=positive, default=1120, metavar="TOKENS", help="default: %(default)s"
    )
    parser.add_argument(
        "--measure-memory", type=shape, metavar="B,L,D", help="print the extra MiB of one call and stop"
    )
    return parser.parse_args()


def shape(text: str) -> Shape:
    """`2,175,640` as three whole numbers above 0."""
    batch, length, channels = (positive(part) for part in text.split(","))
    return batch, length, channels


@dataclass
class Rival:
    """One implementation at one size, and the seconds it took."""

    name: str
    threads: int
    call: Callable[[], tuple[float, float]]
    """Runs once; seconds of forward, and of forward plus backward."""

    forward: list[float] = field(default_factory=list)
    both: list[float] = field(default_factory=list)

    def time(self) -> None:
        """One more repetition: means over some calls, after one that wakes the cores and is not counted."""
        import torch

        torch.set_num_threads(self.threads)
        calls = max(1, math.ceil(REPETITION_SECONDS / self.call()[1]))
        times = [self.call() for _ in range(calls)]
        for kept, seconds in zip((self.forward, self.both), zip(*times, strict=True), strict=True):
            kept.append(statistics.mean(seconds))

    @property
    def median(self) -> float:
        """Of forward plus backward."""
        return statistics.median(self.both)


def on_cpu(arguments: Namespace) -> NoReturn:
    from _scan_floor import Floor

    from umamba_cli.pipeline.devices import keep_freed_memory

    keep_freed_memory()
    floor = Floor()
    rows: list[tuple[Any, ...]] = []
    faster, of_floor, on_two = [], [], []
    for size in SHAPES:
        rivals = {(rival.name, rival.threads): rival for rival in rivals_at(size, floor, arguments)}
        for _ in range(arguments.repeats):
            for rival in rivals.values():
                rival.time()
        numba, least = rivals["numba", 1].median, rivals["floor", 1].median
        faster.append(rivals["chunked", 1].median / numba)
        if size[1] >= LONG:
            of_floor.append(least / numba)
            on_two.append(numba / rivals["numba", 2].median)
        for rival in rivals.values():
            milliseconds = (1000 * statistics.median(times) for times in (rival.forward, rival.both))
            share = least / rival.threads / rival.median
            rows.append((as_text(size), rival.name, rival.threads, *milliseconds, rival.median / numba, share))
    memory = memory_of_a_call(SHAPES[-1])
    finish(
        ("(B, L, D)", "backend", "threads", "forward ms", "both ms", "times numba", "share of floor"),
        rows,
        [
            Bar("both: times faster than chunked, all sizes", min(faster), TIMES_FASTER, at_most=False),
            Bar("both: share of the floor, long sequences", min(of_floor), SHARE_OF_FLOOR, at_most=False),
            Bar("both: times faster on two threads, long sequences", min(on_two), TWO_THREADS, at_most=False),
            Bar(f"extra MiB of both at {as_text(SHAPES[-1])}", memory, EXTRA_MIB, at_most=True),
        ],
        as_json=arguments.json,
    )


def rivals_at(size: Shape, floor: Floor, arguments: Namespace) -> Iterator[Rival]:
    """All that is timed at one size, each called once where its first call compiles something."""
    from _chunked_scan import chunked, recurrence

    from umamba_cli.pipeline.networks.scan import BACKENDS, selective_scan

    tensors, small = inputs(size), inputs((1, 40, 32))
    for name in (name for name, backend in BACKENDS.items() if backend.runs_on("cpu")):
        scan = partial(selective_scan, backend=name)
        seconds(scan, small)
        for threads in (1, 2) if name == "numba" else (1,):
            yield Rival(name, threads, partial(seconds, scan, tensors))
    yield Rival("chunked", 1, partial(seconds, chunked, tensors))
    if size[1] <= arguments.recurrence_up_to:
        yield Rival("recurrence", 1, partial(seconds, recurrence, tensors))
    yield Rival("floor", 1, partial(floor.seconds, *size, STATE))


def inputs(size: Shape, device: str = "cpu") -> list[Tensor]:
    """Inputs as a Mamba layer makes them: the gate and the matrices are slices of wider projections."""
    import torch

    batch, length, channels = size
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    wide, narrow = normal(batch, length, 2 * channels), normal(batch, length, 4 + 2 * STATE)
    A = -torch.arange(1.0, STATE + 1, device=device).repeat(channels, 1)
    B, C = narrow[..., 4 : 4 + STATE], narrow[..., 4 + STATE :]
    bias = normal(channels) - 4
    tensors = [normal(*size), normal(*size), A, B, C, normal(channels), wide[..., channels:], bias]
    return [t.detach().requires_grad_() for t in tensors]


def seconds(scan: Callable[..., Tensor], tensors: Sequence[Tensor]) -> tuple[float, float]:
    """Of one call: forward, and forward plus backward."""
    import torch

    dy = torch.ones_like(tensors[0])
    began = time.perf_counter()
    y = scan(*tensors)
    forward = time.perf_counter() - began
    torch.autograd.grad(y, tensors, dy)
    return forward, time.perf_counter() - began


def memory_of_a_call(size: Shape) -> float:
    """MiB that forward plus backward take beyond their inputs, in a process of its own."""
    command = [sys.executable, __file__, "--measure-memory", ",".join(map(str, size))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def extra_mib(size: Shape) -> float:
    """The same, in this process: what its memory grows by at most while the call runs."""
    from umamba_cli.pipeline.networks.scan import selective_scan

    scan = partial(selective_scan, backend="numba")
    seconds(scan, inputs((1, 40, 32)))
    tensors = inputs(size)
    before = _resident_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    seconds(scan, tensors)
    gradient_of_y = 4 * size[0] * size[1] * size[2] / 2**20  # belongs to the inputs
    return (_resident_kib("VmHWM") - before) / 1024 - gradient_of_y


def _resident_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def on_cuda(arguments: Namespace) -> NoReturn:
    """Triton and, where it is installed, mamba-ssm's kernel."""
    from _cuda_scan import SHAPES as CUDA_SHAPES
    from _cuda_scan import bandwidth, time_backend, why_not

    problems = why_not()
    if problems["triton"]:
        raise InputError(problems["triton"], next_step="run it where there is a GPU, or with --device cpu")
    limit = bandwidth()
    rows, bars = [], []
    for size in CUDA_SHAPES:
        timings = {name: time_backend(name, size, limit) for name, problem in problems.items() if not problem}
        for name, t in timings.items():
            figures = (t.forward_ms, t.both_ms, t.forward_share, t.both_share, t.peak_bytes / 2**20)
            rows.append((as_text(size), name, *figures))
        if "mamba_ssm" in timings:
            times = timings["mamba_ssm"].both_ms / timings["triton"].both_ms
            bars.append(Bar(f"{as_text(size)}: times faster than mamba-ssm", times, TIMES_CUDA, at_most=False))
    if problems["mamba_ssm"]:
        print(f"no bar is shown: {problems['mamba_ssm']}", file=sys.stderr)
        bars.append(Bar("sizes compared with mamba-ssm", 0, len(CUDA_SHAPES), at_most=False))
    columns = ("(B, L, D)", "backend", "forward ms", "both ms", "forward: bandwidth", "both: bandwidth", "extra MiB")
    finish(columns, rows, bars, as_json=arguments.json)


def as_text(size: Shape) -> str:
    return ", ".join(map(str, size))


if __name__ == "__main__":
    run(main)
