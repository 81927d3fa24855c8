"""umamba: from a folder of labelled images to evaluated segmentations with U-Mamba."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("umamba")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0.0.0"
