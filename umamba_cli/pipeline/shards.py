"""Dividing the cases of a folder among machines that know nothing of each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from umamba_cli.pipeline.errors import InputError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """One of several parts of a folder's cases."""

    number: int
    """From 1."""

    count: int
    """Parts there are."""

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`3/16`: the third of sixteen parts.

        Raises:
            InputError: it is none.
        """
        match = re.fullmatch(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})", text, re.ASCII)
        if not match or int(match[1]) > int(match[2]):
            raise InputError(
                f"there is no shard {text!r}", next_step="give which of how many, such as 3/16: 1/16, 2/16, ... 16/16"
            )
        return cls(int(match[1]), int(match[2]))

    def of(self, items: Sequence[Item], name: Callable[[Item], str]) -> list[Item]:
        """Its part of the items: every `count`-th in the order of their names, so that parts differ by one at most.

        The parts of all machines are the whole, each item once, as long as all look at the same names.
        """
        ordered = sorted(items, key=name)
        return ordered[self.number - 1 :: self.count]

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"
