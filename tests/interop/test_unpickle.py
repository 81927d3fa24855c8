"""Honest pickles come back as they were; a malicious one is refused by name and runs nothing."""

from __future__ import annotations

import copyreg
import os
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.interop.unpickle import Allowed, RestrictedUnpickler, load_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

HONEST: dict[str, Any] = {
    "numbers": [1, -(2**70), 0.5, float("inf"), 2j, True, None],
    "text": ["", "name", "Ünïcode\x00\n", b"", b"\x00\xff bytes"],
    "containers": {"list": [[], [1]], "tuple": ((), (1,), (1, 2, 3, 4)), "set": {1, 2}, "frozen": frozenset({3})},
    "properties": {
        "spacing": [np.float64(1.5), np.float64(1.0)],
        "shape_before_cropping": (35, 51, 35),
        "bbox_used_for_cropping": [[0, 35], [0, 51], [0, np.int64(35)]],
        "class_locations": {1: np.arange(12).reshape(3, 4), 2: [], (1, 2): np.zeros((0, 4), dtype=np.int64)},
    },
    "scalars": [np.float32(0.1), np.int8(-3), np.bool_(True), np.str_("a"), np.complex64(1j), np.array(3.0)[()]],
    "dtype": np.dtype(">f4"),
}

ARRAYS = [
    np.arange(24, dtype=np.int16).reshape(2, 3, 4),
    np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(6, dtype=">i4"),
    np.array([True, False]),
    np.array(["one", "three"]),
    np.array(7.0),
    np.zeros((0, 3)),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", HONEST)
def test_what_was_pickled_comes_back(tmp_path: Path, protocol: int, kind: str) -> None:
    path = tmp_path / "honest.pkl"
    path.write_bytes(pickle.dumps(HONEST[kind], protocol))
    content = load_pickle(path)
    assert repr(content) == repr(HONEST[kind])
    assert type(content) is type(HONEST[kind])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_arrays_come_back(protocol: int, core: str, array: np.ndarray) -> None:
    written = pickle.dumps({"first": array, "again": array}, protocol)
    assert b"numpy._core" in written or b"numpy.core" in written
    content = RestrictedUnpickler(_renamed(written, core), "honest").read()
    np.testing.assert_array_equal(content["first"], array)
    assert type(content["first"]) is np.ndarray
    assert content["first"].dtype == array.dtype
    assert content["again"] is content["first"]


def _renamed(written: bytes, core: str) -> bytes:
    """The pickle as numpy 1 (`numpy.core`) or numpy 2 (`numpy._core`) writes it."""
    for ending in (b".multiarray", b".numeric"):
        for old in (b"numpy._core", b"numpy.core"):
            new = core.encode()
            written = written.replace(_short(old + ending), _short(new + ending))
            written = written.replace(b"c" + old + ending + b"\n", b"c" + new + ending + b"\n")
    return _unframed(written)


def _short(text: bytes) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text


def _unframed(written: bytes) -> bytes:
    """The pickle without its frame's length, which a longer name makes wrong."""
    return written[:2] + written[11:] if written[2:3] == b"\x95" else written


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ordered_dictionaries_become_plain_and_lose_their_attributes(protocol: int) -> None:
    states = OrderedDict([("weight", np.ones(2)), ("bias", np.zeros(2))])
    states._metadata = {"": {"version": 1}}  # type: ignore[attr-defined] - as torch does it
    content = RestrictedUnpickler(pickle.dumps(states, protocol), "honest").read()
    assert type(content) is dict
    assert list(content) == ["weight", "bias"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_holds_itself_comes_back(protocol: int) -> None:
    held: list[Any] = [1]
    held.append({"self": held, "pair": (held, held)})
    content = RestrictedUnpickler(pickle.dumps(held, protocol), "honest").read()
    assert content[1]["self"] is content
    assert content[1]["pair"][0] is content


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: object = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def _named_call(module: str, name: str, *arguments: Any) -> bytes:
    """A pickle that calls a function by its name."""
    return _global(module, name) + pickle.dumps(arguments, 2)[2:-1] + b"R."


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _built(target: bytes, state: object) -> bytes:
    """A pickle that sets the state of what `target` leaves on the stack."""
    return target + pickle.dumps(state, 2)[2:-1] + b"b."


def _touch(mark: Path) -> Calls:
    return Calls(os.system, f"touch {mark}")


def _saved_trojan(mark: Path) -> str:
    path = mark.with_name("inner.npy")
    np.save(path, np.array([_touch(mark)], dtype=object), allow_pickle=True)
    return str(path)


# Each makes the file `mark` where Python's own unpickler reads it.
HARMFUL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "system": (_touch, "system"),
    "eval": (lambda mark: Calls(eval, f"open({str(mark)!r}, 'w').close()"), "eval"),
    "exec in a container": (
        lambda mark: {"spacing": [{1: (Calls(exec, f"open({str(mark)!r}, 'w').close()"),)}]},
        "exec",
    ),
    "numpy.load": (lambda mark: Calls(np.load, _saved_trojan(mark), None, True), "load"),
    "method of an array": (lambda mark: Calls(np.ndarray.tofile, np.zeros(1), str(mark)), ""),
    "object array": (lambda mark: np.array([_touch(mark)], dtype=object), ""),
    "object array in properties": (lambda mark: {"class_locations": {1: np.array([_touch(mark)], dtype=object)}}, ""),
    "state": (lambda mark: Calls(OrderedDict, state={"attribute": _touch(mark)}), "system"),
    "key": (lambda mark: {Calls(exec, f"open({str(mark)!r}, 'w').close()"): 1}, "exec"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", HARMFUL)
def test_harm_is_refused(tmp_path: Path, kind: str, protocol: int) -> None:
    make, named = HARMFUL[kind]
    mark, path = tmp_path / "mark", tmp_path / "case.pkl"
    path.write_bytes(pickle.dumps(make(mark), protocol))
    with suppress(Exception):  # what the call returned may be of no use, but it was called
        pickle.loads(path.read_bytes())
    assert mark.exists()
    mark.unlink()
    with pytest.raises(InputError, match=named or "case.pkl") as refused:
        load_pickle(path)
    assert str(path) in refused.value.problem
    assert not mark.exists()


REFUSED = {
    "import": (_named_call("builtins", "__import__", "os"), "builtins.__import__"),
    "getattr": (_named_call("builtins", "getattr", "", "join"), "builtins.getattr"),
    "Python 2's names": (_named_call("__builtin__", "apply", 1), "__builtin__.apply"),
    "open": (_named_call("io", "open", "/etc/passwd"), "io.open"),
    "other of numpy's": (_named_call("numpy.core.multiarray", "fromfile", "/etc/passwd"), "multiarray.fromfile"),
    "numpy's own modules": (_named_call("numpy", "core", 1), "numpy.core"),
    "dotted": (_named_call("numpy", "ndarray.tofile", 1), "numpy.ndarray.tofile"),
    "dotted from what is allowed": (_global("numpy.core.multiarray", "_reconstruct.__globals__") + b".", "__globals__"),
    "dotted at protocol 4": (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", "numpy.ndarray.tofile"),
    "another codec": (_named_call("_codecs", "encode", "text", "rot13"), "rot13"),
    "reconstructor": (_named_call("copyreg", "_reconstructor", 1, 2, 3), "copyreg._reconstructor"),
    "torch": (_named_call("torch", "load", "file"), "torch.load"),
    "instance": (b"(S'true'\nios\nsystem\n.", "os.system"),
    "object": (b"(" + _global("os", "system") + b"S'true'\no.", "os.system"),
    "new object": (_global("collections", "OrderedDict") + b")\x81.", "NEWOBJ"),
    "persistent": (b"Poutside\n.", "outside"),
    "binary persistent": (b"K\x01Q.", "outside"),
    "extension": (b"\x80\x02\x82\x01.", "extension"),
    "called array": (_named_call("numpy", "ndarray", (1,), "O"), "cannot be called"),
    "array of another class": (_named_call("numpy.core.multiarray", "_reconstruct", 1, (0,), b"b"), "another class"),
    "array without content": (
        _global("numpy.core.multiarray", "_reconstruct") + _global("numpy", "ndarray") + b"\x85R.",
        "without content",
    ),
    "scalar of objects": (_named_call("numpy.core.multiarray", "scalar", "O", b"12345678"), "dtype"),
    "dtype of objects": (_named_call("numpy", "dtype", "O", False, True), "'O'"),
    "dtype of records": (_named_call("numpy", "dtype", [("a", "f8")]), "not allowed"),
    "dtype with fields": (
        _built(_named_call("numpy", "dtype", "f8")[:-1], (3, "<", None, ("a",), {"a": 1}, 8, 1, 0)),
        "records",
    ),
    "too little content": (
        _named_call("numpy._core.multiarray", "scalar", 1, b"")[:-2].replace(
            b"K\x01", _named_call("numpy", "dtype", "f8")[:-1]
        )
        + b"R.",
        "0 bytes",
    ),
    "state of a function": (
        _built(_global("numpy.core.multiarray", "scalar"), {"_function": 1}),
        "state of a function",
    ),
    "slots of a function": (
        _built(_global("collections", "OrderedDict"), (None, {"_function": 1, "__class__": 2})),
        "state of a function",
    ),
    "state of a dictionary": (_built(b"}", {"keys": 1}), ""),
    "slots of a list": (_built(b"]", (None, {"append": 1})), ""),
    "memory": (b"\x80\x04]r\xff\xff\xff\xff.", "memo number"),
    "endless bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".", ""),
    "deep": (b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".", ""),
    "empty": (b"", ""),
    "garbage": (b"\x00\x01\x02\x03", ""),
    "text": (b"spacing: 1 1 1\n", ""),
    "empty stack": (b"\x80\x04.", ""),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_tricks_and_garbage_are_refused(tmp_path: Path, kind: str) -> None:
    content, named = REFUSED[kind]
    path = tmp_path / "case.pkl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(named or "case.pkl")) as refused:
        load_pickle(path)
    assert str(path) in refused.value.problem
    assert refused.value.next_step


def test_extension_codes_are_refused_even_where_they_are_registered(tmp_path: Path) -> None:
    content = b"\x80\x02\x82\xfd(" + pickle.dumps(f"touch {tmp_path / 'mark'}", 2)[2:-1] + b"tR."
    copyreg.add_extension("os", "system", 0xFD)
    try:
        pickle.loads(content)
        assert (tmp_path / "mark").exists()  # and now Python's unpickler has it at hand, without looking for the name
        (tmp_path / "mark").unlink()
        with pytest.raises(InputError, match="extension"):
            RestrictedUnpickler(content, "trick").read()
    finally:
        copyreg.remove_extension("os", "system", 0xFD)
    assert not (tmp_path / "mark").exists()


def test_nothing_that_is_allowed_can_be_changed_by_a_file() -> None:
    for content, _ in REFUSED.values():
        with pytest.raises(InputError):
            RestrictedUnpickler(content, "trick").read()
    assert RestrictedUnpickler(pickle.dumps(np.float64(2)), "honest").read() == 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_truncated_files_are_refused(protocol: int) -> None:
    whole = pickle.dumps(HONEST["properties"], protocol)
    for length in range(len(whole)):
        with pytest.raises(InputError):
            RestrictedUnpickler(whole[:length], "truncated").read()


def test_flipped_bytes_do_no_more_than_change_values() -> None:
    whole = pickle.dumps(HONEST, 4)
    generator = np.random.default_rng(0)
    for _ in range(3000):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] = generator.integers(256)
        with suppress(InputError):
            RestrictedUnpickler(bytes(damaged), "damaged").read()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_pickle(tmp_path / "none.pkl")


def test_a_subclass_allows_more() -> None:
    class WithPaths(RestrictedUnpickler):
        allowed: ClassVar = {
            **RestrictedUnpickler.allowed,
            ("pathlib", "Path"): Allowed(lambda *parts: "/".join(parts)),
        }

        def persistent_load(self, pid: object) -> object:
            return f"outside {pid}"

    content = _global("pathlib", "Path") + b"(S'a'\nS'b'\ntR."
    assert WithPaths(content, "honest").read() == "a/b"
    assert WithPaths(b"Pit\n.", "honest").read() == "outside it"
    with pytest.raises(InputError, match=r"pathlib\.Path"):
        RestrictedUnpickler(content, "honest").read()
