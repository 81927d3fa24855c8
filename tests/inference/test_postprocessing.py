from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.inference.postprocessing import (
    Postprocessing,
    Step,
    enclosed,
    largest_piece,
    postprocess,
    read_postprocessing,
    write_postprocessing,
)


def test_the_largest_piece_of_a_label_stays() -> None:
    labels = np.zeros((3, 8, 8), dtype=np.uint8)
    labels[0, :2, :2] = 1
    labels[1, 2, 2] = 1  # touches the others in a corner
    labels[2, 5:7, 5:7] = 1
    labels[0, 7, 7] = 2
    before = labels.copy()
    result = postprocess(labels, [Step(operation="keep_largest", labels=(1,))])
    np.testing.assert_array_equal(labels, before)
    assert np.count_nonzero(result == 1) == 5
    assert result[0, 7, 7] == 2
    assert result[2].max() == 0


def test_labels_may_be_taken_together() -> None:
    labels = np.zeros((1, 4, 9), dtype=np.uint8)
    labels[0, 1, 1:3], labels[0, 1, 3:5] = 1, 2
    labels[0, 1, 6:9] = 1
    result = postprocess(labels, [Step(operation="keep_largest", labels=(1, 2))])
    assert result[0, 1].tolist() == [0, 1, 1, 2, 2, 0, 0, 0, 0]


def test_enclosed_background_is_filled_and_other_labels_stay() -> None:
    labels = np.zeros((5, 5, 5), dtype=np.uint8)
    labels[1:4, 1:4, 1:4] = 3
    labels[2, 2, 2] = 0
    labels[2, 2, 1] = 0  # a way out
    assert (postprocess(labels, [Step(operation="fill_holes", labels=(3,))]) == labels).all()
    labels[2, 2, 1] = 1
    result = postprocess(labels, [Step(operation="fill_holes", labels=(3, 1))])
    assert result[2, 2, 2] == 3
    assert result[2, 2, 1] == 1


def test_a_single_slice_has_holes() -> None:
    ring = np.ones((1, 3, 3), dtype=bool)
    ring[0, 1, 1] = False
    assert enclosed(ring)[0, 1, 1]
    assert not enclosed(np.repeat(ring, 3, axis=0)).any()  # a tunnel


def test_nothing_and_one_piece_stay() -> None:
    nothing = np.zeros((2, 3, 4), dtype=bool)
    assert not largest_piece(nothing).any()
    assert largest_piece(~nothing).all()


def test_the_file(tmp_path: Path) -> None:
    path = tmp_path / "postprocessing.json"
    found = Postprocessing(steps=(Step(operation="keep_largest", labels=(1,)),))
    write_postprocessing(path, found)
    assert read_postprocessing(path) == found
    for content in (
        '{"format": 2}',
        '{"steps": [{"operation": "rm", "labels": [1]}]}',
        '{"steps": [{"operation": "fill_holes", "labels": [65536]}]}',
        "nonsense",
    ):
        path.write_text(content)
        with pytest.raises(InputError):
            read_postprocessing(path)


def test_a_bundle_is_said_to_hold_none(tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match="a bundle, which holds no postprocessing"):
        read_postprocessing(tmp_path / "model.zip")
