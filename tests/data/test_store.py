from __future__ import annotations

import os
import types
from pathlib import Path

import blosc2
import numpy as np
import pytest

from umamba_cli.pipeline.data.store import Store, block_shape, chunk_shape
from umamba_cli.pipeline.errors import WorkError


def _write(store: Store, *, labels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    image = generator.standard_normal((2, 9, 30, 31)).astype(np.float32)
    label_map = generator.integers(-1, labels + 1, (1, 9, 30, 31))
    voxels = {1: np.array([3, 5], dtype=np.int64)}
    store.write(
        "case",
        image,
        label_map,
        voxels,
        {"digest": "abc", "source": [], "shape": image.shape[1:]},
        patch_size=(8, 16, 16),
    )
    return image, label_map


@pytest.mark.parametrize("labels", [2, 300])
def test_what_is_written_is_read(tmp_path: Path, labels: int) -> None:
    store = Store(tmp_path / "store")
    image, label_map = _write(store, labels=labels)
    case = store.case("case")
    np.testing.assert_array_equal(case.image[:], image)
    np.testing.assert_array_equal(case.labels[:], label_map)
    np.testing.assert_array_equal(case.image[:, 2:5, 7:9], image[:, 2:5, 7:9])
    assert case.classes == (1,)
    assert case.class_voxels(1).tolist() == [3, 5]
    assert case.shape == (9, 30, 31)
    assert case.image.chunks == (2, 8, 16, 16)


@pytest.mark.parametrize("voxels", [None, [], [0, 7]])
def test_annotated_voxels_come_back_and_are_no_class(tmp_path: Path, voxels: list[int] | None) -> None:
    store = Store(tmp_path)
    annotated = None if voxels is None else np.array(voxels, dtype=np.int64)
    image, labels = np.zeros((1, 2, 2, 2), dtype=np.float32), np.zeros((1, 2, 2, 2), dtype=np.int8)
    store.write("case", image, labels, {1: np.array([3])}, {}, patch_size=(2, 2, 2), annotated_voxels=annotated)
    read = store.case("case").annotated_voxels()
    assert (read if read is None else read.tolist()) == voxels
    assert store.case("case").classes == (1,)


def test_class_frequencies_are_shares_of_what_is_not_ignored(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name, counts in (("a", [6, 1]), ("b", [2, 1]), ("ignored", [0, 0])):
        array = np.zeros((1, 2, 2, 2), dtype=np.float32)
        store.write(name, array, array.astype(np.int8), {}, {"class_counts": counts}, patch_size=(2, 2, 2))
    assert store.class_frequencies(["a", "b", "ignored"]) == (0.8, 0.2)
    assert store.class_frequencies(["ignored"]) == ()


def test_the_json_file_is_what_makes_a_case_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    assert store.origin("case") is None
    _write(store)
    assert store.origin("case") == ("abc", [])

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("umamba_cli.pipeline.data.store.write_array", full_disk)
    with pytest.raises(OSError, match="No space"):
        _write(store)
    assert store.origin("case") is None


@pytest.mark.parametrize("name", ["case.json", "case.b2nd", "case_seg.b2nd"])
@pytest.mark.parametrize("content", [b"", b"[]", None])
def test_a_damaged_case_is_not_complete(tmp_path: Path, name: str, content: bytes | None) -> None:
    store = Store(tmp_path)
    _write(store)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    assert store.origin("case") is None


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import blosc2

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(blosc2, "asarray", full_disk)
    with pytest.raises(WorkError, match="No space left"):
        _write(Store(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_chunk_is_a_patch_and_a_block_fits_the_cache() -> None:
    assert chunk_shape((3, 1, 300, 400), (256, 256)) == (3, 1, 256, 256)
    assert chunk_shape((1, 20, 300, 400), (256, 256)) == (1, 1, 256, 256)
    assert block_shape((3, 128, 128, 128), 4) == (1, 32, 32, 64)


def test_a_damaged_array_is_named_when_it_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    _write(store)
    path = store.folder / "case.b2nd"
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 2] = os.urandom(len(content) // 2 - len(content) // 3)
    path.write_bytes(content)
    with pytest.raises(WorkError, match="is damaged") as caught:
        store.case("case").image[:]
    assert caught.value.next_step.startswith("remove this file, then run `umamba preprocess` again")


def test_a_file_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    _write(store)
    mark = tmp_path / "mark"
    lazy = {"LazyArray": {"UDF": f"open({str(mark)!r}, 'w')"}}
    (store.folder / "case.b2nd").write_bytes(blosc2.asarray(np.zeros((1, 4, 5, 6), np.float32), meta=lazy).to_cframe())
    with pytest.raises(WorkError, match=r"no plain array \(b2nd, LazyArray"):
        store.case("case").image[:]
    assert not mark.exists()


def test_properties_that_are_damaged_make_no_complete_case(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    _write(store)
    assert store.origin("case") is not None
    (store.folder / "case.json").write_text('{"shape": null}')
    assert store.origin("case") is None


def test_too_little_memory_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import blosc2

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Error while creating the NDArray")

    monkeypatch.setattr(blosc2, "asarray", fail)
    with pytest.raises(MemoryError):
        _write(Store(tmp_path / "store"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=0))
    with pytest.raises(WorkError, match="is the disk full"):
        _write(Store(tmp_path / "store"))
