"""A network at the configuration of its paper, with the figures that the paper states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from umamba_cli.pipeline.networks.registry import NetworkPlan


@dataclass(frozen=True)
class PaperConfiguration:
    """A network of a paper and the plan with which ours comes closest to it."""

    name: str
    model: str
    """Ours, by its name in the registry."""

    plan: NetworkPlan
    paper_parameters: int | None
    """As stated; where the statement is rounded, perhaps the sum over the layers that agrees with it. None: not stated.
    """

    paper_multiply_adds: int | None
    """Of one image, as stated; None: not stated."""

    source: str
    """Where the figures are stated, and what is known about how they were counted."""

    terms: Mapping[str, int]
    """Parameters of ours less those of the paper, by cause; they add up to the difference."""

    multiply_add_terms: Mapping[str, int] | None = field(default_factory=dict)
    """The same of the multiply-adds; None where the paper's cannot be compared, see `source`."""
