"""Checkpoints: one safetensors file with weights, optimizer state and, as JSON in its header, where the training was.

No pickle: a checkpoint that somebody sends can be opened without running what is in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from umamba_cli.pipeline.data.files import replacing
from umamba_cli.pipeline.errors import InputError

CHECKPOINT_FORMAT = 1
_HEADER = "umamba"
_NETWORK, _STATE = "network.", "state."


@dataclass(frozen=True)
class Checkpoint:
    """Where a training was after an epoch."""

    epoch: int
    """Epochs finished."""

    weights: Mapping[str, Tensor]
    """The network's state_dict."""

    best_dice: float | None = None
    """The best mean validation Dice so far."""

    state: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else going on needs: nested dicts and lists of tensors, numbers, strings and None."""


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        WorkError: the disk is full or the folder cannot be written to.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {_NETWORK + name: _storable(tensor) for name, tensor in checkpoint.weights.items()}
    header = {
        "format": CHECKPOINT_FORMAT,
        "epoch": checkpoint.epoch,
        "best_dice": checkpoint.best_dice,
        "state": _pack(checkpoint.state, _STATE, tensors),
    }
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={_HEADER: json.dumps(header)})
        except SafetensorError as error:  # its word for a full disk
            raise OSError(str(error)) from error


def read_checkpoint(path: Path, *, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: the file is missing, damaged, or not written by umamba.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path} does not exist", next_step="train first, or choose a fold that is finished")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path} is damaged or no checkpoint of umamba: {error}", next_step="train again, or copy the file again"
        ) from error
    if header.get("format") != CHECKPOINT_FORMAT:
        raise InputError(
            f"{path} has checkpoint format {header.get('format')}, this umamba knows {CHECKPOINT_FORMAT}",
            next_step="update umamba",
        )
    return Checkpoint(
        epoch=header["epoch"],
        weights={name.removeprefix(_NETWORK): t for name, t in tensors.items() if name.startswith(_NETWORK)},
        best_dice=header["best_dice"],
        state=_unpack(header["state"], tensors),
    )


def _storable(tensor: Tensor) -> Tensor:
    # safetensors refuses tensors that share memory or are not contiguous (channels_last weights are not).
    return tensor.detach().to("cpu", copy=True).contiguous()


def _pack(value: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """Replace every tensor in nested containers by its name in `tensors`."""
    if isinstance(value, Tensor):
        tensors[prefix] = _storable(value)
        return {"tensor": prefix}
    if isinstance(value, Mapping):
        # Pairs, because JSON turns an optimizer's integer keys into strings.
        return {"items": [[key, _pack(item, f"{prefix}{key}.", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(item, f"{prefix}{index}.", tensors) for index, item in enumerate(value)]
    return value


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict) and "tensor" in value:
        return tensors[value["tensor"]]
    if isinstance(value, dict):
        return {key: _unpack(item, tensors) for key, item in value["items"]}
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    return value
