"""What this machine has, and what umamba will use of it."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import umamba_cli
from umamba_cli.pipeline.devices import choose_compute
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.registry import Model, available_models
from umamba_cli.pipeline.networks.scan import BACKENDS, ENVIRONMENT_VARIABLE, Backend, choose_backend
from umamba_cli.pipeline.resources import free_memory_bytes, usable_cores

_PACKAGES = ("torch", "numpy", "SimpleITK", "batchgenerators", "scikit-image", "blosc2", "numba", "triton", "mamba-ssm")
_GIB = 1024**3


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """Findings that belong together."""

    title: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class DoctorReport:
    """All that was found."""

    sections: tuple[Section, ...]

    def to_json(self) -> dict[str, Any]:
        """Section to name to value and note."""
        return {
            section.title: {f.name: {"value": f.value, "note": f.note} for f in section.findings}
            for section in self.sections
        }


def examine() -> DoctorReport:
    """Look at versions, machine, devices, scan backends and models; nothing is changed."""
    return DoctorReport(
        (
            Section("versions", _versions()),
            Section("machine", _machine()),
            Section("devices", _devices()),
            Section("selective scan", _scan()),
            Section("models", tuple(map(_model, available_models().values()))),
        )
    )


def _model(model: Model) -> Finding:
    return Finding(model.name, f"{model.description}{f'; needs {model.missing}' if model.missing else ''}")


def _versions() -> tuple[Finding, ...]:
    own = [Finding("umamba", umamba_cli.__version__), Finding("Python", platform.python_version())]
    return (*own, *(Finding(name, _version(name)) for name in _PACKAGES))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _machine() -> tuple[Finding, ...]:
    return (
        Finding("system", platform.platform()),
        Finding("cores", f"{usable_cores()}", f"of {os.cpu_count()}, by affinity and cgroup"),
        Finding("free memory", f"{free_memory_bytes() / _GIB:.1f} GiB"),
        Finding("free disk", f"{shutil.disk_usage(Path.cwd()).free / _GIB:.1f} GiB", "in the current folder"),
    )


def _devices() -> tuple[Finding, ...]:
    compute = choose_compute()
    found = [Finding("used by --device auto", compute.device_name)]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(Finding(f"cuda:{index}", properties.name, f"{properties.total_memory / _GIB:.0f} GiB"))
    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = f"torch was built for CUDA {built}, but finds no GPU" if built else "torch was built without CUDA"
        found.append(Finding("cuda", "none", reason))
    return (*found, Finding("used by --precision auto", compute.precision, compute.reason))


def _scan() -> tuple[Finding, ...]:
    device = choose_compute().device.type
    asked = os.environ.get(ENVIRONMENT_VARIABLE)
    try:
        chosen = choose_backend(device)
        reason = f"{ENVIRONMENT_VARIABLE} asks for it" if asked else f"the first that runs on {device}"
        used = Finding("used", chosen.name, reason)
    except InputError as error:
        used = Finding("used", "none", error.problem)
    return (used, *(Finding(b.name, _usable(b, device), b.description) for b in BACKENDS.values()))


def _usable(backend: Backend, device: str) -> str:
    return backend.missing or ("usable" if backend.runs_on(device) else f"installed, does not run on {device}")
