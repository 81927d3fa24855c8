"""Which device and which floating type to compute with, and why."""

from __future__ import annotations

import ctypes
import platform
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.resources import free_memory_bytes, process_memory_bytes, usable_cores

PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_TENSOR_CORES_SINCE, _BFLOAT16_SINCE = 7, 8
"""Compute capabilities: https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capabilities."""

_MOST_THREADS = 4  # a core

_NO_ROOM = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
    "could not create a primitive",
)

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """A device and a precision, chosen."""

    device: torch.device
    precision: str
    """`fp32`, `bf16` or `fp16`."""

    reason: str
    """Why this precision, in words."""

    @property
    def device_name(self) -> str:
        """`cpu`, or the name of the graphics card."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def autocast(self) -> AbstractContextManager[Any]:
        """Lower precision where it is safe, inside a `with`."""
        return torch.autocast(self.device.type, dtype=_TYPES[self.precision], enabled=self.precision != "fp32")


def choose_compute(device: str = "auto", precision: str = "auto") -> Compute:
    """Choose a device (`auto`, `cpu`, `cuda`, `cuda:1`, `mps`) and a precision (`auto`, `fp32`, `bf16`, `fp16`).

    Raises:
        InputError: the device is not there, or cannot compute in the precision asked for.
    """
    chosen = _device(device)
    if precision != "auto":
        if precision not in _TYPES:
            raise InputError(f"there is no precision {precision!r}", next_step="choose auto, fp32, bf16 or fp16")
        if precision == "fp16" and chosen.type == "cpu":
            raise InputError("a CPU does not compute in fp16", next_step="choose --precision auto, bf16 or fp32")
        return Compute(chosen, precision, "asked for")
    return Compute(chosen, *_best_precision(chosen))


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"there is no device {name!r}", next_step="choose auto, cpu, cuda or mps") from error
    missing = (device.type == "cuda" and not torch.cuda.is_available()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing or device.type not in ("cpu", "cuda", "mps"):
        raise InputError(
            f"this machine, or this torch {torch.__version__}, has no device {name!r}",
            next_step="choose --device auto, or see `umamba doctor`",
        )
    return device


def _best_precision(device: torch.device) -> tuple[str, str]:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if _cuda_has_bf16(device):
            return "bf16", "the GPU computes in bfloat16"
        if major >= _TENSOR_CORES_SINCE:
            return "fp16", f"the GPU (compute capability {major}.{minor}) is fast in float16 and has no bfloat16"
        return "fp32", f"the GPU (compute capability {major}.{minor}) is not fast in bfloat16 or float16"
    if device.type == "cpu" and _cpu_has_bf16():
        return "bf16", "the CPU has instructions for bfloat16"
    return "fp32", f"the {'CPU' if device.type == 'cpu' else device.type} has no fast bfloat16"


def lower_precisions(compute: Compute) -> tuple[str, ...]:
    """Precisions that take less memory than the present one, and that the device is good at."""
    best = _best_precision(compute.device)[0]
    return (best,) if compute.precision == "fp32" and best != "fp32" else ()


def _cuda_has_bf16(device: torch.device) -> bool:
    # `torch.cuda.is_bf16_supported` says the same, but of the current device alone.
    return torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= _BFLOAT16_SINCE


def _cpu_has_bf16() -> bool:
    # No public function tells; these two exist since torch 2.4, and where they do not, float32 is always right.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in names)


def free_device_bytes(device: torch.device) -> int:
    """Memory that can still be taken on a device; on a CPU, without swapping."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for the next tensor
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return free_memory_bytes()


def taken_memory_bytes(device: torch.device) -> int:
    """The most that this process's tensors ever took on a GPU; elsewhere, the memory that the process takes now."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else process_memory_bytes()


def channels_last(dimensions: int) -> torch.memory_format:
    """The memory format that networks of 2 or 3 dimensions run in: Mamba's tokens are a view of it."""
    return torch.channels_last if dimensions == 2 else torch.channels_last_3d


def use_threads(threads: int | None = None) -> None:
    """Compute on a CPU with this many threads; None means all cores that this process may use.

    More than `_MOST_THREADS` a core are never started: they gain nothing, and OpenMP crashes where it gets no more.
    """
    cores = usable_cores()
    torch.set_num_threads(min(threads or cores, _MOST_THREADS * cores))


def keep_freed_memory() -> bool:
    """Let this process keep the memory that its tensors on a CPU free, for the next ones to take.

    glibc gives large blocks back to the system when they are freed, and the system clears every page of a new one: a
    training step then spends a tenth to a fifth of its time on that. The process grows a fifth larger instead, because
    what it keeps does not always fit. Source: https://man7.org/linux/man-pages/man3/mallopt.3.html.

    Returns:
        Whether it was done; other C libraries have no such setting.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a tensor, or Python, found no memory; on a GPU or a CPU."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _NO_ROOM)
