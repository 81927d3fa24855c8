"""The implementations of the scan and of the causal convolution, and which one is used where."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

from umamba_cli.pipeline.errors import InputError

ENVIRONMENT_VARIABLE = "UMAMBA_SCAN"


@dataclass(frozen=True)
class Backend:
    """One implementation: a module with these functions, imported when first used.

    - `forward(inputs, *, keep) -> (y, saved)`, of `ScanInputs`
    - `backward(dy, inputs, saved)`: a gradient for each input, None for what is None
    - `saved_shape(u, A)`: the shape of `saved` where `keep` asks for it
    - `convolution_forward(x, weight, bias) -> y`, `convolution_backward(dy, x, weight, bias)`: three gradients
    """

    name: str

    devices: tuple[str, ...]
    """Device types that it runs on; `*` is any."""

    description: str

    package: str = ""
    """What must be installed; empty for nothing."""

    kernel: str = ""
    """The module of the package that must be importable, where that is not the package itself."""

    interpreter: str = ""
    """The environment variable that, set to 1, lets it run on a CPU, slowly, where it is asked for by name."""

    least: tuple[int, ...] = ()
    """The package's first version that will do."""

    @property
    def missing(self) -> str:
        """Why it cannot be used on this machine, whatever the device; empty where it can."""
        return _problem(self.package, self.kernel or self.package, self.least) if self.package else ""

    @property
    def module(self) -> ModuleType:
        """What implements it."""
        return importlib.import_module(f"{__package__}.{self.name}_backend")

    def runs_on(self, device_type: str) -> bool:
        """Whether it is there and runs on such a device. Tensors of the `meta` device have shapes only: any will do."""
        fits = "*" in self.devices or device_type in self.devices or device_type == "meta"
        return fits and not self.missing


@lru_cache
def _problem(package: str, kernel: str, least: tuple[int, ...]) -> str:
    """Why a kernel cannot be used; empty where it can. Found is not enough: it may be built for another torch."""
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    if importlib.util.find_spec(kernel) is None:
        return f"{package} is installed without its kernel, {kernel}"
    try:
        version = getattr(importlib.import_module(kernel), "__version__", "")
    except Exception as error:  # an import runs anybody's code
        return f"{kernel} cannot be imported: {' '.join(str(error).split())[:200]}"
    if tuple(int(part) for part in re.findall(r"\d+", version)[: len(least)]) < least:
        return f"{package} {version} is too old, {'.'.join(map(str, least))} will do"
    return ""


# The order is the order of preference.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            "mamba_ssm",
            ("cuda",),
            "mamba-ssm's own CUDA kernel",
            "mamba_ssm",
            "selective_scan_cuda",
        ),
        Backend(
            "triton",
            ("cuda",),
            "fused, compiled for the GPU by Triton when first used",
            "triton",
            interpreter="TRITON_INTERPRET",
            least=(3, 3),
        ),
        Backend("numba", ("cpu",), "fused, compiled for the CPU by numba when first used", "numba"),
        Backend("torch", ("*",), "chunked, in plain PyTorch, on any device and in float64"),
    )
}


def choose_backend(device_type: str, name: str | None = None) -> Backend:
    """The backend to use on a device: the one asked for, or the first that runs there.

    Args:
        device_type: `cpu`, `cuda`, `mps`, or `meta` for shapes without numbers.
        name: a backend's name, or `auto` for the best; None takes the environment variable `UMAMBA_SCAN`, or `auto`.

    Raises:
        InputError: no such backend, it is not installed, or it does not run on the device.
    """
    asked_for = f"{name!r}" if name else f"{ENVIRONMENT_VARIABLE}={os.environ.get(ENVIRONMENT_VARIABLE)}"
    name = name or os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
    if name == "auto":
        return next(backend for backend in BACKENDS.values() if backend.runs_on(device_type))
    if name not in BACKENDS:
        raise InputError(f"there is no scan backend {asked_for}", next_step=f"choose auto, {', '.join(BACKENDS)}")
    backend = BACKENDS[name]
    interpreted = device_type == "cpu" and os.environ.get(backend.interpreter) == "1" and not backend.missing
    if not (backend.runs_on(device_type) or interpreted):
        why = backend.missing or f"it does not run on {device_type}"
        raise InputError(
            f"the scan backend {asked_for} cannot be used: {why}",
            next_step=f"unset {ENVIRONMENT_VARIABLE}; `umamba doctor` lists the backends that this machine has",
        )
    return backend
