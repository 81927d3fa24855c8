"""Files of torch: as it writes them, and put together by hand so that they can say what torch never would."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MACHINE = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


FORMATS = {"zip": True, "legacy": False}


def save(path: Path, content: object, kind: str = "zip") -> Path:
    """Save as torch does, since 1.6 or before."""
    torch.save(content, path, _use_new_zipfile_serialization=FORMATS[kind])
    return path


def checkpoint() -> dict[str, Any]:
    """What nnU-Net saves, in small."""
    weights = OrderedDict(
        {"conv.weight": torch.arange(24.0).reshape(2, 3, 4), "empty": torch.zeros(0, 3), "one": torch.tensor(7)}
    )
    weights._metadata = {"": {"version": 1}}  # type: ignore[attr-defined] - as torch does it
    return {
        "network_weights": weights,
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float32(0.1)], "ema_fg_dice": [np.float64(0.2)], "lrs": [0.01]},
        "_best_ema": np.float64(0.5),
        "init_args": {"fold": 0, "device": torch.device("cuda", 0), "plans": {"configurations": {"2d": [[3, 3]]}}},
        "inference_allowed_mirroring_axes": (0, 1, 2),
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
    }


def value(content: object) -> bytes:
    """What pushes a plain value on the unpickler's stack."""
    return pickle.dumps(content, 2)[2:-1]


def named(module: str, name: str) -> bytes:
    """What pushes something by its name."""
    return f"c{module}\n{name}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    """What calls a function with arguments, all of them pushed before."""
    return function + b"(" + b"".join(arguments) + b"tR"


def storage(key: Any = "0", count: Any = 4, kind: bytes = named("torch", "FloatStorage")) -> bytes:
    """A storage outside of the pickle."""
    return b"(" + value("storage") + kind + value(key) + value("cpu") + value(count) + b"tQ"


def tensor(
    offset: Any = 0, size: Any = (4,), stride: Any = (1,), of: bytes | None = None, function: str = "_rebuild_tensor_v2"
) -> bytes:
    """A tensor on a storage."""
    hooks = call(named("collections", "OrderedDict"))
    arguments = (storage() if of is None else of, value(offset), value(size), value(stride), value(False), hooks)
    return call(named("torch._utils", function), *arguments)


def whole(content: bytes) -> bytes:
    """A pickle that ends."""
    return b"\x80\x02" + content + b"."


def write_zip(
    path: Path,
    content: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    records: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A file as torch writes it since 1.6; four float32 numbers as storage 0 unless others are given."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", whole(content))
        archive.writestr("model/byteorder", b"little")
        for key, data in (storages or {"0": struct.pack("<4f", 1, 2, 3, 4)}).items():
            archive.writestr(f"model/data/{key}", data)
        for name, data in (records or {}).items():
            archive.writestr(name, data)
    return path


def write_legacy(
    path: Path,
    content: bytes,
    *,
    machine: object = MACHINE,
    keys: object = ("0",),
    count: int = 4,
    data: bytes = struct.pack("<4f", 1, 2, 3, 4),
) -> Path:
    """A file as torch wrote it before 1.6."""
    head = b"".join(pickle.dumps(part, 2) for part in (MAGIC, PROTOCOL, machine))
    tail = pickle.dumps(list(keys) if isinstance(keys, tuple) else keys, 2) + struct.pack("<q", count) + data
    path.write_bytes(head + whole(content) + tail)
    return path
