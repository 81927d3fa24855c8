"""What torch saved comes back as torch itself reads it; a malicious file is refused and runs nothing."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_pickles import FORMATS, call, checkpoint, named, save, storage, tensor, value, write_legacy, write_zip

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.interop.torch_file import load_torch_file

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
]
NEWER_DTYPES = [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2]


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, torch.Tensor):
        plain = ours.float() if ours.dtype.itemsize == 1 and ours.is_floating_point() else ours
        other = theirs.detach().to(plain.dtype)
        return (
            type(ours) is torch.Tensor
            and ours.dtype == theirs.dtype
            and ours.stride() == theirs.stride()
            and torch.equal(plain, other)
        )
    if isinstance(theirs, dict):
        return type(ours) is dict and list(ours) == list(theirs) and all(same(ours[k], theirs[k]) for k in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(theirs, torch.device):
        return ours == str(theirs)
    return type(ours) is type(theirs) and ours == theirs


@pytest.mark.parametrize("kind", FORMATS)
def test_checkpoints_come_back(tmp_path: Path, kind: str) -> None:
    content = checkpoint()
    assert same(load_torch_file(save(tmp_path / "c.pth", content, kind)), content)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_comes_back(tmp_path: Path, dtype: torch.dtype, kind: str) -> None:
    content = [torch.tensor([0, 1, 1, 0]).to(dtype), torch.arange(6).to(dtype).reshape(2, 3)]
    assert same(load_torch_file(save(tmp_path / "t.pth", content, kind)), content)


@pytest.mark.parametrize("dtype", NEWER_DTYPES, ids=str)
def test_newer_types_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    content = torch.arange(6).to(dtype).reshape(2, 3).t()
    assert same(load_torch_file(save(tmp_path / "t.pth", content)), content)


@pytest.mark.parametrize("kind", FORMATS)
def test_views_strides_and_shared_storages_come_back(tmp_path: Path, kind: str) -> None:
    base = torch.arange(120.0).reshape(4, 5, 6)
    content = {
        "base": base,
        "part": base[1:3, 2:, ::2],
        "turned": base.permute(2, 0, 1),
        "last": torch.zeros(1, 8, 3, 4).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    read = load_torch_file(save(tmp_path / "t.pth", content, kind))
    assert same(read, content)
    assert not read["parameter"].requires_grad
    read["base"][1, 2, 0] = -1.0
    assert read["part"][0, 0, 0] == -1  # one storage, as it was


def test_what_is_left_out_is_not_read(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "t.pth",
        b"}" + b"(" + value("weights") + tensor() + value("optimizer") + tensor(of=storage("1", 10**9)) + b"u",
    )
    with pytest.raises(InputError, match="storage 1 has no bytes"):
        load_torch_file(path)
    read = load_torch_file(path, leave_out=("optimizer",))
    assert list(read) == ["weights"]
    assert read["weights"].tolist() == [1, 2, 3, 4]


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def _touch(mark: Path) -> Calls:
    return Calls(os.system, f"touch {mark}")


def _inner_file(mark: Path) -> bytes:
    content = io.BytesIO()
    torch.save(_touch(mark), content)
    return content.getvalue()


# Each makes the file `mark` where torch reads it without `weights_only`.
HARMFUL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "system": (_touch, "system"),
    "in the weights": (lambda mark: {"network_weights": {"a": torch.ones(2), "b": _touch(mark)}}, "system"),
    "in what is left out": (lambda mark: {"optimizer_state": _touch(mark)}, "system"),
    "eval": (lambda mark: [Calls(eval, f"open({str(mark)!r}, 'w').close()")], "eval"),
    "getattr": (lambda mark: Calls(getattr, _touch(mark), "real"), "getattr"),
    "exec as a key": (lambda mark: {Calls(exec, f"open({str(mark)!r}, 'w').close()"): 1}, "exec"),
    "a file in the file": (
        lambda mark: Calls(torch.storage._load_from_bytes, _inner_file(mark)),
        "torch.storage._load_from_bytes",
    ),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("harm", HARMFUL)
def test_harm_is_refused(tmp_path: Path, harm: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, name = HARMFUL[harm]
    mark, path = tmp_path / "mark", tmp_path / "c.pth"
    save(path, make(mark), kind)
    monkeypatch.setattr(torch.storage, "_load_from_bytes", lambda b: torch.load(io.BytesIO(b), weights_only=False))
    with suppress(Exception), warnings.catch_warnings():  # what the call returned may be of no use, but it was called
        warnings.simplefilter("ignore")
        torch.load(path, weights_only=False)
    if harm != "a file in the file" or mark.exists():
        assert mark.exists()
        mark.unlink()
    with pytest.raises(InputError, match=re.escape(name)) as refused:
        load_torch_file(path, leave_out=("optimizer_state",))
    assert str(path) in refused.value.problem
    assert not mark.exists()


_SIZE = named("torch", "Size")
_REBUILD = named("torch._utils", "_rebuild_tensor_v2")

REFUSED: dict[str, tuple[bytes, str]] = {
    "stride beyond the storage": (tensor(stride=(2,)), "beyond its storage"),
    "offset beyond the storage": (tensor(offset=1), "beyond its storage"),
    "offset of an empty tensor": (tensor(offset=5, size=(0,)), "beyond its storage"),
    "size beyond the storage": (tensor(size=(2, 3), stride=(3, 1)), "beyond its storage"),
    "expanded to any size": (tensor(size=(10**9, 4), stride=(0, 1)), "beyond its storage"),
    "larger than its strides tell": (tensor(size=(5,), stride=(0,)), "beyond its storage"),
    "size beyond 64 bits": (tensor(size=(2**70,)), "no size"),
    "product beyond 64 bits": (tensor(size=(2**40, 2**40), stride=(0, 0)), "beyond its storage"),
    "negative size": (tensor(size=(-4,)), "no size"),
    "negative stride": (tensor(offset=3, stride=(-1,)), "no size"),
    "negative offset": (tensor(offset=-1), "no size"),
    "size of truth values": (tensor(size=(True,)), "no size"),
    "size of fractions": (tensor(size=(4.0,)), "no size"),
    "size of text": (tensor(size="4"), "tuple of whole numbers"),
    "a thousand axes": (tensor(size=(1,) * 1000, stride=(1,) * 1000), "tuple of whole numbers"),
    "more sizes than strides": (tensor(size=(2, 2), stride=(1,)), ""),
    "tensor of no storage": (tensor(of=value("0")), "made of a storage"),
    "tensor of a tensor": (tensor(of=tensor()), "made of a storage"),
    "too few arguments": (call(_REBUILD, storage()), ""),
    "state of a tensor": (tensor() + value({"data": 1}) + b"b", "state of a value"),
    "slots of a tensor": (tensor() + value((None, {"storage": 1})) + b"b", "state of a value"),
    "state of a storage": (storage() + value({"count": 10**9}) + b"b", "state of a value"),
    "slots of a type": (named("torch", "FloatStorage") + value((None, {"dtype": 1})) + b"b", "state of a value"),
    "state of what makes tensors": (_REBUILD + value({"_function": 1}) + b"b", "state of a function"),
    "tensor as a key": (b"}" + tensor() + value(1) + b"s", "unhashable"),
    "called type": (call(named("torch", "FloatStorage"), value(10**12)), "not callable"),
    "called dtype": (call(named("torch", "float32"), value(1)), "not callable"),
    "new object": (named("torch", "FloatStorage") + value((10**12,)) + b"\x81", "NEWOBJ"),
    "parameter of no tensor": (call(named("torch._utils", "_rebuild_parameter"), value([1])), "made of a tensor"),
    "device of no name": (call(named("torch", "device"), value([1])), "must have a name"),
    "device of a negative number": (call(named("torch", "device"), value("cuda"), value(-1)), "no size"),
    "size without end": (call(_SIZE, value([1] * 65)), "tuple of whole numbers"),
    "another type of numbers": (
        tensor(of=storage(kind=named("torch", "QInt8Storage"))),
        "torch.QInt8Storage",
    ),
    "storage of a dtype's name": (tensor(of=storage(kind=value("FloatStorage"))), "none that is known"),
    "storage of no record": (tensor(of=storage("9")), "storage 9 has no bytes"),
    "storage elsewhere": (tensor(of=storage("../data.pkl")), "has no bytes"),
    "storage under a number": (tensor(of=storage(0)), "none that is known"),
    "storage of a negative count": (tensor(of=storage(count=-4)), "no size"),
    "storage larger than its record": (tensor(of=storage(count=5)), "has 16 bytes, not 20"),
    "storage smaller than its record": (tensor(of=storage(count=1), size=(1,)), "has 16 bytes, not 4"),
    "storage in two sizes": (
        b"]" + tensor() + b"a" + tensor(of=storage(count=3), size=(3,)) + b"a",
        "two sizes",
    ),
    "storage of two types": (
        b"]" + tensor() + b"a" + tensor(of=storage(kind=named("torch", "DoubleStorage")), size=(1,)) + b"a",
        "two types",
    ),
    "module with its source": (b"(" + value("module") + value("a") + value("b") + value("c") + b"tQ", "outside"),
    "persistent text": (b"Pstorage\n", "outside"),
    "of bytes, with no dtype": (
        call(
            named("torch._utils", "_rebuild_tensor_v3"),
            storage(),
            value(0),
            value((4,)),
            value((1,)),
            value(False),
            value({}),
            value("float32"),
        ),
        "a dtype",
    ),
    "sparse": (named("torch._utils", "_rebuild_sparse_tensor"), "torch._utils._rebuild_sparse_tensor"),
    "quantised": (named("torch._utils", "_rebuild_qtensor"), "torch._utils._rebuild_qtensor"),
    "of any class": (named("torch._tensor", "_rebuild_from_type_v2"), "torch._tensor._rebuild_from_type_v2"),
    "tensor's class": (named("torch", "Tensor"), "torch.Tensor"),
    "load": (call(named("torch", "load"), value("/etc/passwd")), "torch.load"),
    "dotted": (named("torch", "device.__class__"), "torch.device.__class__"),
    "a model as a whole": (named("dynamic_network_architectures.unet", "PlainConvUNet"), "PlainConvUNet"),
}


@pytest.mark.parametrize("write", [write_zip, write_legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", REFUSED)
def test_tricks_are_refused(tmp_path: Path, kind: str, write: Callable[..., Path]) -> None:
    content, said = REFUSED[kind]
    path = write(tmp_path / "c.pth", content)
    if write is write_legacy:
        said = "storage '0' belongs to nothing" if "has no bytes" in said else said
    with pytest.raises(InputError, match=re.escape(said or "cannot be read")) as refused:
        load_torch_file(path)
    assert str(path) in refused.value.problem
    assert refused.value.next_step


@pytest.mark.parametrize("write", [write_zip, write_legacy], ids=["zip", "legacy"])
def test_the_honest_counterparts_of_the_tricks_are_read(tmp_path: Path, write: Callable[..., Path]) -> None:
    assert load_torch_file(write(tmp_path / "a.pth", tensor())).tolist() == [1, 2, 3, 4]
    content = tensor(offset=1, size=[2, 1], stride=[2, 1])
    assert load_torch_file(write(tmp_path / "b.pth", content)).tolist() == [[2], [4]]
    assert load_torch_file(write(tmp_path / "c.pth", tensor(offset=4, size=(0,)))).tolist() == []
    assert load_torch_file(write(tmp_path / "d.pth", storage())).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("model", ["nnunet_model", "umamba_checkpoints/bot_3d", "umamba_checkpoints/enc_2d"])
def test_real_checkpoints_are_read_as_torch_reads_them(shared: Path, model: str) -> None:
    path = shared / "goldens" / model / "fold_0/checkpoint_final.pth"
    assert same(load_torch_file(path), torch.load(path, weights_only=False))
