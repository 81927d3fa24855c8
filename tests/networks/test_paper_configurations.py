"""Networks at their papers' configurations: what `benchmarks/network_costs.py` holds against the papers."""

from __future__ import annotations

import pytest
from _paper_configurations import PaperConfiguration
from _paper_configurations_unetrpp import SYNAPSE, released_multiply_adds, released_parameters
from network_costs import UNEXPLAINED, configurations, counts

OF_MONAI = ("segresnet", "unetr", "swin-unetr")
CONFIGURATIONS = [each for each in configurations() if each.model not in OF_MONAI]  # theirs: test_monai_networks


@pytest.mark.parametrize("paper", CONFIGURATIONS, ids=lambda paper: paper.name)
def test_parameters_and_multiply_adds_are_the_papers(paper: PaperConfiguration) -> None:
    parameters, operations = counts(paper)
    assert paper.paper_parameters is not None
    exactly = parameters - paper.paper_parameters - sum(paper.terms.values())
    assert abs(exactly) <= UNEXPLAINED * paper.paper_parameters
    if paper.model != "unetr++":  # of which the paper prints rounded numbers alone
        assert exactly == 0
    if paper.paper_multiply_adds is not None:
        assert paper.multiply_add_terms is not None
        left = operations - paper.paper_multiply_adds - sum(paper.multiply_add_terms.values())
        assert abs(left) <= UNEXPLAINED * paper.paper_multiply_adds


def test_unetr_plus_plus_is_the_released_network_to_the_last_number() -> None:
    parameters, operations = counts(SYNAPSE)
    assert parameters - released_parameters() == sum(SYNAPSE.terms.values())
    assert SYNAPSE.multiply_add_terms is not None
    assert operations - sum(released_multiply_adds()) == sum(SYNAPSE.multiply_add_terms.values())
