"""Damage at random places of a bundle is refused, or changes nothing that is used."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import cascade_bundle

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.runs.bundle import open_bundle

Damage = Callable[[bytearray, random.Random], None]


def _flip(content: bytearray, generator: random.Random) -> None:
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)


def _directory(content: bytearray, generator: random.Random) -> None:
    """Where a zip says what is in it, and where."""
    for _ in range(generator.randrange(1, 4)):
        place = generator.randrange(content.find(b"PK\x01\x02"), len(content))
        content[place] = generator.choice((0, 1, 128, 255, generator.randrange(256)))


def _cut(content: bytearray, generator: random.Random) -> None:
    del content[generator.randrange(len(content)) :]


def _leave_out(content: bytearray, generator: random.Random) -> None:
    start = generator.randrange(len(content))
    del content[start : start + generator.randrange(1, 50)]


def _put_in(content: bytearray, generator: random.Random) -> None:
    start = generator.randrange(len(content))
    content[start:start] = generator.randbytes(generator.randrange(1, 50))


def _copy(content: bytearray, generator: random.Random) -> None:
    length, source, target = generator.randrange(1, 200), *(generator.randrange(len(content)) for _ in range(2))
    content[target : target + length] = content[source : source + length]


def _all_of(path: Path) -> tuple[list[Any], list[torch.Tensor]]:
    """What predictions depend on."""
    bundle = open_bundle(path)
    assert bundle.previous is not None
    weights = [of.weights(fold) for of in (bundle, bundle.previous) for fold in of.folds]
    described = [bundle.record, bundle.previous.record, bundle.folds, bundle.previous.folds]
    used = bundle.previous_folds(bundle.folds)
    return [*described, used, *map(sorted, weights)], [of[name] for of in weights for name in sorted(of)]


@pytest.mark.parametrize("damage", [_flip, _directory, _cut, _leave_out, _put_in, _copy])
def test_damage_is_refused_or_changes_nothing(tmp_path: Path, damage: Damage) -> None:
    path = cascade_bundle(tmp_path / "model.zip")
    honest, (described, tensors) = path.read_bytes(), _all_of(path)
    generator, refusals = random.Random(damage.__name__), 0
    for _ in range(150):
        content = bytearray(honest)
        damage(content, generator)
        path.write_bytes(content)
        try:
            now_described, now_tensors = _all_of(path)
        except InputError as error:
            assert error.problem.isprintable()  # noqa: PT017 - others are raised by neither
            refusals += 1
            continue
        assert now_described == described
        assert all(torch.equal(a, b) for a, b in zip(now_tensors, tensors, strict=True))
    assert refusals > 75
