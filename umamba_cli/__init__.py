"""umamba: from a folder of labelled images to evaluated segmentations with U-Mamba."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umamba_cli.pipeline.inference.predictor import Predictor

try:
    __version__ = version("umamba")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0.0.0"

__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: torch takes seconds, which `umamba --help` must not.
    if name == "Predictor":
        return import_module("umamba_cli.pipeline.inference.predictor").Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
